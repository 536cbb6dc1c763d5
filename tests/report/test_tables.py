"""The tables of a board: who competes with whom, means over seeds, and what is marked."""

from __future__ import annotations

from typing import Any

import pytest

from harness.report.board import Board
from harness.report.frame import board_frame, task_columns
from harness.report.panels import panels
from harness.report.tables import summary
from tests.support.records import TASKS, accuracy_of, board_record, failed_record


def cells(line: str) -> list[str]:
    """The cells of a Markdown table's line; an escaped bar does not end a cell."""
    return [cell.strip() for cell in line.replace("\\|", "\0").strip().strip("|").split("|")]


def test_summary_averages_seeds_marks_the_best_and_never_counts_a_failure() -> None:
    items = [
        board_record(metrics=accuracy_of(0.9) | {"floors": {"blank": {"mean": 0.4}}}),
        board_record("random", "vision", 0.5, 0, metrics=accuracy_of(0.60)),
        board_record("random", "vision", 0.5, 1, metrics=accuracy_of(0.64)),
        failed_record("random", "vision", 0.5, 2, metrics=accuracy_of(0.0)),
        board_record("infoprune", "vision", 0.5, metrics=accuracy_of(0.7)),
        board_record("taylor", "vision", 0.5, metrics=accuracy_of(0.70004)),
        failed_record("magnitude", "vision", 0.5),
        board_record("magnitude", "vision", 0.25, metrics=accuracy_of(0.5)),
    ]
    (panel,) = panels(board_frame(items))
    assert panel.level("accuracy") == 0.9 and panel.level("blank_accuracy") == 0.4
    lines = summary(panel).splitlines()
    assert lines[0] == "Dense **90.0** · blind floor (image blanked) **40.0**"
    assert cells(lines[2]) == ["method", "0.5 (2×)", "0.25 (4×)"]
    assert [cells(line) for line in lines[4:]] == [
        ["◆ infoprune", "**70.0**", "–"],  # a tie as shown is a tie
        ["taylor", "**70.0**", "–"],
        ["random", "62.0 ± 2.0 (1 failed)", "–"],
        ["magnitude", "failed", "**50.0**"],  # the only one at another budget, and failed at the common one
    ]


def test_trials_that_were_measured_anew_are_no_seeds() -> None:
    items = [board_record(), board_record("taylor", "vision", 0.5, metrics=accuracy_of(0.7))]
    less = board_record("taylor", "vision", 0.5, metrics={}, latency={"batches": [1], "repeats": 5})
    board = Board.of("made", [*items, less])
    assert len(board.rows) == 2 and "1 of them are not shown" in board.notes
    other = board_record(
        "taylor", "vision", 0.5, metrics=accuracy_of(0.6), reference_input={"image": [224, 224], "text": "?"}
    )
    titles = {panel.title: summary(panel) for panel in panels(board_frame([*items, other]))}
    assert len(titles) == 2 and all(("image=224x224" in title) == ("60.0" in text) for title, text in titles.items())


@pytest.mark.parametrize("task", ["coarse", "place", "weights_mb", "budget", "accuracy"])
def test_a_task_may_have_the_name_of_a_column(task: str) -> None:
    metrics = {"accuracy": {"mean": 0.5, "tasks": {task: {"accuracy": 0.5}}}}
    frame = board_frame([board_record(tasks=[task], metrics=metrics)])
    assert task_columns(frame) == [f"task {task}"] and frame[f"task {task}"].tolist() == [0.5]


def test_dense_counts_for_every_scope_and_settings_stay_apart() -> None:
    items = [
        board_record(metrics=accuracy_of(0.9)),
        board_record(limit=50, metrics=accuracy_of(0.8)),
        board_record("random", "vision", 0.5),
        board_record("random", "language", 0.5),
        board_record("random", "language", 0.5, units="ffn"),
        board_record("random", "language", 0.5, limit=50),
    ]
    levels = {panel.title: panel.level("accuracy") for panel in panels(board_frame(items))}
    assert sorted(levels.values(), key=str) == [0.8, 0.9, 0.9, 0.9]
    assert all(("limit=50" in title) == (level == 0.8) for title, level in levels.items())


def test_variants_and_calibrations_are_curves_of_their_own() -> None:
    drawn = {"samples": 32, "tasks": ["mini_gqa"], "split": "calibration"}
    items = [
        board_record("random", "vision", 0.5),
        board_record("taylor", "vision", 0.5),
        board_record("taylor", "vision", 0.5, variant="norm=l1", options={"norm": "l1"}),
        board_record("taylor", "vision", 0.5, calibration=drawn),
    ]
    (panel,) = panels(board_frame(items))
    usual = f"samples=128 split=calibration tasks={'+'.join(TASKS)}"
    assert {curve for curve, _ in panel.groups} == {
        "random",
        f"taylor {usual}",
        f"taylor norm=l1 {usual}",
        "taylor samples=32 split=calibration tasks=mini_gqa",
    }


def test_every_regime_has_a_panel_of_its_own_from_the_least_change_to_the_most() -> None:
    recoveries: list[dict[str, Any]] = [
        {"method": "lora"},
        {"method": "refit"},
        {"method": "full", "steps": 10},
        {"method": "bias"},
        {"method": "refit", "rounds": 2},
    ]
    items = [board_record("none", "all", 1.0), board_record("taylor", "vision", 0.5)]
    items += [board_record("taylor", "vision", 0.5, recovery=how) for how in recoveries]
    items += [board_record("wanda", "vision", 0.5, regime="trained, bias", recovery={"method": "bias"})]
    found = panels(board_frame(items))
    said = [panel.title.removeprefix("Scope vision, heads and FFN, regime ") for panel in found]
    tuned = ["tuned full-kl-10", "tuned lora-kl-300"]
    assert said == ["none", "bias", "refit", "refit rounds=2", "trained, bias", *tuned]
    assert all([curve for curve, _ in panel.groups] in (["taylor"], ["wanda"]) and panel.dense for panel in found)


def test_rates_of_different_budgets_are_one_regime() -> None:
    def titles(*rates: tuple[float, float]) -> list[str]:
        tuned = [
            board_record("taylor", "vision", budget, recovery={"method": "full", "rate": rate})
            for budget, rate in rates
        ]
        return [panel.title for panel in panels(board_frame([board_record("none", "all", 1.0), *tuned]))]

    start = "Scope vision, heads and FFN, regime tuned full-kl-300"
    assert titles((0.5, 3e-4), (0.25, 1e-3), (0.2, 1e-3)) == [f"{start} rate=0.0003/0.001"]
    assert titles((0.5, 1e-3), (0.25, 1e-3)) == [f"{start} rate=0.001"]
    several = titles((0.5, 3e-4), (0.25, 3e-4), (0.25, 1e-3))  # two rates of a budget are two recoveries
    assert several == [start, f"{start} rate=0.001"]
