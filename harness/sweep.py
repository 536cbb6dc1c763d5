"""Runs a board: what is done is skipped, what finishes is written at once, so that any stop loses one trial at most.

outcome = sweep(board, Path("results"), device="cpu")
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import families, gate, provenance, record, registry, spec, tasks
from harness.claims import Claims
from harness.executors import Make, local, ray, real
from harness.executors.local import UNLIMITED, TrialLimits
from harness.files import check_writable
from harness.journal import Journal
from harness.results import collect
from harness.text import plain
from harness.types import InputError, Trial

LIGHT = 2e9
Progress = Callable[[int, str], None]  # (trials finished, what is going on)


@dataclass(frozen=True)
class Todo:
    """What a sweep would do: trials still to run, how many are done, and the estimated seconds (None: unknown).

    stale: how many of those to run have a record, but of another code, checkpoint or question set.
    """

    trials: tuple[Trial, ...]
    done: int
    seconds: float | None
    stale: int = 0


@dataclass(frozen=True)
class Cluster:
    """Ray instead of workers of our own; address: of a running cluster, None: Ray's own on this machine."""

    address: str | None = None
    needs: ray.Needs | None = None
    shards: int = 1  # tasks that share the questions of a trial


@dataclass(frozen=True)
class Outcome:
    """What a sweep did; elsewhere: trials left to, or meanwhile done by, other sweeps on the same folder."""

    folder: Path
    ran: int
    skipped: int
    failed: tuple[str, ...]  # one line per failed trial
    elsewhere: int = 0
    ids: tuple[str, ...] = ()  # of the trials that were run
    seconds: float = 0.0  # wall-clock, from the first worker's start to the last record


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
    there: dict[str, dict[str, Any]] = {}
    if folder.is_dir():
        there = {found["id"]: found for found in record.load(folder)[0] if _whole(found, folder)}
    todo, seconds, stale = [], [], 0
    for trial in trials:
        found = there.get(spec.trial_id(trial))
        if found is None:
            todo.append(trial)
        elif provenance.stale(found, trial):
            todo.append(trial)
            stale += 1
        else:
            seconds.append(float((found.get("cost") or {}).get("total_s") or 0.0))
    each = statistics.median(seconds) if seconds else None
    return Todo(tuple(todo), len(seconds), None if each is None else each * len(todo), stale)


def fetched(board: spec.Board) -> list[str]:
    """What a run would take from the hub, where the Hugging Face cache lacks it: the model, and sets of questions."""
    source = registry.model(board.model)
    found = [] if Path(source).is_dir() else [f"model {source} at revision {board.revision or 'main'}"]
    found += tasks.fetched(board.tasks, board.split)
    for entry in board.methods:
        drawn = entry.calibration or board.calibration
        found += tasks.fetched(drawn.tasks or board.tasks, drawn.split)
    return list(dict.fromkeys(found))


def probe(board: spec.Board, todo: Todo, device: str = "cpu") -> float | None:
    """Rough seconds that the trials will take, from a few timed prefills: for a first run, when no record tells.

    None where that would take long itself: with random weights, which are drawn, or more than `LIGHT` bytes of weights.
    """
    weights = sum(file.stat().st_size for file in Path(registry.model(board.model)).glob("*.safetensors"))
    if board.random_weights or weights > LIGHT:
        return None
    import torch

    from harness.metrics.latency import seconds
    from harness.runner import Context

    vlm = families.load(registry.model(board.model), dtype=board.dtype, device=device, **asdict(board.loading))
    batch = max(board.latency.batches)
    call = Context(todo.trials[0], lambda text: None).stages(vlm, batch)["all"]
    prefill = seconds(call, torch.device(device), min) / batch
    questions = sum(tasks.count(task, board.split, board.limit) for task in board.tasks)
    # Each question is prefilled and decoded (about another prefill); each timed round runs both models' stages.
    accuracy = 2 * questions * ("accuracy" in board.metrics)
    settings = len(board.latency.modes) * (1 + len(board.latency.images))
    latency = 4 * settings * board.latency.repeats * sum(board.latency.batches) * ("latency" in board.metrics)
    return len(todo.trials) * prefill * (accuracy + latency)


def sweep(
    board: spec.Board,
    results: Path,
    *,
    device: str = "cpu",
    inline: bool = False,
    jobs: int = 1,
    limits: TrialLimits = UNLIMITED,
    cluster: Cluster | None = None,
    make: Make = real,
    todo: Todo | None = None,
    progress: Progress = lambda finished, text: None,
    mirror: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Run what is missing of a board, one record a trial under `results/<board>/`; todo: its `plan`, if there is one.

    In workers of this machine (`jobs`, `limits`), in this process (`inline`), or on a Ray cluster (`cluster`, and the
    time limit). Several sweeps may share a folder, each trial is run by one of them. `mirror` is given each record once
    written.
    Raises InputError, with nothing written, when there is no such model on the hub or the folder cannot be written;
    and when it cannot be written any more: what was finished before is kept.
    """
    todo = todo or plan(board, results)
    if todo.trials:
        families.check(registry.model(board.model), revision=board.revision, random_weights=board.random_weights)
    folder, failed = results / board.name, []
    check_writable(folder)
    finished, elsewhere, ids, start = 0, 0, [], time.perf_counter()
    journal = Journal(folder)
    with Claims(folder) as claims:

        def claim(trial: Trial) -> bool:
            nonlocal elsewhere
            name = spec.trial_id(trial)
            mine = claims.take(name) and not _done(folder / f"{name}.json", trial)
            elsewhere += not mine
            if mine:
                journal.note("begin", trial=name, method=trial.method, scope=trial.scope, budget=trial.budget)
            return mine

        def said(trial: Trial, text: str) -> None:
            progress(finished + elsewhere, f"{trial.method} {trial.scope} {trial.budget:g}: {text}")

        claims.tidy()
        journal.note("sweep", trials=len(todo.trials), done=todo.done, stale=todo.stale)
        common: dict[str, Any] = {"device": device, "make": make, "claim": claim, "progress": said}
        if cluster is None:
            runs = local.run(todo.trials, inline=inline, jobs=jobs, limits=limits, **common)
        else:
            own = {"needs": cluster.needs, "shards": cluster.shards, "seconds": limits.seconds}
            runs = ray.run(todo.trials, address=cluster.address, **own, **common)
        for made, samples in runs:
            claims.check()
            path = record.write(folder, made, samples)
            claims.give_up(made["id"])
            journal.note("end", trial=made["id"], status=made["status"], seconds=made["cost"].get("total_s"))
            finished += 1
            ids.append(made["id"])
            progress(finished + elsewhere, "")
            if made["status"] != "ok":
                failed.append(_failure(made))
            if mirror is not None:
                mirror(record.read(path))
        journal.note("close", ran=finished, failed=len(failed))
    return Outcome(folder, finished, todo.done, tuple(failed), elsewhere, tuple(ids), time.perf_counter() - start)


def _done(path: Path, trial: Trial) -> bool:
    """Whether the trial has a good record by now, perhaps another sweep's."""
    try:
        found = record.read(path)
    except InputError:
        return False
    return _whole(found, path.parent) and not provenance.stale(found, trial)


def _whole(found: dict[str, Any], folder: Path) -> bool:
    """Whether a record is a result, with its samples beside it if it had any (a power cut can take them)."""
    samples = folder / f"{found['id']}.parquet"
    return found["status"] == "ok" and ("samples" not in found["hashes"] or samples.is_file())


def _failure(made: dict[str, Any]) -> str:
    """A failure record in one line."""
    error = made["error"]
    return plain(f"{record.label(made)}: {error['phase']}: {error['type']}: {error['message']}")
