"""Leaderboards from records alone: `report(results, out)` writes the pages of every board, the same bytes each time.

python -c "from pathlib import Path; from harness.report import report; report(Path('results'), Path('leaderboards'))"
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.record import load
from harness.report import details, examples, latex, page, plots, reported, tables, totals
from harness.report.board import Board
from harness.report.samples import Samples
from harness.results import board_folders
from harness.text import plain
from harness.types import InputError

log = logging.getLogger(__name__)

FILES = ("README.md", "board.csv", "board.json", "board.tex", "pareto.svg", "pareto.png", "index.html")
INDEX = "index.html"  # beside the boards' folders: the page over all of them


def report(results: Path, out: Path) -> list[Path]:
    """Write `out/<board>/` (FILES) for every board under `results`, INDEX over them, and return the files' paths.

    A file that is no record is left out, logged and counted on the page. Raises InputError if there is no board or
    `out` cannot be written.
    """
    boards = board_folders(results)
    # Collections would look through all records again and again: of the 20 s that 10,000 records may take, 2 s.
    collects = gc.isenabled()
    gc.disable()
    try:
        out.mkdir(parents=True, exist_ok=True)
        cards = [_board(board, out) for board in boards]
        with tempfile.TemporaryDirectory(dir=out, prefix=".report-") as scratch:
            _text(Path(scratch) / INDEX, page.index(cards))
            os.replace(Path(scratch) / INDEX, out / INDEX)
        return [*(out / board.name / file for board in boards for file in FILES), out / INDEX]
    except OSError as error:
        raise InputError(plain(f"{out}: cannot write the report there: {error.strerror or error}")) from error
    finally:
        if collects:
            gc.enable()


def _board(source: Path, out: Path) -> str:
    """Write a board's folder; returns its entry in the index."""
    records, problems = _load(source)
    for problem in problems:
        log.warning(problem)
    samples = Samples(source)
    board = Board.of(source.name, records, len(problems), samples)
    target = out / board.name
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".report-") as scratch:
        folder = Path(scratch)
        _text(folder / "README.md", _markdown(board, _repeat(board.name, records)))
        _text(folder / "board.csv", board.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        _text(folder / "board.json", _json(board))
        _text(folder / "board.tex", latex.document(board))
        plots.save(board.frame, folder)
        data = details.data(board, records, examples.find(samples, records))
        records.clear()  # their room is needed for the page of a large board
        _text(folder / INDEX, page.board(board, data))
        for name in FILES:
            os.replace(folder / name, target / name)
    return page.card(board)


def _load(source: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A board's records without their logs, equal names and texts held once."""
    known: dict[str, str] = {}

    def shared(value: Any) -> Any:
        if type(value) is dict:
            return {known.setdefault(key, key): shared(part) for key, part in value.items()}
        if type(value) is list and value and type(value[0]) is not int:  # as the units of a plan, which are many
            return [shared(part) for part in value]
        return known.setdefault(value, value) if type(value) is str else value

    def keep(found: dict[str, Any]) -> dict[str, Any]:
        return shared({key: part for key, part in found.items() if key != "log"})

    return load(source, keep)


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(board: Board) -> str:
    def value(cell: Any) -> Any:
        if isinstance(cell, float):
            return float(f"{cell:.6g}") if pd.notna(cell) else None
        return cell

    rows = [{str(key): value(cell) for key, cell in row.items()} for row in board.frame.to_dict("records")]
    summaries = [
        {"panel": panel.title, "curves": [{key: value(cell) for key, cell in asdict(total).items()} for total in found]}
        for panel, found in zip(board.panels, board.totals, strict=True)
    ]
    head = json.dumps({"board": board.name, "summary": summaries}, indent=1, allow_nan=False).removesuffix("\n}")
    # As json.dumps(..., indent=1) lays it out, which takes half a second more of the 20 s for 10,000 records.
    cells = (json.dumps(row, separators=(",\n   ", ": "), allow_nan=False)[1:-1] for row in rows)
    lines = ",\n  ".join("{\n   " + own + "\n  }" for own in cells)
    return head + ',\n "trials": ' + (f"[\n  {lines}\n ]" if rows else "[]") + "\n}\n"


# --- Markdown -----------------------------------------------------------------------------------------------


def _markdown(board: Board, repeat: str) -> str:
    facts = "\n".join(f"- {name}: {tables.escape(text)}" for name, text in board.facts)
    sections = [f"# {tables.escape(board.name)}", facts, board.notes, "## Methods", _contestants(board)]
    rows = board.frame.to_dict("records")
    if tables.values(rows, "accuracy") or not tables.values(rows, "latency_speedup"):
        sections += [f"## Accuracy at equal {tables.escape(board.currency)}", _legend(board)]
        for panel, found in zip(board.panels, board.totals, strict=True):
            sections += [f"### {tables.escape(panel.title)}", tables.summary(panel), _totals(panel, found)]
        sections += ["## Pareto front", "![Accuracy over FLOPs kept and over measured speedup](pareto.svg)"]
    else:
        sections += [
            f"## Speed at equal {tables.escape(board.currency)}",
            "![Measured speedup over FLOPs kept](pareto.svg)",
        ]
    sections += [f"With hover, filters, plans and examples: [{INDEX}]({INDEX})."]
    sections += ["## All trials", *filter(None, [board.resources]), tables.trials(board.columns)]
    if board.reported:
        rows = [list(map(tables.escape, figure.cells)) for figure in board.reported]
        sections += ["## Reported by papers, not measured here", tables.markdown(reported.HEADS, rows)]
    return "\n\n".join([*sections, "## Repeat", repeat]) + "\n"


def _totals(panel: tables.Panel, found: Sequence[totals.Total]) -> str:
    heads, rows = totals.shown(found)
    return tables.markdown(
        ["method", *heads], [[tables.escape(panel.shown(curve)), *row] for curve, row in rows.items()]
    )


def _contestants(board: Board) -> str:
    rows = []
    for method, title, role, regime, tuning in board.methods:
        name = tables.marked(method, role == "studied")
        rows.append(list(map(tables.escape, (name, title, role, regime, tuning))))
    table = tables.markdown(["method", "what it is", "role", "regime", "tuning"], rows, "left")
    if any("reconstruct" in row[1].lower() for row in rows):
        table += (
            "\n\nA *reconstructed* method is our reading of a paper whose code is not public, not its authors' work."
        )
    return table


def _legend(board: Board) -> str:
    text = (
        "Accuracy in points, the mean over tasks. Columns are budgets: the share of the scope's "
        f"{tables.escape(board.currency)} that may remain, and its inverse. Bold is the best of its budget "
        "among methods of one regime, or tuned alike; ± is half the range over seeds; within a regime, rows stand in "
        "the order of their mean rank."
    )
    if any(role == "studied" for _, _, role, *_ in board.methods):
        text += f" {tables.STUDIED} marks the method under study."
    text += " A difference smaller than the interval of one trial is not evidence."
    if board.totals:
        text += f"\n\n{totals.LEGEND}"
    return text


def _repeat(board: str, records: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"```sh\ninfoprune sweep {shlex.quote(plain(board))}\ninfoprune report\n```", ""]
    for code in sorted({_code(record["code"]) for record in records}):
        lines.append(f"- {tables.escape(code)}")
    return "\n".join(lines)


def _code(code: Mapping[str, Any]) -> str:
    text = f"version {code.get('version')}, revision {code.get('revision')}"
    return plain(text + (", with uncommitted changes" if code.get("dirty") else ""))
