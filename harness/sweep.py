"""Runs a board: what is done is skipped, what finishes is written at once, so that any stop loses one trial at most.

outcome = sweep(board, Path("results"), device="cpu")
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import families, gate, record, registry, spec, tasks
from harness.executors import local
from harness.results import collect
from harness.types import InputError, Trial

Progress = Callable[[int, str], None]  # (trials finished, what is going on)


@dataclass(frozen=True)
class Todo:
    """What a sweep would do: trials still to run, how many are done, and the estimated seconds (None: unknown)."""

    trials: tuple[Trial, ...]
    done: int
    seconds: float | None


@dataclass(frozen=True)
class Outcome:
    folder: Path
    ran: int
    skipped: int
    failed: tuple[str, ...]  # one line per failed trial


def plan(board: spec.Board, results: Path, baseline: str | None = None) -> Todo:
    """The trials without a good record yet, and an estimate from the records that there are.

    baseline: only what a gate against these records (folder, file or git revision) needs. Raises InputError if that is
    nothing, or if the baseline is the results folder itself.
    """
    trials = board.trials()
    if baseline is not None:
        if Path(baseline).resolve() in (results.resolve(), (results / board.name).resolve()):
            raise InputError(f"--against {baseline}: also where results would go; name another folder with --results")
        trials = gate.against(trials, collect(baseline))
    folder = results / board.name
    done: dict[str, float] = {}
    if folder.is_dir():
        for found in record.load(folder)[0]:
            if found["status"] == "ok":
                done[found["id"]] = float(found["cost"].get("total_s") or 0.0)
    todo = tuple(trial for trial in trials if spec.trial_id(trial) not in done)
    each = statistics.median(done.values()) if done else None
    return Todo(todo, len(trials) - len(todo), None if each is None else each * len(todo))


def probe(board: spec.Board, todo: Todo, device: str = "cpu") -> float:
    """Rough seconds that the trials will take, from one timed prefill: for a first run, when no record tells."""
    from harness.runner import Context

    vlm = families.load(registry.model(board.model), dtype=board.dtype, device=device)
    batch = max(board.latency.batches)
    call = Context(todo.trials[0], lambda text: None).stages(vlm, batch)["all"]
    call()
    start = time.perf_counter()
    call()
    prefill = (time.perf_counter() - start) / batch
    questions = sum(len(tasks.subset(task, board.split, board.limit)) for task in board.tasks)
    # Each question is prefilled and decoded (about another prefill); each timed round runs both models' stages.
    accuracy = 2 * questions * ("accuracy" in board.metrics)
    latency = 4 * board.latency.repeats * sum(board.latency.batches) * ("latency" in board.metrics)
    return len(todo.trials) * prefill * (accuracy + latency)


def check_writable(folder: Path, what: str = "results folder") -> None:
    """Raise InputError unless files can be made in `folder`, which is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{what} {folder}: not writable: {os.strerror(error.errno or 0)}") from error


def sweep(
    board: spec.Board,
    results: Path,
    *,
    device: str = "cpu",
    inline: bool = False,
    todo: Todo | None = None,
    progress: Progress = lambda finished, text: None,
) -> Outcome:
    """Run what is missing of a board, one record a trial under `results/<board>/`; todo: its `plan`, if there is one.

    Raises InputError, with nothing written, when there is no such model on the hub or the folder cannot be written.
    """
    todo = todo or plan(board, results)
    if todo.trials:
        families.check(registry.model(board.model))
    folder, failed = results / board.name, []
    check_writable(folder)
    finished = 0
    runs = local.run(todo.trials, device=device, inline=inline, progress=lambda text: progress(finished, text))
    for trial, (made, samples) in zip(todo.trials, runs, strict=True):
        record.write(folder, made, samples)
        finished += 1
        progress(finished, "")
        if made["status"] != "ok":
            reason = record.plain(f"{made['error']['phase']}: {made['error']['type']}: {made['error']['message']}")
            which = f"{trial.method} {trial.variant} {trial.tuning} {trial.scope} {trial.budget:g} seed {trial.seed}"
            failed.append(f"{which}: {reason}")
    return Outcome(folder, finished, todo.done, tuple(failed))
