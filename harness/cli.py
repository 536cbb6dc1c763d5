"""The command `infoprune`: flags in, calls out, tables and exit codes back. No logic of its own.

infoprune demo
infoprune sweep my-board.yaml --results results --device cuda
"""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import rich.box
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.types import InputError

app = typer.Typer(
    help="Compare ways to prune vision-language models at equal FLOPs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
reference_app = typer.Typer(help="The embedded model: retrain, fine-tune, verify.", no_args_is_help=True)
data_app = typer.Typer(help="Question sets of your own.", no_args_is_help=True)
app.add_typer(reference_app, name="reference")
app.add_typer(data_app, name="data")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Results = Annotated[Path, typer.Option(help="Folder of records, one sub-folder a board.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions per task; the same ones on every machine.")]
Inline = Annotated[bool, typer.Option("--inline", help="Run in this process instead of a worker process.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")]


class Thing(StrEnum):
    methods = "methods"
    models = "models"
    tasks = "tasks"
    metrics = "metrics"
    boards = "boards"


def main() -> None:
    """The console script: bad input is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except InputError as error:
        err.print(f"[red]error:[/red] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # what typer makes of an interrupt
            raise
        err.print("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(130)


# --- running ------------------------------------------------------------------------------------------------


@app.command()
def demo(
    results: Results = Path("runs/demo/results"),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the tables and the plot.")] = Path("runs/demo"),
    device: Device = "cpu",
) -> None:
    """The quick board on the embedded model; prints the table and where the plot is."""
    from harness import record, spec
    from harness.report import report, tables
    from harness.sweep import check_writable

    board = spec.read("demo")
    check_writable(out_dir, "--out")
    _sweep(board, results, device, inline=False)
    files = report(results, out_dir)
    frame = tables.board_frame(record.load(results / board.name)[0])
    out.print(_frame_table(frame))
    for file in files:
        if file.name in ("README.md", "pareto.png"):
            out.print(f"{'table' if file.suffix == '.md' else 'plot'}: {file}", soft_wrap=True)


@app.command()
def sweep(
    board: Annotated[str, typer.Argument(help="A shipped board's name or a YAML file.")],
    results: Results = Path("results"),
    device: Device = "cpu",
    limit: Limit = None,
    inline: Inline = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, run nothing.")] = False,
) -> None:
    """Run a board; what has a record already is skipped."""
    from harness import spec
    from harness.sweep import plan, probe

    read = spec.read(board, **({"limit": limit} if limit else {}))
    if dry_run:
        todo = plan(read, results)
        table = Table("method", "variant", "scope", "units", "budget", "seeds", title=f"{read.name} on {read.model}")
        rows: dict[tuple[str, ...], int] = {}
        for trial in todo.trials:
            key = (trial.method, trial.variant, trial.scope, trial.units, f"{trial.budget:g}")
            rows[key] = rows.get(key, 0) + 1
        for key, seeds in rows.items():
            table.add_row(*(escape(cell) for cell in key), str(seeds))
        out.print(table)
        seconds = todo.seconds
        if seconds is None and todo.trials:
            _check_device(device)
            seconds = probe(read, todo, device)
        out.print(f"{len(todo.trials)} trials to run, {todo.done} done; {_duration(seconds)}")
        return
    outcome = _sweep(read, results, device, inline)
    out.print(
        f"{outcome.ran} trials run, {outcome.skipped} already done, {len(outcome.failed)} failed: {outcome.folder}"
    )
    if outcome.failed:
        raise typer.Exit(1)


def _sweep(board: Any, results: Path, device: str, inline: bool) -> Any:
    """Run a board under a progress bar, failures printed as they are known."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from harness.sweep import plan
    from harness.sweep import sweep as run

    _check_device(device)
    todo = plan(board, results)
    err.print(f"{board.name}: {len(todo.trials)} trials to run, {todo.done} done; {_duration(todo.seconds)}")
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("starting", total=len(todo.trials))

        def progress(finished: int, text: str) -> None:
            trial = todo.trials[min(finished, len(todo.trials) - 1)]
            label = f"{trial.method} {trial.scope} {trial.budget:g}: {text}" if text else ""
            bar.update(task, completed=finished, description=escape(label))

        outcome = run(board, results, device=device, inline=inline, progress=progress)
    for line in outcome.failed:
        err.print(f"[yellow]failed:[/yellow] {escape(line)}", soft_wrap=True)
    return outcome


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise InputError(f"--device {device}: use cpu, cuda or cuda:N")
    if int(number or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "no finished trial to estimate the time from"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


@app.command()
def report(
    results: Results = Path("results"),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of leaderboards, one sub-folder a board.")] = Path(
        "leaderboards"
    ),
) -> None:
    """Tables and plots of every board under RESULTS, from its records alone."""
    from harness.report import report as make

    for file in make(results, out_dir):
        out.print(str(file), soft_wrap=True)


def _frame_table(frame: Any) -> Table:
    """The board as a terminal table, dense first, one row a trial."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for head in ("method", "scope", "budget", "FLOPs", "params", "speedup", "accuracy (95 %)"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("method", "scope") else "right")
    for row in frame.to_dict("records"):
        cells = [escape(f"{row['method']} {row['variant']}".strip()), row["scope"], f"{row['budget']:g}"]
        if row["status"] != "ok":
            table.add_row(*cells, escape(row["status"]))
            continue
        low, middle, high = (100 * row[key] for key in ("accuracy_lo", "accuracy", "accuracy_hi"))
        cells += [f"{row['flops_kept']:.4f}", f"{row['params_kept']:.3f}", f"{row['latency_speedup']:.2f}x"]
        table.add_row(
            *cells, f"{middle:.1f} ({low:.1f}-{high:.1f})", style="bold" if row["role"] == "studied" else None
        )
    return table


# --- what is there ------------------------------------------------------------------------------------------


@app.command(name="list")
def list_(thing: Thing, json_: Json = False) -> None:
    """Methods, models, tasks, metrics or boards, each with a line on what it is."""
    from harness import families, registry

    if thing is Thing.methods:
        found = [registry.method(name) for name in registry.methods()]
        rows = [
            {
                "name": m.name,
                "title": m.title,
                "role": m.role,
                "regime": m.regime,
                "units": m.units,
                "options": dict(m.options),
            }
            for m in found
        ]
    elif thing is Thing.models:
        rows = [{"name": name, "title": "shipped, trained, loads offline"} for name in registry.MODELS]
        rows += [
            {"name": f"<{name}>", "title": "any checkpoint folder or hub id of this type"} for name in families.names()
        ]
    elif thing is Thing.tasks:
        from harness import tasks

        rows = [{"name": name, "title": title} for name, title in tasks.describe().items()]
    elif thing is Thing.metrics:
        titles = {name: sys.modules[registry.metric(name).__module__].__doc__ or "" for name in registry.metrics()}
        rows = [{"name": name, "title": title.strip().splitlines()[0]} for name, title in titles.items()]
    else:
        rows = [
            {"name": name, "title": registry.board(name).read_text().splitlines()[0].lstrip("# ")}
            for name in registry.boards()
        ]
    if json_:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        name, title, *rest = row
        out.print(f"[bold]{escape(row[name])}[/bold]  {escape(row[title])}")
        if details := "; ".join(f"{key}: {_cell(row[key])}" for key in rest if row[key]):
            out.print(f"    [dim]{escape(details)}[/dim]")


def _cell(value: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@app.command()
def doctor(json_: Json = False) -> None:
    """Check the installation: versions that must match, the embedded model, a forward pass, the devices."""
    from harness.doctor import examine

    findings = examine()
    if json_:
        print(json.dumps([{"check": f.check, "ok": f.ok, "detail": f.detail} for f in findings], indent=1))
    else:
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else "[red]no[/red]"
            out.print(f"{mark}  {finding.check}: {escape(finding.detail)}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@data_app.command("check")
def data_check(path: Path, json_: Json = False) -> None:
    """Validate a parquet file or a folder of them in the official columns."""
    from harness.tasks import check

    found = check(path)
    print(json.dumps(found, indent=1, default=str)) if json_ else out.print(_cell(found), soft_wrap=True)


# --- the embedded model -------------------------------------------------------------------------------------


@reference_app.command("train")
def reference_train(
    out_dir: Annotated[Path, typer.Option("--out", help="Checkpoint folder; a run found there goes on.")],
    images: Annotated[int | None, typer.Option(min=1, help="Length of the run (default: the recipe's).")] = None,
    data: Annotated[Path | None, typer.Option(help="Train on this parquet file instead of generated scenes.")] = None,
    start: Annotated[Path | None, typer.Option(help="Checkpoint folder to begin from, to fine-tune.")] = None,
    device: Device = "cpu",
) -> None:
    """Train the embedded model anew, or fine-tune it on a parquet file; resumable."""
    from harness.reference.run import run

    _check_device(device)
    run(out_dir, images=images, data=data, start=start, device=device, console=err)


@reference_app.command("check")
def reference_check(limit: Limit = None, device: Device = "cpu", json_: Json = False) -> None:
    """Measure every bar of the embedded model: accuracy, blindness, size, discrimination. Exit 0 only if all hold."""
    from harness.reference.check import check

    bars = check(limit=limit, device=device, console=err)
    if json_:
        print(json.dumps({"bars": bars}, indent=1))
    else:
        table = Table("bar", "measured", "goal", "holds")
        for bar in bars:
            table.add_row(
                bar["name"], f"{bar['measured']:.4g}", bar["goal"], "yes" if bar["holds"] else "[red]no[/red]"
            )
        out.print(table)
    if not all(bar["holds"] for bar in bars):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
