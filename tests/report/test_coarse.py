"""Plans of whole layers below their budget: tables say what they keep, and they compete only among their equals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.records import record
from harness.report import report
from harness.report.frame import board_frame
from harness.report.panels import panels, places
from harness.types import Keep, Plan
from harness.verdicts.standing import verdict
from tests.support import stored


def coarse(budget: float, kept: float) -> Plan:
    return Plan({("vision.1", "layers"): Keep(())}, budget, kept, coarse=abs(kept / budget - 1) > 0.01)


def put(results: Path, method: str, kept: dict[float, float], level: float, **changes: Any) -> None:
    for place, (budget, share) in enumerate(kept.items()):
        own = stored.scores(180, level, seed=place)
        plan = coarse(budget, share)
        stored.put(results, own, method=method, budget=budget, kept=share, units="layers", plan=plan, **changes)


def placed(results: Path) -> dict[tuple[str, float], int]:
    (panel,) = panels(board_frame(record.load(results / "made")[0]))
    return places(panel)


def test_a_plan_that_keeps_less_is_shown_as_such_and_has_no_rank(tmp_path: Path) -> None:
    put(tmp_path, "fine", {0.75: 0.75, 0.5: 0.501}, 0.6)
    put(tmp_path, "wanda", {0.75: 0.75, 0.5: 0.432}, 0.8)
    assert placed(tmp_path) == {("fine", 0.75): 2, ("wanda", 0.75): 1, ("fine", 0.5): 1}
    report(tmp_path, tmp_path / "pages")
    text = (tmp_path / "pages" / "made" / "README.md").read_text()
    assert text.count("(keeps 0.432)") == 1 and text.count("keeps 0.432") == 2 and "layers only" in text
    assert "keeps 0.432" in (tmp_path / "pages" / "made" / "board.csv").read_text()
    frame = board_frame(record.load(tmp_path / "made")[0])
    assert sorted(frame["flops_kept"]) == [0.432, 0.501, 0.75, 0.75]  # where it is plotted


def test_plans_that_keep_the_same_are_ranked(tmp_path: Path) -> None:
    put(tmp_path, "fine", {0.5: 0.432}, 0.6)
    put(tmp_path, "wanda", {0.5: 0.432}, 0.8)
    assert placed(tmp_path) == {("fine", 0.5): 2, ("wanda", 0.5): 1}


def test_boards_without_coarse_plans_have_no_such_column(tmp_path: Path) -> None:
    put(tmp_path, "fine", {0.5: 0.5}, 0.6)
    assert "coarse" not in board_frame(record.load(tmp_path / "made")[0]).columns


@pytest.mark.parametrize(("kept", "compared"), [(0.432, [0.75]), (0.5, [0.75, 0.5])])
def test_a_rival_that_keeps_less_is_no_rival_there(tmp_path: Path, kept: float, compared: list[float]) -> None:
    put(tmp_path, "mine", {0.75: 0.75, 0.5: 0.5}, 0.7)
    put(tmp_path, "random", {0.75: 0.75, 0.5: 0.5}, 0.4)
    put(tmp_path, "wanda", {0.75: 0.75, 0.5: kept}, 0.6)
    (bar,) = verdict(tmp_path / "made")
    assert [at.budget for at in bar.budgets if at.rival is not None] == compared
    (rival,) = [rival for rival in bar.rivals if rival.name == "wanda"]
    assert rival.budgets == len(compared)
    note = "wanda at 0.5: keeps 0.432, not 0.500, so it is not compared"
    assert (note in bar.notes) == (len(compared) == 1)


def test_equally_coarse_plans_are_compared(tmp_path: Path) -> None:
    for method, level in (("mine", 0.7), ("random", 0.4), ("wanda", 0.6)):
        put(tmp_path, method, {0.5: 0.432}, level)
    (bar,) = verdict(tmp_path / "made")
    assert bar.budgets[0].rival is not None and bar.budgets[0].floor is not None
