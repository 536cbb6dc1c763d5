"""No cell of a CSV file is a formula, and our reader gives back what was written."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.records import record
from harness.report import report
from harness.report.frame import board_frame
from harness.report.spreadsheet import frame_text, neutral, original, read, rows_text
from harness.types import InputError
from tests.support.paths import ROOT
from tests.support.records import board_record

HOSTILE = ["=2+5", "+1+1", "-2+3", "@SUM(A1)", "'=2+5", "''-x", "＝1+1", "＋x", "=cmd|' /C calc'!A0", "-", '="a"\n']
HARMLESS = ["mini-qwen2-vl", "a=b", "'quoted'", "", "-0.5", "+3", "1e-05", "-2.5e-07", "taylor", "…", "'", "it's"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_formula_becomes_text(text: str) -> None:
    cell = neutral(text)
    assert cell == f"'{text}" and original(cell) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_and_numbers_stay(text: str) -> None:
    assert neutral(text) == text == original(text)


@given(st.text(alphabet="'=+-@＝1.e\t ab"))
def test_any_text_comes_back(text: str) -> None:
    cell = neutral(text)
    assert original(cell) == text
    assert cell[:1] not in ("=", "@", "＝", "\t") and (cell[:1] not in "+-" or cell == "" or _number(cell))


def _number(text: str) -> bool:
    return all(char.isdigit() or char in "+-.e" for char in text)


def test_rows_of_any_table() -> None:
    text = rows_text(["=head", "damage"], [["@block", -0.5], ["plain", "-0.25"]])
    assert list(csv.reader(io.StringIO(text))) == [["'=head", "damage"], ["'@block", "-0.5"], ["plain", "-0.25"]]


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_a_board_of_hostile_names_comes_back(tmp_path: Path, name: str) -> None:
    """Model, method, variant, calibration and tasks; a task is the head of a column."""
    metrics = {"accuracy": {"mean": 0.5, "lo": 0.4, "hi": 0.6, "tasks": {name: {"accuracy": 0.5, "n": 3}}}}
    about: dict[str, Any] = {"model": name, "tasks": [name], "variant": name, "metrics": metrics}
    items = [board_record("random", "vision", 0.5, **about), board_record(**{**about, "variant": ""})]
    for item in items:
        record.write(tmp_path / "results" / "made", item)
    report(tmp_path / "results", tmp_path / "out")
    path = tmp_path / "out" / "made" / "board.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert f"'{name}" in cells and not [cell for cell in cells if cell[:1] in ("=", "@", "＝", "＋")]
    expected = board_frame(items)
    back = harness.results(path)
    pd.testing.assert_frame_equal(back, expected, check_dtype=False, rtol=1e-5)
    assert back.attrs == expected.attrs


def test_the_shipped_boards_come_back() -> None:
    for path in sorted((ROOT / "leaderboards").glob("*/board.csv")):
        back: Any = read(path)
        assert (back.dtypes[["budget", "accuracy", "flops_kept"]] == "float64").all() and len(back)
        assert back.trial.is_unique and set(back.role) <= {"studied", "reference", "floor"}


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x00\n", "board\n"])
def test_what_is_no_board_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "board.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"board\.csv: no board\.csv: "):
        read(path)
    with pytest.raises(InputError, match=r"none\.csv: cannot be read: No such file"):
        harness.results(tmp_path / "none.csv")


def test_a_seed_that_no_column_holds_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_text(frame_text(board_frame([board_record()]).assign(seed="9" * 30)))
    with pytest.raises(InputError, match=r"board\.csv: no board\.csv: "):
        read(path)
