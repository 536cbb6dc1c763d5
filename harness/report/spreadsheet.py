"""CSV that spreadsheets open as text: a cell that begins like a formula gets an apostrophe, which `read` takes off.

frame = read(Path("leaderboards/demo/board.csv"))
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report.coarse import KEEPS
from harness.report.frame import CLOSING, IDENTITY, ORDER, TERMS, declared
from harness.text import reason
from harness.types import InputError

# What a spreadsheet would calculate: a sign that begins a formula (Excel takes wide ones too) but no number. It may
# follow apostrophes, as in a cell of ours.
FORMULA = re.compile(r"'*(?![+-]?[\d.]+(e[+-]?\d+)?$)[=+\-@\t\r\n＝＋－＠]")
# Columns of text; others hold numbers.
TEXTS = (*IDENTITY, *CLOSING, "split", "collapse", TERMS, KEEPS)
NUMBERS = ("budget", "seed", "ranking_s")  # that are among them


def neutral(text: str) -> str:
    """The text as a cell that no spreadsheet calculates."""
    return f"'{text}" if FORMULA.match(text) else text


def original(cell: str) -> str:
    """The text of a neutral cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def rows_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file of these rows. Texts are made neutral, but for numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (heads, *rows):
        writer.writerow([neutral(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def frame_text(frame: pd.DataFrame) -> str:
    """A board's frame as the text of board.csv."""
    shown: Any = frame.copy()
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            shown[name] = shown[name].map({text: neutral(text) for text in shown[name].unique()})
    shown.columns = [neutral(str(name)) for name in frame.columns]
    return shown.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def read(path: Path) -> pd.DataFrame:
    """The frame of a board.csv, its texts as they were; see `board_frame`.

    Raises InputError if the file is no board.csv.
    """
    try:
        frame: Any = pd.read_csv(path, dtype="str", keep_default_na=False)
        frame.columns = [original(name) for name in frame.columns]
        if missing := [name for name in (*IDENTITY, *CLOSING) if name not in frame.columns]:
            raise InputError(f"{path}: no board.csv: it has no column {missing[0]!r}")
        for name in frame.columns:
            if name == "seed":
                frame[name] = frame[name].astype("int64")
            elif name in NUMBERS or name not in TEXTS:
                frame[name] = frame[name].replace("", "nan").astype("float64")
            else:
                frame[name] = frame[name].map(original)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: no board.csv: {' '.join(str(error).split())}") from error
    known = {*ORDER, *declared(), TERMS}
    frame.attrs["tasks"] = [name for name in frame.columns if name not in known]
    return frame
