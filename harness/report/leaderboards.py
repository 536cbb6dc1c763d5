"""Leaderboards from records only: `report(results, out)` writes the pages of every board, with reproducible bytes.

python -c "from pathlib import Path; from harness.report import report; report(Path('results'), Path('leaderboards'))"
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness import registry
from harness.files import unwritable
from harness.records.record import Record, load
from harness.records.store import board_folders
from harness.report import choices, details, examples, latex, page, plots, reported, spreadsheet, tables, totals
from harness.report.board import Board
from harness.report.frame import board_frame
from harness.report.panels import STUDIED_SIGN, Panel, marked
from harness.report.samples import Samples
from harness.text import plain
from harness.types import InputError

log = logging.getLogger(__name__)

FILES = ("README.md", "board.csv", "board.json", "board.tex", "pareto.svg", "pareto.png", "index.html")
INDEX = "index.html"  # the page of all boards, beside their folders


def report(results: Path, out: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write `out/<board>/` (FILES) for every board under `results`, INDEX over them, and return the files' paths.

    names: only these boards; INDEX, which shows all, is then left as it is.
    A file that is no record is left out, logged and counted on the page. Raises InputError if there is no board, or
    none of a name, or `out` cannot be written or is `results` itself.
    """
    if results.resolve() == out.resolve():
        raise InputError(f"--out {out}: is the folder of the records; name another")
    boards = board_folders(results)
    for name in names:
        if name not in [board.name for board in boards]:
            raise InputError.unknown("board", name, (board.name for board in boards), f"{results}: ")
    boards = [board for board in boards if not names or board.name in names]
    # Collections would look through all records again and again: of the 20 s that 10,000 records may take, 2 s.
    collects = gc.isenabled()
    gc.disable()
    try:
        out.mkdir(parents=True, exist_ok=True)
        cards = [_board(board, out) for board in boards]
        files = [out / board.name / file for board in boards for file in FILES]
        if names:
            return files
        with tempfile.TemporaryDirectory(dir=out, prefix=".report-") as scratch:
            _text(Path(scratch) / INDEX, page.index(cards))
            os.replace(Path(scratch) / INDEX, out / INDEX)
        return [*files, out / INDEX]
    except OSError as error:
        raise unwritable(out, error, out.absolute()) from error
    finally:
        if collects:
            gc.enable()


def frame(source: Path) -> pd.DataFrame:
    """The trials of all boards of a results folder, of one board's folder, or of a board.csv, a row each.

    See `board_frame`. A file that is no record is left out and logged. Raises InputError if there is no record.
    """
    if source.suffix == ".csv":
        return spreadsheet.read(source)
    folders = [source] if any(source.glob("*.json")) else board_folders(source)
    frames = []
    for folder in folders:
        records, problems = load(folder, _reduced(details.Parts()))
        for problem in problems:
            log.warning(problem)
        frames.append(board_frame(records))
    if all(frame.empty for frame in frames):
        raise InputError(f"{source}: no record that can be read there; `infoprune results verify` names what is wrong")
    return pd.concat(frames, ignore_index=True)


def _board(source: Path, out: Path) -> str:
    """Write a board's folder. Returns its entry in the index."""
    parts = details.Parts()
    records, problems = load(source, _reduced(parts))
    for problem in problems:
        log.warning(problem)
    samples = Samples(source)
    board = Board.of(source.name, records, len(problems), samples)
    target = out / board.name
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".report-") as scratch:
        folder = Path(scratch)
        _text(folder / "README.md", _markdown(board, _repeat(board.name, records)))
        _text(folder / "board.csv", spreadsheet.frame_text(board.frame))
        _text(folder / "board.json", _json(board))
        _text(folder / "board.tex", latex.document(board))
        plots.save(board.panels, folder)
        data = details.data(board, records)
        trials = details.trials(board, records, parts, examples.find(samples, records))
        _text(folder / INDEX, page.board(board, data, trials))
        for name in FILES:
            os.replace(folder / name, target / name)
    return page.card(board)


def _reduced(parts: details.Parts) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What `load` keeps of a record: its parts go to the details, and equal keys and texts share one object."""
    texts: dict[str, str] = {}

    def shared(value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return texts.setdefault(value, value)
        if kind is dict:
            return {texts.setdefault(key, key): shared(part) for key, part in value.items()}
        return [shared(part) for part in value] if kind is list else value

    return lambda content: shared(parts.keep(content))


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(board: Board) -> str:
    def value(cell: Any) -> Any:
        if isinstance(cell, float):
            return float(f"{cell:.6g}") if pd.notna(cell) else None
        return cell

    rows = [{str(key): value(cell) for key, cell in row.items()} for row in board.rows]
    summaries = [
        {
            "panel": panel.title,
            "curves": [{key: value(cell) for key, cell in asdict(total).items()} for total in curve_totals],
        }
        for panel, curve_totals in zip(board.panels, board.totals, strict=True)
    ]
    head = json.dumps({"board": board.name, "summary": summaries}, indent=1, allow_nan=False).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row, allow_nan=False, separators=(",", ":")) for row in rows)  # a line a trial
    return head + ',\n "trials": ' + (f"[\n  {lines}\n ]" if rows else "[]") + "\n}\n"


# --- Markdown -----------------------------------------------------------------------------------------------


def _markdown(board: Board, repeat: str) -> str:
    facts = "\n".join(f"- {name}: {tables.escape(text)}" for name, text in board.facts)
    sections = [f"# {tables.escape(board.name)}", facts, board.notes, "## Methods", _contestants(board)]
    if board.choices:
        sections += ["## What to choose", choices.LEGEND, choices.text(board.choices)]
    if board.accurate:
        sections += [f"## Accuracy at equal {tables.escape(board.currency)}", _legend(board)]
        for panel, curve_totals in zip(board.panels, board.totals, strict=True):
            sections += [f"### {tables.escape(panel.title)}", tables.summary(panel), _totals(panel, curve_totals)]
        sections += ["## Pareto front", "![Accuracy over FLOPs kept and over measured speedup](pareto.svg)"]
    else:
        sections += [
            f"## Speed at equal {tables.escape(board.currency)}",
            "![Measured speedup over FLOPs kept](pareto.svg)",
        ]
    sections += [f"The interactive page adds filters, plans and examples: [{INDEX}]({INDEX})."]
    sections += ["## All trials", *filter(None, [board.legend]), tables.trials(board.columns)]
    if board.reported:
        rows = [list(map(tables.escape, figure.cells)) for figure in board.reported]
        sections += ["## Reported by papers, not measured here", tables.markdown(reported.HEADS, rows)]
    return "\n\n".join([*sections, "## Repeat", repeat]) + "\n"


def _totals(panel: Panel, curve_totals: Sequence[totals.Total]) -> str:
    heads, rows = totals.shown(curve_totals)
    return tables.markdown(
        ["method", *heads], [[tables.escape(panel.shown(curve)), *row] for curve, row in rows.items()]
    )


def _contestants(board: Board) -> str:
    rows = []
    for described in board.methods:
        name = marked(described.method, described.role == "studied")
        rows.append(list(map(tables.escape, (name, *described[1:]))))
    table = tables.markdown(["method", "what it is", "role", "regimes"], rows, "left")
    if any("reconstruct" in row[1].lower() for row in rows):
        table += (
            "\n\nA *reconstructed* method is our implementation of a paper without public code, not its authors' work."
        )
    return table


def _legend(board: Board) -> str:
    text = (
        "Accuracy in points, the mean over tasks. Each column is a budget: the share of the scope's "
        f"{tables.escape(board.currency)} that may remain, and its inverse. Each table has one regime, "
        "which says what followed the cut: nothing, a bias, least squares (refit), or training. Bold "
        "marks the best method of a budget; ± is half the range over seeds. Rows are sorted by mean rank."
    )
    if any(described.role == "studied" for described in board.methods):
        text += f" {STUDIED_SIGN} marks the method under study."
    text += " A difference smaller than the interval of one trial is not evidence."
    if board.totals:
        text += f"\n\n{totals.LEGEND}"
    return text


def _repeat(board: str, records: Sequence[Record]) -> str:
    shipped = board in registry.boards()
    name = shlex.quote(plain(board if shipped else f"{board}.yaml"))
    where = "" if shipped else "  # the file of the board"
    lines = [f"```sh\ninfoprune sweep {name}{where}\ninfoprune report\n```", ""]
    for code in sorted({str(record.code) for record in records}):
        lines.append(f"- {tables.escape(code)}")
    return "\n".join(lines)
