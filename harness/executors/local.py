"""Runs trials in worker processes of this machine that are reused, and replaced when they die or are ended.

    for record, samples in run(trials, jobs=2, limits=TrialLimits(seconds=600), progress=print): ...

The workers send finished records back; the caller writes them. With `inline` there is no second process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.executors import Make, Result, failed, late, real
from harness.executors.feed import Feed
from harness.types import InputError, Trial

Progress = Callable[[Trial, str], None]
LOOK = 0.2  # seconds between looks at a worker's memory
START = 600.0  # seconds that a worker may take before it works at a trial, where trials have a time limit


@dataclass(frozen=True)
class TrialLimits:
    """What one trial may take: seconds, and bytes of resident memory of its worker process; None: no limit."""

    seconds: float | None = None
    memory: int | None = None

    def check(self) -> None:
        """Raise InputError for a limit that this system cannot watch."""
        if self.memory is not None and not Path("/proc/self/statm").is_file():
            raise InputError("--memory-limit: needs /proc, which this system does not have")


UNLIMITED = TrialLimits()


def run(
    trials: Iterable[Trial],
    *,
    device: str = "cpu",
    inline: bool = False,
    jobs: int = 1,
    limits: TrialLimits = UNLIMITED,
    make: Make = real,
    claim: Callable[[Trial], bool] = lambda trial: True,
    progress: Progress = lambda trial, text: None,
) -> Iterator[Result]:
    """Yield the record and samples of each trial as it ends, in order if there is one worker.

    device: with `cuda` the workers are spread over all GPUs, in turns. claim: asked right before a trial starts,
    which is left out if it says no. A worker that dies, or is ended for a limit, leaves a failure record behind.
    """
    feed = Feed(trials, claim)
    if inline:
        yield from _inline(feed, make, device, progress)
        return
    limits.check()
    workers = [_Process(make, place, jobs) for place in _places(device, jobs)]
    try:
        for worker in workers:
            worker.give(feed.take())
        while busy := [worker for worker in workers if worker.trial]:
            wait([worker.pipe for worker in busy], timeout=_patience(busy, limits))
            for worker in busy:
                result = worker.look(limits, progress)
                if result is not None:
                    yield result
                    worker.give(feed.take(near=worker.last))
    finally:
        for worker in workers:
            worker.stop()


def _inline(feed: Feed, make: Make, device: str, progress: Progress) -> Iterator[Result]:
    trial = feed.take()
    worker = make(device, 1, lambda text: progress(trial, text) if trial else None)
    while trial is not None:
        yield worker.run(trial)
        trial = feed.take(near=trial)


def _places(device: str, jobs: int) -> list[str]:
    """A device for each worker."""
    if device != "cuda" or jobs == 1:
        return [device] * jobs
    import torch

    return [f"cuda:{number % torch.cuda.device_count()}" for number in range(jobs)]


def _patience(busy: list[_Process], limits: TrialLimits) -> float | None:
    """Seconds until a worker has to be looked at although it says nothing."""
    due = [LOOK] if limits.memory is not None else []
    if limits.seconds is not None:
        due += [max(0.0, worker.due(limits.seconds) - time.monotonic()) for worker in busy]
    return min(due, default=None)


class _Process:
    """A worker process, started with its first trial."""

    def __init__(self, make: Make, device: str, jobs: int) -> None:
        self.make, self.device, self.jobs = make, device, jobs
        self.process: Any = None
        self.pipe: Any = None
        self.trial: Trial | None = None  # the one it works on
        self.last: Trial | None = None
        self.given = self.began = 0.0  # when it got that trial, and when it said that it works at it; 0: not yet

    def give(self, trial: Trial | None) -> None:
        """Have it run this trial; without one it rests."""
        self.trial, self.given, self.began = trial, time.monotonic(), 0.0
        if trial is None:
            return
        self.last = trial
        if self.process is None:
            self._start()
        with suppress(OSError):  # if it died while idle, the next look finds that out
            self.pipe.send(trial)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.make, self.device, self.jobs), daemon=True)
        process.start()
        theirs.close()
        self.process, self.pipe = process, pipe

    def due(self, seconds: float) -> float:
        """When its time is over, if a trial has so many seconds."""
        return self.began + seconds if self.began else self.given + START

    def look(self, limits: TrialLimits, progress: Progress) -> Result | None:
        """What it has to say: its trial's record, if that ended one way or another."""
        assert self.trial
        try:
            while self.pipe.poll():
                kind, content = self.pipe.recv()
                self.began = self.began or time.monotonic()
                if kind == "result":
                    return content
                progress(self.trial, content)
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
                self.trial, self.device, "MemoryLimit", f"used {used} bytes of memory, more than {limits.memory}"
            )
        return None

    def _died(self) -> Result:
        """The record of the trial during which it died; the next gets a new one."""
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
        """End the worker. Idle, it leaves when the pipe closes; in a trial, nobody waits for that any more."""
        if self.process is None:
            return
        if self.trial is None:
            self.pipe.close()
            self.process.join(5)
        self._kill()


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process has in use, by default this one; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _serve(pipe: Connection, make: Make, device: str, jobs: int) -> None:
    """The worker process: trials in, records out, until the pipe closes at the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    worker = make(device, jobs, lambda text: pipe.send(("progress", text)))
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            trial = pipe.recv()
            pipe.send(("progress", "start"))
            pipe.send(("result", worker.run(trial)))
