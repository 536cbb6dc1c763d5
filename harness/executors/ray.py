"""Runs trials as tasks on a Ray cluster, or on a Ray of this machine's own if there is no address.

    for record, samples in run(trials, address="auto", needs=Needs(gpus=1)): ...

Each trial is a task that says what it needs. Trials of one ranking wait for the task that makes it, and get it from
Ray's object store; with `shards` each also waits for tasks that answer its questions, a share each. Where a task runs,
and again when its worker or node dies, is Ray's to decide; what takes too long is ended from here. A worker process
keeps its model from task to task. The nodes need this package installed; the caller writes what comes back.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.executors import Make, Result, Worker, failed, late, real
from harness.types import InputError, Trial

RETRIES = 3  # of a task whose worker or node died


@dataclass(frozen=True)
class Needs:
    """What a task occupies while it runs, as Ray counts it; memory in bytes, None: not counted."""

    cpus: int = 1
    gpus: int = 0
    memory: int | None = None


@dataclass(frozen=True, eq=False)
class _Task:
    """A task on the cluster: what it does for a trial, and the tasks that it waits for."""

    ref: Any
    does: Callable[..., Any]
    trial: Trial
    after: tuple[_Task, ...]


def run(
    trials: Iterable[Trial],
    *,
    device: str = "cpu",
    address: str | None = None,
    needs: Needs | None = None,
    shards: int = 1,
    seconds: float | None = None,
    make: Make = real,
    claim: Callable[[Trial], bool] = lambda trial: True,
    progress: Callable[[Trial, str], None] = lambda trial, text: None,
) -> Iterator[Result]:
    """Yield the record and samples of each trial as it ends, in any order. One whose worker keeps dying has failed.

    needs: by default a core, and a GPU if the device is `cuda`. shards: tasks that share a trial's questions. seconds:
    how long each task may run, not counting how long it queues; else the trials that need it have failed.
    Raises InputError if Ray is not installed, or there is no cluster at the address.
    """
    ray = _connect(address)
    try:
        needs = needs or Needs(gpus=int(device.startswith("cuda")))
        how: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": RETRIES}
        if needs.memory is not None:
            how["memory"] = needs.memory
        do, clock = ray.remote(**how)(_do), _Clock(ray, seconds)
        tasks: list[_Task] = []

        def submit(does: Callable[..., Any], trial: Trial, *given: Any, after: tuple[_Task, ...] = ()) -> _Task:
            call, results = do.options(name=does.__name__), [task.ref for task in after]
            ref = call.remote(clock.starts, len(tasks), does, make, device, trial, *given, *results)
            tasks.append(_Task(ref, does, trial, after))
            return tasks[-1]

        groups: dict[Hashable, list[Trial]] = {}
        for trial in filter(claim, trials):
            groups.setdefault(trial.ranking, []).append(trial)
        for group in groups.values():
            ranking = (submit(_rank, group[0]),) if len(group) > 1 or shards > 1 else ()
            for trial in group:
                parts = [(i, shards) for i in range(shards)] if shards > 1 else []
                answers = [submit(_answer, trial, part, after=ranking) for part in parts]
                submit(_measure, trial, after=(*ranking, *answers))
        waiting, slow = {task.ref: task for task in tasks}, set[_Task]()
        left = sum(map(len, groups.values()))
        while left:
            ready, _ = ray.wait([*waiting, *clock.heard], timeout=clock.patience(), fetch_local=False)
            for ref in ready:
                task = waiting.pop(ref, None)
                if task is None:
                    clock.hear(ref)
                elif task.does is _measure:
                    left -= 1
                    progress(task.trial, f"ended; {left} on the cluster")
                    yield _result(ray, task, device, seconds if slow & {task, *task.after} else None)
            for task in [tasks[number] for number in clock.over()]:
                if task.ref in waiting:
                    ray.cancel(task.ref, force=True)  # which ends the worker, and what waits for it; nothing runs again
                    slow.add(task)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise InputError("--executor ray: Ray is not installed; pip install 'infoprune-bench[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    # Ray would run again for ever what its memory monitor ends.
    os.environ["RAY_task_oom_retries"] = str(RETRIES)  # noqa: SIM112 (its name as Ray has it)
    import ray

    own: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--address {address}: no Ray cluster there: {str(error).splitlines()[0]}") from error
    return ray


def _result(ray: Any, task: _Task, device: str, limit: float | None) -> Result:
    """What a trial's task gave; limit: the seconds that it, or one it waits for, was ended after."""
    try:
        return ray.get(task.ref)
    except ray.exceptions.RayError as error:
        if limit is not None:
            return late(task.trial, device, limit)
        cause: Any = error
        while isinstance(cause, ray.exceptions.RayTaskError):  # raised by the task, or by one that it waits for
            cause = cause.cause
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        if isinstance(cause, ray.exceptions.RayError):
            return failed(task.trial, device, "WorkerDied", f"on the cluster, {RETRIES + 1} times: {reason}")
        return failed(task.trial, device, type(cause).__name__, reason)  # Ray runs no such task again


class _Clock:
    """When tasks are over their time: each says when it starts, which may be long after it was submitted."""

    def __init__(self, ray: Any, seconds: float | None) -> None:
        self.ray, self.seconds = ray, seconds
        self.due: dict[int, float] = {}
        self.starts, self.heard = None, []  # the actor that tasks tell, and its answer to come
        if seconds is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            # Ray may begin with a node that has just died, or lose this process: then it starts another.
            how = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
            self.starts = ray.remote(**how)(_Starts).remote()
            self.heard = [self.starts.next.remote()]

    def hear(self, ref: Any) -> None:
        """A task has started, or started again because its worker or node died."""
        assert self.starts and self.seconds
        self.due[self.ray.get(ref)] = time.monotonic() + self.seconds
        self.heard = [self.starts.next.remote()]

    def patience(self) -> float | None:
        return max(0.0, min(self.due.values()) - time.monotonic()) if self.due else None

    def over(self) -> list[int]:
        """The numbers of tasks, if they still run, that are over their time; each is named once."""
        found = [number for number, due in self.due.items() if time.monotonic() >= due]
        for number in found:
            del self.due[number]
        return found


# --- what runs on the nodes -------------------------------------------------------------------------------


class _Starts:
    """Passes on which tasks have started."""

    def __init__(self) -> None:
        self.numbers: asyncio.Queue[int] = asyncio.Queue()

    async def say(self, number: int) -> None:
        self.numbers.put_nowait(number)

    async def next(self) -> int:
        return await self.numbers.get()


@functools.lru_cache(maxsize=1)
def _worker(make: Make, device: str) -> Worker:
    """This process's worker, kept for the tasks to come."""
    return make(device, 1, lambda text: None)


def _do(starts: Any, number: int, does: Callable[..., Any], make: Make, device: str, *given: Any) -> Any:
    """A task: says that it starts, if anybody listens, and does its part."""
    worker = _worker(make, device)
    if starts is not None:
        import ray

        ray.get(starts.say.remote(number))
    return does(worker, *given)


def _rank(worker: Worker, trial: Trial) -> Any:
    return worker.share(trial)


def _answer(worker: Worker, trial: Trial, part: tuple[int, int], ranking: Any) -> Any:
    if ranking is not None:
        worker.adopt(ranking)
    return worker.answer(trial, part)


def _measure(worker: Worker, trial: Trial, ranking: Any = None, *answers: Any) -> Result:
    if ranking is not None:
        worker.adopt(ranking)
    return worker.run(trial, [found for found in answers if found is not None])
