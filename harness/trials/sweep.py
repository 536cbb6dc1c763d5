"""Run a board: skip finished trials and write each record at once, so that a stop loses only the trials in progress.

outcome = sweep(board, Path("results"), device="cpu")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import check_writable
from harness.progress import Progress, silent
from harness.records import record
from harness.records.record import Record
from harness.records.store import Stored, by_trial, collect
from harness.text import plain
from harness.trials import forecast, preflight, spec, staleness
from harness.trials.executors import MakeWorker, local, make_worker, ray
from harness.trials.executors.local import UNLIMITED, TrialLimits
from harness.trials.journal import Journal
from harness.trials.locks import Claims
from harness.types import InputError, Trial

if TYPE_CHECKING:
    from harness.trials.result import Result


@dataclass(frozen=True)
class Todo:
    """The work of a sweep: trials to run, the number of finished ones, and the estimated seconds (None: unknown).

    stale: the number of trials to run that have a record of other code, another checkpoint or other questions.
    """

    trials: tuple[Trial, ...]
    done: int
    seconds: float | None
    stale: int = 0


@dataclass(frozen=True)
class Cluster:
    """Settings for a run on Ray. `address` is a running cluster; None starts Ray on this machine."""

    address: str | None = None
    needs: ray.Needs | None = None
    shards: int = 1  # Ray tasks per trial that share its questions


@dataclass(frozen=True)
class Outcome:
    """The result of a sweep. `elsewhere` counts trials that other sweeps on the same folder run or have finished."""

    folder: Path
    ran: int
    skipped: int
    failed: tuple[str, ...]  # one line per failed trial
    elsewhere: int = 0
    ids: tuple[str, ...] = ()  # of the finished trials
    seconds: float = 0.0  # wall-clock, from the checks and the start of the workers to the last record


def plan(board: spec.Board, results: Path, baseline: str | None = None) -> Todo:
    """The trials without a record that stands, and a time estimate from the existing records.

    baseline: plan only the trials that a gate against these records (folder, file or git revision) needs. Raises
    InputError if it needs none, or if the baseline is the results folder itself.
    """
    trials = board.trials()
    if baseline is not None:
        if Path(baseline).resolve() in (results.resolve(), (results / board.name).resolve()):
            raise InputError(
                f"--against {baseline}: the sweep would write to the same folder; choose another with --results"
            )
        trials = against(trials, collect(baseline))
    folder = results / board.name
    records: dict[str, Record] = {}
    if folder.is_dir():
        records = {stored.id: stored for stored in record.load(folder)[0] if _whole(stored, folder)}
    todo, finished, stale = [], [], 0
    for trial in trials:
        stored = records.get(trial.id)
        if stored is None:
            todo.append(trial)
        elif staleness.stale(stored, trial):
            todo.append(trial)
            stale += 1
        else:
            finished.append(stored)
    return Todo(tuple(todo), len(finished), forecast.from_records(todo, finished), stale)


def against(trials: Iterable[Trial], baseline: Sequence[Stored]) -> list[Trial]:
    """The trials that a gate against this baseline needs: those with a good record in the baseline.

    Raises InputError if the baseline has none.
    """
    baseline_ids = {identity for identity, stored in by_trial(baseline).items() if stored.record.status == "ok"}
    needed = [trial for trial in trials if trial.id in baseline_ids]
    if not needed:
        raise InputError("--against: the baseline has no good record of this board's trials: nothing to compare with")
    return needed


def sweep(
    board: spec.Board,
    results: Path,
    *,
    device: str = "cpu",
    inline: bool = False,
    jobs: int = 1,
    limits: TrialLimits = UNLIMITED,
    cluster: Cluster | None = None,
    make: MakeWorker = make_worker,
    todo: Todo | None = None,
    progress: Progress = silent,
    mirror: Callable[[Record], None] | None = None,
    begin: Callable[[tuple[str, ...], float | None], None] | None = None,
) -> Outcome:
    """Run the missing trials of a board. Each gets a record under `results/<board>/`. `todo` is its `plan`, if known.

    Trials run in worker processes (`jobs`, `limits`), in this process (`inline`), or on a Ray cluster (`cluster`, and
    only the time limit). Several sweeps may share a folder; each trial runs in one of them. `mirror` gets each record
    after it is written. `begin` gets the notes of `preflight.check` and the estimated seconds before the first trial;
    the workers load meanwhile. Raises InputError before any work for what `preflight.check` refuses and if the folder
    is not writable, and later if the folder becomes unwritable; finished records stay.
    """
    todo = todo or plan(board, results)
    start = time.perf_counter()
    local_jobs = 0 if inline or cluster else min(jobs, len(todo.trials))
    with local.workers(device, local_jobs, make) as workers:
        local_device = device if cluster is None else None  # the devices of a cluster are not this machine's
        notes = preflight.check(board, todo.trials, local_device)
        if begin is not None:
            if todo.seconds is None:
                local.loaded(workers)
            begin(notes, forecast.estimate(board, todo, local_device, jobs))
        else:
            for line in notes:
                progress(f"{board.model}: {line}")

        def runs(**common: Any) -> Iterator[Result]:
            if cluster is not None:
                settings = {"needs": cluster.needs, "shards": cluster.shards, "seconds": limits.seconds}
                return ray.run(todo.trials, device=device, make=make, address=cluster.address, **settings, **common)
            if inline:
                return local.inline(todo.trials, device=device, make=make, **common)
            return local.run(todo.trials, workers, limits=limits, **common)

        outcome = _collected(todo, results / board.name, runs, progress, mirror)
    return replace(outcome, seconds=time.perf_counter() - start)


def _collected(
    todo: Todo,
    folder: Path,
    runs: Callable[..., Iterator[Result]],
    progress: Progress,
    mirror: Callable[[Record], None] | None,
) -> Outcome:
    """Write each record that `runs` yields, and give each trial to one sweep of the folder only."""
    failed: list[str] = []
    check_writable(folder)
    finished, elsewhere, ids = 0, 0, []
    journal = Journal(folder)
    with Claims(folder) as claims:

        def claim(trial: Trial) -> bool:
            nonlocal elsewhere
            name = trial.id
            claimed = claims.take(name) and not _done(folder / f"{name}.json", trial)
            elsewhere += not claimed
            if claimed:
                journal.note("begin", trial=name, method=trial.method, scope=trial.scope, budget=trial.budget)
            return claimed

        def say(text: str = "", **counts: Any) -> None:
            progress(text, done=finished + elsewhere, total=len(todo.trials))

        claims.tidy()
        journal.note("sweep", trials=len(todo.trials), done=todo.done, stale=todo.stale)
        for unwritten, samples in runs(claim=claim, progress=say):
            claims.check()
            written = record.write(folder, unwritten, samples)
            claims.give_up(written.id)
            journal.note("end", trial=written.id, status=written.status, seconds=written.cost.total_s)
            finished += 1
            ids.append(written.id)
            say()
            if written.error is not None:
                error = written.error
                failed.append(plain(f"{written.label}: {error.phase}: {error.type}: {error.message}"))
            if mirror is not None:
                mirror(written)
        journal.note("close", ran=finished, failed=len(failed))
    return Outcome(folder, finished, todo.done, tuple(failed), elsewhere, tuple(ids))


def _done(path: Path, trial: Trial) -> bool:
    """Whether the trial has a record that stands now, perhaps from another sweep."""
    try:
        stored = record.read(path)
    except InputError:
        return False
    return _whole(stored, path.parent) and not staleness.stale(stored, trial)


def _whole(stored: Record, folder: Path) -> bool:
    """Whether a record is a result, and its samples are those that it was written with (a power cut can lose them).

    A failure is none, as it may pass; but that no plan meets the budget comes out the same again, except in time.
    """
    if stored.error is not None:
        unmet = stored.error.type == InputError.__name__ and stored.error.message.startswith("budget:")
        return unmet and stored.trial.currency != "latency"
    try:
        found = sha256((folder / f"{stored.id}.parquet").read_bytes()).hexdigest()
    except OSError:
        found = None
    return found == stored.hashes.get("samples")
