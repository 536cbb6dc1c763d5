"""Run trials as tasks on a Ray cluster. Without an address, Ray starts on this machine.

    for record, samples in run(trials, address="auto", needs=Needs(gpus=1)): ...

Each trial is a task with declared resources. Trials with a common ranking wait for the task that computes it, and read
it from Ray's object store. With `shards`, each trial also waits for tasks that answer a share of its questions. Ray
places tasks, and restarts them after the death of a worker or node; this module cancels tasks at the time limit. A
worker process keeps its model from task to task. Every node needs this package. The caller writes the records.
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
from typing import TYPE_CHECKING, Any

from harness.progress import Progress, silent
from harness.trials.executors import MakeWorker, Worker, failed, late, make_worker
from harness.types import InputError, Trial

if TYPE_CHECKING:
    from harness.trials.result import Result

RETRIES = 3  # restarts of a task whose worker or node died


@dataclass(frozen=True)
class Needs:
    """The resources of a running task, as Ray counts them. Memory is in bytes; None: not counted."""

    cpus: int = 1
    gpus: int = 0
    memory: int | None = None


@dataclass(frozen=True, eq=False)
class _Task:
    """A task on the cluster: its reference, its function, its trial, and the tasks that it waits for."""

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
    make: MakeWorker = make_worker,
    claim: Callable[[Trial], bool] = lambda trial: True,
    progress: Progress = silent,
) -> Iterator[Result]:
    """Yield the record and samples of each trial as it ends, in any order. A trial whose worker keeps dying fails.

    needs: the default is one core, and one GPU if the device is `cuda`. shards: tasks that share a trial's questions.
    seconds: time limit of each task without its time in the queue; if it passes, the trials that need the task fail.
    Raises InputError if Ray is not installed, or no cluster answers at the address.
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
                    progress(f"{task.trial}: ended; {left} on the cluster")
                    yield _result(ray, task, device, seconds if slow & {task, *task.after} else None)
            for task in [tasks[number] for number in clock.over()]:
                if task.ref in waiting:
                    ray.cancel(task.ref, force=True)  # kills the worker and fails the waiting tasks, without a restart
                    slow.add(task)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise InputError("--executor ray: Ray is not installed; run pip install 'infoprune-bench[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray sends no usage report
    # Without this limit, Ray would restart tasks that its memory monitor kills for ever.
    os.environ["RAY_task_oom_retries"] = str(RETRIES)  # noqa: SIM112 (Ray's own spelling)
    import ray

    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers: {str(error).splitlines()[0]}") from error
    return ray


def _result(ray: Any, task: _Task, device: str, limit: float | None) -> Result:
    """The result of a trial's task. `limit`: its seconds, if it or a task that it waits for passed them."""
    try:
        return ray.get(task.ref)
    except ray.exceptions.RayError as error:
        if limit is not None:
            return late(task.trial, device, limit)
        cause: Any = error
        while isinstance(cause, ray.exceptions.RayTaskError):  # raised by the task, or by a task that it waits for
            cause = cause.cause
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        if isinstance(cause, ray.exceptions.RayError):
            return failed(task.trial, device, "WorkerDied", f"on the cluster, {RETRIES + 1} times: {reason}")
        return failed(task.trial, device, type(cause).__name__, reason)  # Ray restarts no such task


class _Clock:
    """The time limits of tasks. Each task reports its start, which may be long after its submission."""

    def __init__(self, ray: Any, seconds: float | None) -> None:
        self.ray, self.seconds = ray, seconds
        self.due: dict[int, float] = {}
        self.starts, self.heard = None, []  # the actor that collects starts, and its pending answer
        if seconds is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            # Ray may choose a node that has just died, or lose the actor's process; then it restarts the actor.
            how = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
            self.starts = ray.remote(**how)(_Starts).remote()
            self.heard = [self.starts.next.remote()]

    def hear(self, ref: Any) -> None:
        """Note that a task has started, or restarted after the death of its worker or node."""
        assert self.starts and self.seconds
        self.due[self.ray.get(ref)] = time.monotonic() + self.seconds
        self.heard = [self.starts.next.remote()]

    def patience(self) -> float | None:
        return max(0.0, min(self.due.values()) - time.monotonic()) if self.due else None

    def over(self) -> list[int]:
        """The numbers of tasks whose time is over, whether or not they still run. Each is given once."""
        late_numbers = [number for number, due in self.due.items() if time.monotonic() >= due]
        for number in late_numbers:
            del self.due[number]
        return late_numbers


# --- code that runs on the nodes --------------------------------------------------------------------------


class _Starts:
    """An actor that passes on which tasks have started."""

    def __init__(self) -> None:
        self.numbers: asyncio.Queue[int] = asyncio.Queue()

    async def say(self, number: int) -> None:
        self.numbers.put_nowait(number)

    async def next(self) -> int:
        return await self.numbers.get()


@functools.lru_cache(maxsize=1)
def _worker(make: MakeWorker, device: str) -> Worker:
    """This process's worker, cached for later tasks."""
    return make(device, 1, silent)


def _do(starts: Any, number: int, does: Callable[..., Any], make: MakeWorker, device: str, *given: Any) -> Any:
    """The body of a task: report its start if a time limit is set, then call its function."""
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
    return worker.run(trial, [reply for reply in answers if reply is not None])
