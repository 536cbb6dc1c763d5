"""`infoprune results ls|show|merge|mirror|verify`: the stored records, and whether they can be relied on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from harness.cli.screen import err, out, table
from harness.cli.shared import Json, Results, board_names


def ls(results: Results = Path("results"), json_: Json = False) -> None:
    """The boards: how many trials each has, how many failed, what was run."""
    from harness.records.store import boards

    rows = boards(results)
    if json_:
        print(json.dumps(rows, indent=1))
        return
    shown = table(*rows[0])
    for row in rows:
        shown.add_row(*(escape(", ".join(cell) if isinstance(cell, list) else str(cell)) for cell in row.values()))
    out.print(shown)


def show(
    trial: Annotated[str, typer.Argument(help="The id of a record, or how it begins.")],
    results: Results = Path("results"),
    json_: Json = False,
) -> None:
    """One record in full, but for its plan and log; --json has all of it."""
    from harness.records.store import find

    stored = find(results, trial)
    content = stored.record.to_json()
    if json_:
        print(json.dumps(content, indent=1, sort_keys=True))
        return
    out.print(f"[bold]{escape(stored.record.id)}[/bold]  {escape(stored.name)}", soft_wrap=True)
    for section in ("status", "error", "trial", "contestant", "metrics", "cost", "env", "code", "hashes"):
        for key, value in _leaves(content[section], section):
            out.print(f"[dim]{escape(key)}[/dim] = {escape(value)}", soft_wrap=True)


def _leaves(value: Any, name: str) -> list[tuple[str, str]]:
    """Every value with its dotted name."""
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in _leaves(part, f"{name}.{key}")]
    from harness.text import plain

    return [] if value is None else [(plain(name), plain(f"{value:.6g}" if isinstance(value, float) else str(value)))]


def merge(
    sources: Annotated[list[Path], typer.Argument(help="Results folders.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Results folder to bring them into.")],
    json_: Json = False,
) -> None:
    """Several results folders into one: the same record twice is kept once, records that contradict are refused."""
    from harness.records.store import merge as bring

    done = bring(sources, out_dir)
    if json_:
        print(json.dumps({"copied": done.copied, "duplicates": done.duplicates}))
        return
    out.print(f"{done.copied} records copied to {out_dir}, {done.duplicates} were there already", soft_wrap=True)


def mirror(
    service: Annotated[str, typer.Argument(help="mlflow or wandb.")],
    board: Annotated[
        str | None,
        typer.Argument(help="A board of --results, or a folder of records; without, all.", autocompletion=board_names),
    ] = None,
    results: Results = Path("results"),
    json_: Json = False,
) -> None:
    """Send records to MLflow or Weights & Biases, one run each; what is there already is not sent twice."""
    from harness.records.mirrors import mirror as send
    from harness.records.store import board_folder

    source = board_folder(board, results)
    sent = send(service, source)
    if json_:
        print(json.dumps({"records": sent, "service": service}))
    else:
        out.print(f"{sent} records of {source} are runs in {service}", soft_wrap=True)


def verify(results: Results = Path("results"), json_: Json = False) -> None:
    """Check every record: schema, hashes, duplicates, samples. Names what cannot be relied on; exit 1 if anything."""
    from harness.records.store import verify as check

    number, problems = check(results)
    if json_:
        print(json.dumps({"records": number, "problems": problems}, indent=1))
    else:
        for problem in problems:
            err.print(f"[red]unsound:[/red] {escape(problem)}", soft_wrap=True)
        out.print(f"{number} records, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def status(
    board: Annotated[
        str | None,
        typer.Argument(help="A board of --results, or a folder of records; without, all.", autocompletion=board_names),
    ] = None,
    results: Results = Path("results"),
    json_: Json = False,
) -> None:
    """How far sweeps are: what is done, failed, running and left, and when it should be over."""
    from datetime import datetime

    from harness.records.store import board_folder
    from harness.trials.journal import status as look

    rows = look(board_folder(board, results))
    if json_:
        print(json.dumps([row.to_json() for row in rows], indent=1))
        return
    shown = table("board", "done", "failed", "running", "left", "expected end")
    for row in rows:
        end = "" if row.end is None else datetime.fromtimestamp(row.end).strftime("%Y-%m-%d %H:%M")
        left = "" if row.left is None else str(row.left)
        shown.add_row(escape(row.board), str(row.done), str(row.failed), str(len(row.running)), left, end)
    out.print(shown)
