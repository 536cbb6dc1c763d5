"""A metric's file is all that a metric needs: what it declares is shown wherever figures are."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from harness import registry
from harness.records.record import Record
from harness.report import details, tables
from harness.report.board import Board
from harness.report.frame import CLOSING, IDENTITY, TERMS
from harness.types import Column
from tests.support.records import board_record


@pytest.mark.parametrize("name", registry.metrics())
def test_a_metric_declares_its_columns(name: str) -> None:
    own = registry.columns()[name]
    assert isinstance(own, tuple) and own and all(isinstance(column, Column) for column in own)
    bounds = {bound for column in own for bound in column.interval or ()}
    assert bounds <= {column.name for column in own}
    assert all(column.title for column in own if column.interval or column.legend)  # else neither is shown


def test_no_two_columns_have_one_name() -> None:
    assert set(registry.columns()) == set(registry.metrics())
    counts = Counter(column.name for own in registry.columns().values() for column in own)
    assert set(counts.values()) == {1}
    assert not set(counts) & {*IDENTITY, *CLOSING, TERMS, "collapse"}


def test_columns_are_known_without_the_libraries_that_measure() -> None:
    code = (
        "import sys; import harness.registry; assert harness.registry.columns();"
        "assert not {'torch', 'transformers', 'lmms_eval', 'fvcore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- a metric that nobody knew ----------------------------------------------------------------------------

SHARPNESS = Column("sharpness", "sharp", unit="points", better="higher", form="{:.2f}", scale=100)


def known_also(monkeypatch: pytest.MonkeyPatch, *columns: Column) -> None:
    every = {**registry.columns(), "vision_test": columns}
    monkeypatch.setattr(registry, "columns", lambda: every)


def with_figures(budget: float, **figures: float) -> Record:
    method = "none" if budget == 1 else "random"
    return board_record(method, budget=budget, metrics={"flops": {"kept": budget}, "vision_test": figures})


def test_a_new_metric_is_shown_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    known_also(monkeypatch, SHARPNESS)
    records = [with_figures(1.0, sharpness=0.75), with_figures(0.5, sharpness=0.25)]
    board = Board.of("made", records)
    assert board.frame["sharpness"].tolist() == [0.75, 0.25] and board.frame["sharpness"].dtype == "float64"
    head, _, *rows = tables.trials(board.columns).splitlines()
    place = [cell.strip() for cell in head.split("|")].index("sharp")
    assert [row.split("|")[place].strip() for row in rows] == ["75.00", "25.00"]
    data = details.data(board, records)
    assert {"key": "sharpness", "label": "sharp (points)", "sign": 1} in data["axes"]
    assert data["rows"]["sharpness"] == [0.75, 0.25]


def test_a_metric_that_was_not_measured_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    known_also(monkeypatch, SHARPNESS)
    records = [board_record(), board_record("random", budget=0.5)]
    board = Board.of("made", records)
    assert "sharpness" not in board.frame and "sharp" not in tables.trials(board.columns)
    assert "sharpness" not in {axis["key"] for axis in details.data(board, records)["axes"]}


def test_an_interval_is_shown_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    known_also(
        monkeypatch,
        Column("sharpness", "sharp", form="{:.2f}", interval=("dull", "keen")),
        Column("dull"),
        Column("keen"),
    )
    whole, alone = with_figures(1.0, sharpness=0.5, dull=0.25, keen=0.75), with_figures(0.5, sharpness=0.5)
    for records, cells in (([whole, alone], ["0.50 [0.25, 0.75]", "0.50"]), ([alone], ["0.50"])):
        (found,) = (column for column in Board.of("made", records).columns if column.key == "sharpness")
        assert found.cells == cells
