"""Runs trials one after the other in a worker process that is reused, and replaced when it dies.

    for record, samples in run(trials, device="cpu", progress=print): ...

The worker sends finished records back; the caller writes them. With `inline` there is no second process.
"""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pyarrow
import pyarrow.parquet

from harness.types import Trial

Progress = Callable[[str], None]
Result = tuple[dict[str, Any], pyarrow.Table | None]


def run(
    trials: Iterable[Trial], *, device: str = "cpu", inline: bool = False, progress: Progress = lambda text: None
) -> Iterator[Result]:
    """Yield the record and samples of each trial, in order. A worker that dies leaves a failure record behind."""
    if inline:
        from harness.runner import Worker

        yield from map(Worker(device, progress).run, trials)
        return
    process: _Process | None = None
    try:
        for trial in trials:
            process = process or _Process(device)
            try:
                yield process.run(trial, progress)
            except (EOFError, ConnectionError):
                yield process.obituary(trial), None
                process = None
    finally:
        if process:
            process.stop()


class _Process:
    def __init__(self, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.device = device
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, device), daemon=True)
        self.process.start()
        theirs.close()
        self.idle = True

    def run(self, trial: Trial, progress: Progress) -> Result:
        self.idle = False
        self.pipe.send(trial)
        while True:
            kind, content = self.pipe.recv()
            if kind == "progress":
                progress(content)
            else:
                made, samples = content
                self.idle = True
                return made, None if samples is None else pyarrow.parquet.read_table(io.BytesIO(samples))

    def obituary(self, trial: Trial) -> dict[str, Any]:
        """A failure record for the trial during which the worker died."""
        from harness.runner import blank, fail

        self.process.join()
        code = self.process.exitcode
        reason = f"killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        made = blank(trial, self.device)
        fail(made, "WorkerDied", f"the worker process was {reason}; out of memory is a common cause", "worker")
        return made

    def stop(self) -> None:
        """End the worker. Idle, it leaves when the pipe closes; in a trial, nobody waits for that any more."""
        self.pipe.close()
        if self.idle:
            self.process.join(5)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, device: str) -> None:
    """The worker process: trials in, records out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    from harness.runner import Worker

    worker = Worker(device, lambda text: pipe.send(("progress", text)))
    while True:
        try:
            trial = pipe.recv()
        except EOFError:
            return
        made, samples = worker.run(trial)
        buffer = None
        if samples is not None:
            sink = io.BytesIO()
            pyarrow.parquet.write_table(samples, sink)
            buffer = sink.getvalue()
        pipe.send(("result", (made, buffer)))
