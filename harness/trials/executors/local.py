"""Run trials in worker processes of this machine. Processes are reused, and replaced after they die or are killed.

    with workers("cpu", jobs=2) as begun:
        for record, samples in run(trials, begun, limits=TrialLimits(seconds=600), progress=print): ...

The workers send finished records back; the caller writes them. `inline` runs trials in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.progress import Progress, silent
from harness.trials.executors import MakeWorker, failed, late, make_worker
from harness.trials.executors.feed import Feed
from harness.types import InputError, Trial

if TYPE_CHECKING:
    from harness.trials.result import Result

LOOK = 0.2  # seconds between checks of a worker's memory
START = 600.0  # seconds until a worker must begin its trial, if trials have a time limit


@dataclass(frozen=True)
class TrialLimits:
    """Limits of one trial: seconds, and bytes of resident memory of its worker process. None: no limit."""

    seconds: float | None = None
    memory: int | None = None

    def check(self) -> None:
        """Raise InputError for a limit that this system cannot measure."""
        if self.memory is not None and not Path("/proc/self/statm").is_file():
            raise InputError("--memory-limit: needs /proc, which this system does not have")


UNLIMITED = TrialLimits()


@contextmanager
def workers(device: str = "cpu", jobs: int = 1, make: MakeWorker = make_worker) -> Iterator[list[Process]]:
    """So many worker processes, stopped at the end. They load their libraries while the caller still checks the board.

    device: `cuda` spreads the workers over all GPUs, in turn.
    """
    begun = [Process(make, place, jobs) for place in _places(device, jobs)]
    try:
        for worker in begun:
            worker.start()
        yield begun
    finally:
        for worker in begun:
            worker.stop()


def loaded(begun: Sequence[Process]) -> None:
    """Wait until these workers have loaded their libraries, or died; what is timed before would be slowed by them."""
    for worker in begun:
        with suppress(EOFError, ConnectionError):
            if worker.pipe.poll(START):
                worker.pipe.recv()


def run(
    trials: Iterable[Trial],
    begun: Sequence[Process],
    *,
    limits: TrialLimits = UNLIMITED,
    claim: Callable[[Trial], bool] = lambda trial: True,
    progress: Progress = silent,
) -> Iterator[Result]:
    """Yield the record and samples of each trial as it ends. With one worker, trials keep their order.

    claim: called right before a trial starts; a trial that it refuses is skipped. A worker that dies, or is killed at a
    limit, gives a failure record. Raises InputError for a limit that this system cannot measure.
    """
    limits.check()
    feed = Feed(trials, claim)
    for worker in begun:
        worker.give(feed.take())
    while busy := [worker for worker in begun if worker.trial]:
        wait([worker.pipe for worker in busy], timeout=_patience(busy, limits))
        for worker in busy:
            result = worker.look(limits, progress)
            if result is not None:
                yield result
                worker.give(feed.take(near=worker.last))


def inline(
    trials: Iterable[Trial],
    *,
    device: str = "cpu",
    make: MakeWorker = make_worker,
    claim: Callable[[Trial], bool] = lambda trial: True,
    progress: Progress = silent,
) -> Iterator[Result]:
    """The same in this process, without limits."""
    feed = Feed(trials, claim)
    trial = feed.take()
    worker = make(device, 1, lambda text="", **counts: progress(f"{trial}: {text}"))
    while trial is not None:
        yield worker.run(trial)
        trial = feed.take(near=trial)


def _places(device: str, jobs: int) -> list[str]:
    """A device for each worker."""
    if device != "cuda" or jobs == 1:
        return [device] * jobs
    import torch

    return [f"cuda:{number % max(1, torch.cuda.device_count())}" for number in range(jobs)]


def _patience(busy: list[Process], limits: TrialLimits) -> float | None:
    """Seconds until the next check of a silent worker; None: no check is needed."""
    due = [LOOK] if limits.memory is not None else []
    if limits.seconds is not None:
        due += [max(0.0, worker.due(limits.seconds) - time.monotonic()) for worker in busy]
    return min(due, default=None)


class Process:
    """A worker process. One that died is started again with the next trial."""

    def __init__(self, make: MakeWorker, device: str, jobs: int) -> None:
        self.make, self.device, self.jobs = make, device, jobs
        self.process: Any = None
        self.pipe: Any = None
        self.trial: Trial | None = None  # its current trial
        self.last: Trial | None = None
        self.given = self.began = 0.0  # times of handing over and start of that trial; 0: not yet

    def give(self, trial: Trial | None) -> None:
        """Let the process run this trial; None leaves it idle."""
        self.trial, self.given, self.began = trial, time.monotonic(), 0.0
        if trial is None:
            return
        self.last = trial
        if self.process is None:
            self.start()
        with suppress(OSError):  # if it died while idle, the next `look` notices
            self.pipe.send(trial)

    def start(self) -> None:
        """Start the process, which loads what it needs and waits for a trial."""
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.make, self.device, self.jobs), daemon=True)
        with _interrupts_ignored():
            process.start()
        theirs.close()
        self.process, self.pipe = process, pipe

    def due(self, seconds: float) -> float:
        """The time at which the limit of this many seconds passes."""
        return self.began + seconds if self.began else self.given + START

    def look(self, limits: TrialLimits, progress: Progress) -> Result | None:
        """Read its messages and check the limits. Returns the record once its trial has ended, else None."""
        assert self.trial
        try:
            while self.pipe.poll():
                kind, content = self.pipe.recv()
                self.began = self.began or time.monotonic()
                if kind == "result":
                    return content
                progress(f"{self.trial}: {content}")
        except (EOFError, ConnectionError):
            return self._died()
        if limits.seconds is not None and time.monotonic() > self.due(limits.seconds):
            self._kill()
            if self.began:
                return late(self.trial, self.device, limits.seconds)
            return failed(self.trial, self.device, "TimeLimit", f"its worker did not start within {START:g} s")
        if limits.memory is not None and (used := resident(self.process.pid)) > limits.memory:
            self._kill()
            return failed(
                self.trial,
                self.device,
                "MemoryLimit",
                f"used {used} bytes of memory, more than {limits.memory}",
            )
        return None

    def _died(self) -> Result:
        """The failure record of the trial in which it died. The next trial gets a new process."""
        assert self.trial
        self.process.join()
        code = self.process.exitcode
        self._kill()
        reason = f"killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        message = f"the worker process was {reason}; out of memory is a common cause"
        return failed(self.trial, self.device, "WorkerDied", message)

    def _kill(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process = self.pipe = None

    def stop(self) -> None:
        """End the process. An idle one exits when the pipe closes; one that is busy or never had a trial is killed."""
        if self.process is None:
            return
        if self.trial is None and self.last is not None:
            self.pipe.close()
            self.process.join(5)
        self._kill()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that begins inside never hears Ctrl-C, which reaches the whole group: its parent ends it."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may ask for this
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def resident(pid: int | str = "self") -> int:
    """Bytes of resident memory of a process, by default this one; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _serve(pipe: Connection, make: MakeWorker, device: str, jobs: int) -> None:
    """The main loop of a worker process: receive trials and send records until the parent closes the pipe."""
    worker = make(device, jobs, lambda text="", **counts: pipe.send(("progress", text)))
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        pipe.send(("progress", "loaded"))
        while True:
            trial = pipe.recv()
            pipe.send(("progress", "start"))
            pipe.send(("result", worker.run(trial)))
