"""`infoprune demo`, `sweep` and `report`: from a board to records to tables and plots."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.box
import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.shared import (
    Device,
    Inline,
    Jobs,
    Limit,
    MemoryLimit,
    Results,
    TimeLimit,
    check_device,
    check_workers,
    duration,
    err,
    out,
)
from harness.types import InputError

Executor = Literal["local", "ray"]


def demo(
    results: Results = Path("runs/demo/results"),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the tables and the plot.")] = Path("runs/demo"),
    device: Device = "cpu",
) -> None:
    """The quick board on the embedded model; prints the table and where the plot is."""
    from harness import record, spec
    from harness.files import check_writable
    from harness.report import report, tables

    board = spec.read("demo")
    check_writable(out_dir, "--out")
    _sweep(board, results, device)
    files = report(results, out_dir)
    frame = tables.board_frame(record.load(results / board.name)[0])
    out.print(_frame_table(frame))
    shown = {"README.md": "table", "pareto.png": "plot", "index.html": "page"}
    for file in files:
        if file.parent == out_dir / board.name and file.name in shown:
            out.print(f"{shown[file.name]}: {file}", soft_wrap=True)
    out.print(
        "next: infoprune list boards, infoprune sweep BOARD --dry-run, infoprune check-method FILE", soft_wrap=True
    )


def sweep(
    board: Annotated[str, typer.Argument(help="A shipped board's name or a YAML file.")],
    results: Results = Path("results"),
    device: Device = "cpu",
    limit: Limit = None,
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
) -> None:
    """Run a board; what has a record already is skipped."""
    from harness import spec
    from harness.executors.local import TrialLimits
    from harness.executors.ray import Needs
    from harness.sweep import Cluster

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
    changed = {"limit": limit, "random_weights": random_weights}
    read = spec.read(board, **{key: value for key, value in changed.items() if value})
    if dry_run:
        _dry_run(read, results, device, against)
        return
    limits = TrialLimits(time_limit, None if memory_limit is None else int(memory_limit * 1e9))
    how = {"inline": inline, "jobs": jobs, "limits": limits, "cluster": cluster, "mirror": _mirror(mirror)}
    outcome = _sweep(read, results, device, against, **how)
    out.print(
        f"{outcome.ran} trials run, {outcome.skipped} already done, {len(outcome.failed)} failed: {outcome.folder}"
    )
    if outcome.elsewhere:
        out.print(f"{outcome.elsewhere} trials left to, or done by, other sweeps on this folder")
    if profile:
        _profile(outcome, read, jobs)
    if outcome.failed:
        raise typer.Exit(1)


def _dry_run(board: Any, results: Path, device: str, against: str | None) -> None:
    """What a sweep would run and fetch, and how long it would take."""
    from harness.sweep import fetched, plan, probe

    todo = plan(board, results, against)
    heads = ("method", "variant", "tuning", "scope", "units", "budget", "seeds")
    table = Table(*heads, title=escape(f"{board.name} on {board.model}"))
    rows = Counter(
        (trial.method, trial.variant, str(trial.tuning), trial.scope, trial.units, f"{trial.budget:g}")
        for trial in todo.trials
    )
    for row, seeds in rows.items():
        table.add_row(*map(escape, row), str(seeds))
    out.print(table)
    seconds, needed = todo.seconds, fetched(board)
    for line in needed:
        out.print(f"from the hub, if not in its cache: {escape(line)}", soft_wrap=True)
    if seconds is None and todo.trials and not needed:
        check_device(device)
        seconds = probe(board, todo, device)
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
    from harness.mirrors import Mirror

    return Mirror(service, lambda text: err.print(f"[yellow]{escape(text)}[/yellow]", soft_wrap=True))


def _counts(todo: Any) -> str:
    stale = f" ({todo.stale} of them again: code, model or data changed)" if todo.stale else ""
    return f"{len(todo.trials)} trials to run{stale}, {todo.done} done"


def _profile(outcome: Any, board: Any, jobs: int) -> None:
    """The phases of what was run, or of the board's records if all were there."""
    from harness import record, spec
    from harness.phases import account, overhead

    ids = outcome.ids or [spec.trial_id(trial) for trial in board.trials()]
    made = [found for found in record.load(outcome.folder)[0] if found["id"] in ids]
    rows = account(made, jobs * outcome.seconds if outcome.ran else None)
    total = sum(row.seconds for row in rows)
    table = Table("phase", "seconds", "share", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        name = f"[bold]{escape(row.phase)}[/]" if row.useful else escape(row.phase)
        table.add_row(name, f"{row.seconds:.1f}", f"{100 * row.seconds / total:.1f} %")
    out.print(table)
    workers = f" of {jobs} workers" if jobs > 1 else ""
    out.print(f"{total:.1f} s{workers}, {100 * overhead(rows):.1f} % of them neither generating, timing nor tuning")


def _sweep(board: Any, results: Path, device: str, against: str | None = None, **how: Any) -> Any:
    """Run a board under a progress bar, failures printed as they are known."""
    from harness.progress import progress_bar
    from harness.sweep import plan
    from harness.sweep import sweep as run

    if how.get("cluster") is None:  # the devices of a cluster are not this machine's
        check_device(device)
    todo = plan(board, results, against)
    err.print(f"{board.name}: {_counts(todo)}; {duration(todo.seconds)}")
    with progress_bar(err) as bar:
        task = bar.add_task("starting", total=len(todo.trials))

        def progress(finished: int, text: str) -> None:
            bar.update(task, completed=finished, description=escape(text))

        outcome = run(board, results, device=device, todo=todo, progress=progress, **how)
    for line in outcome.failed:
        err.print(f"[yellow]failed:[/yellow] {escape(line)}", soft_wrap=True)
    return outcome


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
