"""Runs trials as tasks on a Ray cluster, or on a Ray of this machine's own if there is no address.

    for record, samples in run(trials, address="auto", needs=Needs(gpus=1)): ...

Each trial is a task that says what it needs. Trials of one ranking wait for the task that makes it, and get it from
Ray's object store. Where a task runs, and again when its worker or node dies, is Ray's to decide. A worker process
keeps its model from task to task. The nodes need this package installed; the caller writes what comes back.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet

from harness.executors import Make, Result, Worker, real
from harness.types import InputError, Trial

RETRIES = 3  # of a task whose worker or node died


@dataclass(frozen=True)
class Needs:
    """What a trial occupies while it runs, as Ray counts it; memory in bytes, None: not counted."""

    cpus: int = 1
    gpus: int = 0
    memory: int | None = None


def run(
    trials: Iterable[Trial],
    *,
    device: str = "cpu",
    address: str | None = None,
    needs: Needs | None = None,
    make: Make = real,
    claim: Callable[[Trial], bool] = lambda trial: True,
    progress: Callable[[Trial, str], None] = lambda trial, text: None,
) -> Iterator[Result]:
    """Yield the record and samples of each trial as it ends, in any order. One whose worker keeps dying has failed.

    needs: by default a core, and a GPU if the device is `cuda`. Raises InputError if Ray is not installed, or there
    is no cluster at the address.
    """
    ray = _connect(address)
    try:
        needs = needs or Needs(gpus=int(device.startswith("cuda")))
        how: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": RETRIES}
        if needs.memory is not None:
            how["memory"] = needs.memory
        rank, measure = ray.remote(**how)(_rank), ray.remote(**how)(_measure)
        groups: dict[Hashable, list[Trial]] = {}
        for trial in filter(claim, trials):
            groups.setdefault(trial.ranking, []).append(trial)
        waiting: dict[Any, Trial] = {}
        for group in groups.values():
            ranking = rank.remote(make, device, group[0]) if len(group) > 1 else None
            waiting |= {measure.remote(make, device, trial, ranking): trial for trial in group}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting))
            trial = waiting.pop(ready)
            progress(trial, f"ended; {len(waiting)} on the cluster")
            yield _result(ray, ready, trial, device)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise InputError("--executor ray: Ray is not installed; pip install 'infoprune-bench[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    import ray

    own: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--address {address}: no Ray cluster there: {str(error).splitlines()[0]}") from error
    return ray


def _result(ray: Any, ready: Any, trial: Trial, device: str) -> Result:
    try:
        made, samples = ray.get(ready)
    except ray.exceptions.RayError as error:
        from harness.runner import blank, fail

        made = blank(trial, device)
        fail(made, "WorkerDied", f"on the cluster, {RETRIES + 1} times: {str(error).splitlines()[0]}", "worker")
        return made, None
    return made, None if samples is None else pyarrow.parquet.read_table(io.BytesIO(samples))


# --- what runs on the nodes -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _worker(make: Make, device: str) -> Worker:
    """This process's worker, kept for the tasks to come."""
    return make(device, 1, lambda text: None)


def _rank(make: Make, device: str, trial: Trial) -> Any:
    return _worker(make, device).share(trial)


def _measure(make: Make, device: str, trial: Trial, ranking: Any) -> tuple[dict[str, Any], bytes | None]:
    worker = _worker(make, device)
    if ranking is not None:
        worker.adopt(ranking)
    made, samples = worker.run(trial)
    if samples is None:
        return made, None
    sink = io.BytesIO()
    pyarrow.parquet.write_table(samples, sink)
    return made, sink.getvalue()
