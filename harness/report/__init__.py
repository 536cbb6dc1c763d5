"""Leaderboards from records alone: `report(results, out)` writes the pages of every board, the same bytes each time.

python -c "from pathlib import Path; from harness.report import report; report(Path('results'), Path('leaderboards'))"
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.record import load, plain
from harness.report import plots, tables
from harness.types import InputError

log = logging.getLogger(__name__)

FILES = ("README.md", "board.csv", "board.json", "pareto.svg", "pareto.png")
MACHINE = ("machine", "gpu", "cpu")  # facts of a record's `env` that name the machine


def report(results: Path, out: Path) -> list[Path]:
    """Write `out/<board>/` (FILES) for every board under `results`, and return the files' paths.

    A file that is no record is left out, logged and counted on the page. Raises InputError if there is no board or
    `out` cannot be written.
    """
    boards = sorted({path.parent for path in Path(results).glob("*/*.json")})
    if not boards:
        raise InputError(plain(f"{results}: no board there: records are expected as {results}/<board>/<trial id>.json"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [path for board in boards for path in _board(board, out)]
    except OSError as error:
        raise InputError(plain(f"{out}: cannot write the report there: {error.strerror or error}")) from error


def _board(source: Path, out: Path) -> list[Path]:
    records, problems = load(source)
    for problem in problems:
        log.warning(problem)
    frame = tables.board_frame(records)
    target = out / source.name
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".report-") as scratch:
        folder = Path(scratch)
        _text(folder / "README.md", _page(source.name, records, frame, len(problems)))
        _text(folder / "board.csv", frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
        _text(folder / "board.json", _json(source.name, frame))
        plots.save(frame, folder)
        for name in FILES:
            os.replace(folder / name, target / name)
    return [target / name for name in FILES]


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(board: str, frame: pd.DataFrame) -> str:
    def value(cell: Any) -> Any:
        if isinstance(cell, float):
            return float(f"{cell:.6g}") if pd.notna(cell) else None
        return cell

    rows = [{str(key): value(cell) for key, cell in row.items()} for row in frame.to_dict("records")]
    return json.dumps({"board": board, "trials": rows}, indent=1, allow_nan=False) + "\n"


# --- the page -----------------------------------------------------------------------------------------------


def _page(board: str, records: Sequence[Mapping[str, Any]], frame: pd.DataFrame, unreadable: int) -> str:
    failed = sum(record["status"] == "failed" for record in records)
    sections = [f"# {tables.escape(board)}", _measured(records)]
    notes = [
        f"{len(frame)} trials, {failed} failed" + ("." if not failed else ": shown as failed, never counted as 0.")
    ]
    if unreadable:
        files = "file" if unreadable == 1 else "files"
        notes.append(f"{unreadable} {files} beside them could not be read as records: left out.")
    sections += [" ".join(notes), "## Methods", _methods(records), "## Accuracy at equal FLOPs", _legend(frame)]
    for panel in tables.panels(frame):
        sections += [f"### {tables.escape(panel.title)}", tables.summary(panel)]
    sections += ["## Pareto front", "![Accuracy over FLOPs kept and over measured speedup](pareto.svg)"]
    sections += ["## All trials", tables.trials(frame), "## Repeat", _repeat(board, records)]
    return "\n\n".join(sections) + "\n"


def _measured(records: Sequence[Mapping[str, Any]]) -> str:
    trials = [record["trial"] for record in records]
    lines = [("Model", sorted({trial["model"] for trial in trials}))]
    lines.append(
        ("Tasks", [_task(task, records) for task in sorted({task for trial in trials for task in trial["tasks"]})])
    )
    lines.append(("Split", sorted({trial["split"] for trial in trials})))
    lines.append(("Precision", sorted({trial["dtype"] for trial in trials})))
    lines.append(("Machine", sorted({_machine(record["env"]) for record in records})))
    return "\n".join(f"- {name}: {tables.escape(', '.join(values))}" for name, values in lines)


def _task(task: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The task's name with how many questions and images it was measured on."""
    accuracies = [(record.get("metrics") or {}).get("accuracy", {}) for record in records if record["status"] == "ok"]
    found = [accuracy["tasks"][task] for accuracy in accuracies if task in accuracy.get("tasks", {})]
    counts = [
        f"{_span({entry[key] for entry in found if key in entry})} {noun}"
        for key, noun in (("n", "questions"), ("images", "images"))
        if any(key in entry for entry in found)
    ]
    return f"{task} ({', '.join(counts)})" if counts else task


def _span(counts: set[int]) -> str:
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _machine(env: Mapping[str, Any]) -> str:
    names = [env[key] for key in MACHINE if isinstance(env.get(key), str) and env[key]]
    return plain("; ".join(dict.fromkeys(names))) or "not named"


def _methods(records: Sequence[Mapping[str, Any]]) -> str:
    keys = ("method", "title", "role", "regime", "tuning")
    found = {tuple(record["trial"][key] for key in keys) for record in records}
    rows = []
    for method, title, role, regime, tuning in sorted(found):
        mark = f"{tables.STUDIED} " if role == "studied" else ""
        rows.append([f"{mark}{tables.escape(method)}", *map(tables.escape, (title, role, regime, tuning))])
    table = tables.markdown(["method", "what it is", "role", "regime", "tuning"], rows, "left")
    if any("reconstruct" in row[1].lower() for row in rows):
        table += (
            "\n\nA *reconstructed* method is our reading of a paper whose code is not public, not its authors' work."
        )
    return table


def _legend(frame: pd.DataFrame) -> str:
    text = (
        "Accuracy in points, the mean over tasks. Columns are budgets: the share of the scope's FLOPs that may remain, "
        "and its inverse. Bold is the best of its budget; ± is half the range over seeds; rows stand in the order of "
        "their mean rank."
    )
    if "studied" in set(frame["role"]):
        text += f" {tables.STUDIED} marks the method under study."
    return text + " A difference smaller than the interval of one trial is not evidence."


def _repeat(board: str, records: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"```sh\ninfoprune sweep {shlex.quote(plain(board))}\ninfoprune report\n```", ""]
    for code in sorted({_code(record["code"]) for record in records}):
        lines.append(f"- {tables.escape(code)}")
    return "\n".join(lines)


def _code(code: Mapping[str, Any]) -> str:
    text = f"version {code.get('version')}, revision {code.get('revision')}"
    return plain(text + (", with uncommitted changes" if code.get("dirty") else ""))
