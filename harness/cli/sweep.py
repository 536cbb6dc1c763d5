"""`infoprune demo`, `sweep` and `report`: from a board to records to tables and plots."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from harness.cli.screen import err, note, out, table
from harness.cli.shared import (
    Device,
    Inline,
    Jobs,
    Json,
    Limit,
    MemoryLimit,
    Results,
    TimeLimit,
    board_names,
    check_device,
    check_workers,
    duration,
    pairs,
    resumable,
)
from harness.text import TOO_FEW
from harness.types import InputError

log = logging.getLogger(__name__)

Executor = Literal["local", "ray"]


@resumable()
def demo(
    results: Results = Path("runs/demo/results"),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the tables and the plot.")] = Path("runs/demo"),
    device: Device = "cpu",
) -> None:
    """The quick board on the embedded model; prints the table and where the plot is."""
    from harness.files import check_writable
    from harness.records import record
    from harness.report import report
    from harness.report.board import unsteady
    from harness.report.frame import board_frame
    from harness.trials import spec

    board = spec.read("demo")
    check_writable(out_dir, "--out")
    _sweep(board, results, device)
    files = report(results, out_dir)
    frame = board_frame(record.load(results / board.name)[0])
    out.print(_frame_table(frame))
    if text := unsteady(frame.to_dict("records")):
        out.print(text, soft_wrap=True)
    shown = {"README.md": "table", "pareto.png": "plot", "index.html": "page"}
    for file in files:
        if file.parent == out_dir / board.name and file.name in shown:
            out.print(f"{shown[file.name]}: {file}", soft_wrap=True)
    note("next: infoprune list boards, infoprune sweep BOARD --dry-run, infoprune check-method FILE", out)


@resumable()
def sweep(
    board: Annotated[str, typer.Argument(help="A shipped board's name or a YAML file.", autocompletion=board_names)],
    results: Results = Path("results"),
    device: Device = "cpu",
    limit: Limit = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value, in YAML, in place of the board's: calibration.samples=16; may be given again."
        ),
    ] = None,
    jobs: Jobs = 1,
    time_limit: TimeLimit = None,
    memory_limit: MemoryLimit = None,
    executor: Annotated[Executor, typer.Option(help="Workers of this machine, or tasks on a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, such as auto or HOST:PORT.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores that a trial occupies on the cluster (1).")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs that a trial occupies on the cluster (1 with --device cuda).")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Tasks on the cluster that share the questions of an untuned trial (1).")
    ] = None,
    inline: Inline = False,
    against: Annotated[str | None, typer.Option(help="Run only what a gate against these records needs.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="The model's geometry without its weights: FLOPs and latency only.")
    ] = False,
    mirror: Annotated[
        str | None, typer.Option(help="Also send each record to mlflow or wandb, as a run there.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, run nothing.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time went.")] = False,
    json_: Json = False,
) -> None:
    """Run a board; what has a record already is skipped."""
    from harness.trials import spec
    from harness.trials.executors.local import TrialLimits
    from harness.trials.executors.ray import Needs
    from harness.trials.sweep import Cluster

    check_workers(inline, jobs, time_limit, memory_limit)
    cluster = None
    if _on_cluster(
        executor,
        ray={"--address": address, "--cpus": cpus, "--gpus": gpus, "--shards": shards},
        local={"--inline": inline or None, "--jobs": jobs if jobs > 1 else None},
    ):
        if gpus and not device.startswith("cuda"):
            raise InputError(f"--gpus: goes with --device cuda, not {device}")
        memory = None if memory_limit is None else int(memory_limit * 1e9)
        needs = Needs(cpus or 1, gpus or int(device.startswith("cuda")), memory)
        cluster = Cluster(address, needs, shards or 1)
    changes = pairs(set_, "--set")
    for key, value in {"limit": limit, "random_weights": random_weights}.items():
        if value and key in changes:
            raise InputError(f"--set {key}: --{key.replace('_', '-')} gives it, too; leave one out")
        if value:
            changes[key] = value
    read = spec.read(board, **changes)
    if dry_run:
        _dry_run(read, results, device if cluster is None else None, against, jobs, json_)
        return
    limits = TrialLimits(time_limit, None if memory_limit is None else int(memory_limit * 1e9))
    how = {"inline": inline, "jobs": jobs, "limits": limits, "cluster": cluster, "mirror": _mirror(mirror)}
    outcome = _sweep(read, results, device, against, **how)
    phases = _phases(outcome, read, jobs) if profile else None
    if json_:
        shown = {"board": read.name, **asdict(outcome), "folder": str(outcome.folder)}
        if phases is not None:
            shown["phases"] = [asdict(phase) for phase in phases]
        print(json.dumps(shown, indent=1))
    else:
        out.print(
            f"{outcome.ran} trials run, {outcome.skipped} already done, {len(outcome.failed)} failed: {outcome.folder}"
        )
        if outcome.elsewhere:
            out.print(f"{outcome.elsewhere} trials left to, or done by, other sweeps on this folder")
        if phases is not None:
            _profile(phases, jobs)
    if outcome.failed:
        raise typer.Exit(1)


def _dry_run(board: Any, results: Path, device: str | None, against: str | None, jobs: int, json_: bool) -> None:
    """What a sweep would run and fetch, and how long it would take."""
    from harness.trials.forecast import estimate
    from harness.trials.preflight import check, fetched
    from harness.trials.sweep import plan

    todo, needed = plan(board, results, against), fetched(board)
    notes = check(board, todo.trials, device, fetch=False)
    seconds = estimate(board, todo, device, jobs)
    if json_:
        trials = [{"id": trial.id, **trial.content()} for trial in todo.trials]
        plain = {"board": board.name, "folder": str(results / board.name), "trials": trials}
        plain |= {"done": todo.done, "stale": todo.stale, "seconds": seconds, "fetched": needed, "notes": list(notes)}
        print(json.dumps(plain, indent=1))
        return
    heads = ("method", "variant", "tuning", "scope", "units", "budget", "seeds")
    shown = table(*heads, title=escape(f"{board.name} on {board.model}"))
    rows = Counter(
        (trial.method, trial.variant, str(trial.tuning), trial.scope, trial.units, f"{trial.budget:g}")
        for trial in todo.trials
    )
    for row, seeds in rows.items():
        shown.add_row(*map(escape, row), str(seeds))
    out.print(shown)
    for line in needed:
        out.print(f"from the hub, if not in its cache: {escape(line)}", soft_wrap=True)
    for line in notes:
        out.print(f"{escape(board.model)}: {escape(line)}", soft_wrap=True)
    out.print(f"{_counts(todo)}; {duration(seconds)}")


def _on_cluster(executor: Executor, ray: dict[str, Any], local: dict[str, Any]) -> bool:
    """Whether Ray is to run trials. Raises InputError for an option that the chosen executor has no use for."""
    for option, given in (ray if executor == "local" else local).items():
        if given is not None:
            raise InputError(f"{option}: does not go with --executor {executor}")
    return executor == "ray"


def _mirror(service: str | None) -> Any:
    """What sends records to this service, if any; says on stderr when it no longer can."""
    if service is None:
        return None
    from harness.records.mirrors import Mirror

    return Mirror(service, lambda text: err.print(f"[yellow]{escape(text)}[/yellow]", soft_wrap=True))


def _counts(todo: Any) -> str:
    stale = f" ({todo.stale} of them again: code, model or data changed)" if todo.stale else ""
    return f"{len(todo.trials)} trials to run{stale}, {todo.done} done"


def _phases(outcome: Any, board: Any, jobs: int) -> list[Any]:
    """The phases of what was run, or of the board's records if all were there."""
    from harness.machine.phases import account
    from harness.records.record import load

    ids = outcome.ids or [trial.id for trial in board.trials()]
    costs = [record.cost for record in load(outcome.folder)[0] if record.id in ids]
    return account(costs, jobs * outcome.seconds if outcome.ran else None)


def _profile(rows: list[Any], jobs: int) -> None:
    """A table of the phases, and what share of the time was neither generating, timing nor tuning."""
    from harness.machine.phases import overhead

    total = sum(row.seconds for row in rows)
    shown = table("phase", "seconds", "share", texts=1)
    for row in rows:
        name = f"[bold]{escape(row.phase)}[/]" if row.useful else escape(row.phase)
        shown.add_row(name, f"{row.seconds:.1f}", f"{100 * row.seconds / total:.1f} %")
    out.print(shown)
    workers = f" of {jobs} workers" if jobs > 1 else ""
    out.print(f"{total:.1f} s{workers}, {100 * overhead(rows):.1f} % of them neither generating, timing nor tuning")


def _sweep(board: Any, results: Path, device: str, against: str | None = None, **how: Any) -> Any:
    """Run a board under a progress bar, failures printed as they are known."""
    from harness.progress import progress_bar
    from harness.trials.sweep import plan
    from harness.trials.sweep import sweep as run

    if how.get("cluster") is None:
        check_device(device)
    todo = plan(board, results, against)

    with ExitStack() as stack:
        bars: list[Any] = []

        def begin(notes: tuple[str, ...], seconds: float | None) -> None:
            note(f"{board.name}: {_counts(todo)}; {duration(seconds)}")
            for line in notes:
                note(f"{board.model}: {line}")
            bars.append(stack.enter_context(progress_bar(err)))
            bars[0].add_task("starting", total=len(todo.trials))

        def progress(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
            for bar in bars:
                bar.update(bar.task_ids[0], completed=done, description=escape(text))
            log.info("%s of %d trials; %s", done or 0, len(todo.trials), text or "a trial is done")

        outcome = run(board, results, device=device, todo=todo, progress=progress, begin=begin, **how)
    for line in outcome.failed:
        err.print(f"[yellow]failed:[/yellow] {escape(line)}", soft_wrap=True)
    return outcome


def report(
    boards: Annotated[
        list[str] | None, typer.Argument(help="Boards of the folder; without any, all.", autocompletion=board_names)
    ] = None,
    results: Results = Path("results"),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of leaderboards, one sub-folder a board.")] = Path(
        "leaderboards"
    ),
) -> None:
    """Tables and plots of every board under RESULTS, or of some, from their records alone."""
    from harness.report import report as make

    for file in make(results, out_dir, boards or ()):
        out.print(str(file), soft_wrap=True)


def _frame_table(frame: Any) -> Any:
    """The board as a terminal table, dense first, one row a trial."""
    shown = table("method", "regime", "scope", "budget", "FLOPs", "params", "speedup", "accuracy (95 %)", texts=3)
    for row in frame.to_dict("records"):
        name, regime = f"{row['method']} {row['variant']}".strip(), row["regime"]
        cells = [escape(name), escape(regime), row["scope"], f"{row['budget']:g}"]
        if row["status"] != "ok":
            shown.add_row(*cells, escape(row["status"]))
            continue
        low, middle, high = (100 * row[key] for key in ("accuracy_lo", "accuracy", "accuracy_hi"))
        cells += [f"{row['flops_kept']:.4f}", f"{row['params_kept']:.3f}", f"{row['latency_speedup']:.2f}x"]
        interval = TOO_FEW if math.isnan(low) and not math.isnan(middle) else f"{low:.1f}-{high:.1f}"
        shown.add_row(*cells, f"{middle:.1f} ({interval})", style="bold" if row["role"] == "studied" else None)
    return shown
