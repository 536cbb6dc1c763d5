"""The summary of a board's curves: each figure by hand, the interval from samples, and what is left open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.records import record
from harness.report import report
from harness.report.frame import board_frame
from harness.report.panels import panels, places, ranked
from harness.report.samples import Samples
from harness.report.totals import RESAMPLES, Total, cells, find, shown
from harness.stats.hypervolume import hypervolume_intervals
from tests.support import stored

LEVELS = {0.75: 0.8, 0.5: 0.6, 0.25: 0.3}


def put(results: Path, method: str, levels: dict[float, float], **changes: Any) -> None:
    for place, (budget, level) in enumerate(levels.items()):
        own = stored.scores(180, level, seed=place + 7 * changes.get("seed", 0))
        stored.put(results, own, method=method, budget=budget, kept=budget, **changes)


def totals(results: Path) -> dict[str, Total]:
    records = record.load(results / "made")[0]
    (found,) = find(panels(board_frame(records)), Samples(results / "made"), records)
    return {total.curve: total for total in found}


def accuracy(results: Path, method: str) -> list[float]:
    """From the largest budget on, the mean over seeds."""
    records = record.load(results / "made")[0]
    own = [(r.trial.budget, r.metrics["accuracy"]["mean"]) for r in records if r.trial.method == method]
    return [float(np.mean([mean for at, mean in own if at == budget])) for budget in LEVELS]


def test_every_figure_by_hand(tmp_path: Path) -> None:
    put(tmp_path, "taylor", LEVELS)
    put(tmp_path, "magnitude", {budget: level - 0.2 for budget, level in LEVELS.items()})
    found = totals(tmp_path)
    assert list(found) == ["taylor", "magnitude"]
    high, middle, low = accuracy(tmp_path, "taylor")
    own = found["taylor"]
    assert own.hypervolume == pytest.approx(0.25 * (low + middle + high))  # down to 0: no blind floor was measured
    assert own.area == pytest.approx(((high + middle) / 2 + (middle + low) / 2) / 2)
    assert (own.rank, found["magnitude"].rank) == (1.0, 2.0)
    assert own.hypervolume and own.lo and own.hi and own.lo < own.hypervolume < own.hi
    assert (own.ranking_s, own.tuning_s, own.memory_bytes) == (None, None, None)


def test_ranks_are_within_a_regime(tmp_path: Path) -> None:
    """What was refitted is not ranked with what was not; what was tuned alike is ranked together."""
    levels = {"taylor": 0.6, "wanda": 0.5, "flap": 0.7}
    for method, level in levels.items():
        refitted = {"recovery": {"method": "refit"}} if method == "flap" else {}
        put(tmp_path, method, {0.5: level}, scope="vision", **refitted)
        put(tmp_path, method, {0.5: level}, scope="all", recovery={"method": "full"})
    untouched, refit, tuned = panels(board_frame(record.load(tmp_path / "made")[0]))
    assert places(untouched) == {("taylor", 0.5): 1, ("wanda", 0.5): 2} and places(refit) == {("flap", 0.5): 1}
    assert [places(tuned)[name, 0.5] for name in levels] == [2, 3, 1]
    assert ranked(tuned, places(tuned)) == ["flap", "taylor", "wanda"]


def test_the_interval_is_the_bootstrap_of_the_stored_scores(tmp_path: Path) -> None:
    put(tmp_path, "taylor", LEVELS)
    own = totals(tmp_path)["taylor"]
    budgets = sorted(LEVELS)
    table = np.column_stack([stored.scores(180, LEVELS[b], seed=list(LEVELS).index(b)) for b in budgets])
    answers = stored.samples(table[:, 0])
    task = answers["task"].to_pylist()
    images = list(zip(task, answers["image_id"].to_pylist(), strict=True))
    wanted = hypervolume_intervals([np.array(budgets)], table, images, task, (1.0, 0.0), resamples=RESAMPLES)[0]
    assert (own.hypervolume, own.lo, own.hi) == pytest.approx(tuple(wanted))


def test_fronts_together_are_fronts_alone() -> None:
    random = np.random.default_rng(3)
    scores = random.integers(0, 2, size=(120, 5)).astype(float)
    images, task = [i // 3 for i in range(120)], ["a"] * 60 + ["b"] * 60
    fronts = [np.array([0.2, 0.5]), np.array([0.3, 0.6, 0.9])]
    together = hypervolume_intervals(fronts, scores, images, task, (1.0, 0.1), resamples=500)
    (alone,) = hypervolume_intervals(fronts[:1], scores[:, :2], images, task, (1.0, 0.1), resamples=500)
    assert together[0].estimate == alone.estimate and len(together) == 2
    assert together[0].lo == pytest.approx(alone.lo, abs=0.02) and together[0].hi == pytest.approx(alone.hi, abs=0.02)
    with pytest.raises(ValueError, match="5 columns of scores and 2 points"):
        hypervolume_intervals(fronts[:1], scores, images, task, (1.0, 0.1))


def test_seeds_are_averaged_and_narrow_the_interval(tmp_path: Path) -> None:
    put(tmp_path / "one", "random", LEVELS)
    for seed in range(4):
        put(tmp_path / "four", "random", LEVELS, seed=seed)
    one, four = totals(tmp_path / "one")["random"], totals(tmp_path / "four")["random"]
    high, middle, low = accuracy(tmp_path / "four", "random")
    assert four.hypervolume == pytest.approx(0.25 * (low + middle + high))
    assert one.lo is not None and one.hi is not None and four.lo is not None and four.hi is not None
    assert four.hi - four.lo < one.hi - one.lo


def test_a_curve_with_a_gap_has_no_area(tmp_path: Path) -> None:
    put(tmp_path, "taylor", LEVELS)
    put(tmp_path, "flap", {0.75: 0.9, 0.5: 0.7})
    stored.put(tmp_path, None, method="flap", budget=0.25, error="no room")
    own = totals(tmp_path)["flap"]
    assert (own.hypervolume, own.lo, own.area, own.rank) == (None, None, None, None)


def test_a_budget_of_one_contestant_takes_no_total_from_the_others(tmp_path: Path) -> None:
    put(tmp_path, "taylor", LEVELS)
    put(tmp_path, "wanda", {budget: level - 0.1 for budget, level in LEVELS.items()})
    before = totals(tmp_path)
    put(tmp_path, "magnitude", {1.0: 0.9, **{budget: level - 0.2 for budget, level in LEVELS.items()}})
    found = totals(tmp_path)
    assert list(found) == ["taylor", "wanda", "magnitude"] and found["magnitude"].area is not None
    assert {name: found[name].hypervolume for name in before} == {name: own.hypervolume for name, own in before.items()}


def test_without_samples_there_is_no_interval_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "taylor", LEVELS)
    put(tmp_path, "magnitude", LEVELS)
    records = record.load(tmp_path / "made")[0]
    damaged = next(r.id for r in records if r.trial.method == "magnitude")
    (tmp_path / "made" / f"{damaged}.parquet").write_bytes(b"not the samples")
    found = totals(tmp_path)
    assert found["magnitude"].hypervolume is not None and found["magnitude"].lo is None
    assert found["taylor"].lo is not None
    caplog.clear()
    stored.put(tmp_path, stored.scores(180), method="none", scope="all", budget=1.0)
    for dense in (True, False):  # the list of flips reads no samples without it
        if not dense:
            next(path for path in (tmp_path / "made").glob("*.json") if '"method": "none"' in path.read_text()).unlink()
        report(tmp_path, tmp_path / "out")
        (said,) = (line for line in caplog.messages if damaged in line)
        assert "not the samples that the record was written with" in said
        caplog.clear()


def test_the_cells_and_the_heads_that_say_something() -> None:
    whole = Total("a", 0.5, 0.45, 0.55, 0.6, 1.5, 12.34, None, 256, 2.5e9)
    assert cells(whole) == ["50.0 [45.0, 55.0]", "60.0", "1.5", "12.3", "–", "256", "2.50"]
    heads, rows = shown([whole, Total("b", *[None] * 9)])
    assert "tuning s" not in heads and len(heads) == 6 and rows["b"] == ["–"] * 6


def test_every_page_has_the_totals(tmp_path: Path) -> None:
    put(tmp_path / "results", "taylor", LEVELS)
    report(tmp_path / "results", tmp_path / "out")
    folder = tmp_path / "out" / "made"
    (panel,) = json.loads((folder / "board.json").read_text())["summary"]
    (curve,) = panel["curves"]
    assert panel["panel"] == "Scope vision, heads and FFN, regime none" and curve["curve"] == "taylor"
    text = f"{100 * curve['hypervolume']:.1f} [{100 * curve['lo']:.1f}, {100 * curve['hi']:.1f}]"
    assert f"| {text} |" in (folder / "README.md").read_text()
    assert f"<td>{text}" in (folder / "index.html").read_text()
    assert text.replace("[", "{[}").replace(",", "{,}") in (folder / "board.tex").read_text()
