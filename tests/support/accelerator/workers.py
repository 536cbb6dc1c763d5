"""Workers of a sweep on the fake accelerator, each in a process of its own, which installs it first."""

from __future__ import annotations

from typing import Any

from harness.progress import Progress
from harness.trials.executors import Worker, make_worker
from tests.support.accelerator import installed

_entered: list[Any] = []  # stays installed as long as the process lives


def make(device: str, jobs: int, progress: Progress) -> Worker:
    _entered.append(installed(devices=2))
    _entered[-1].__enter__()
    return make_worker(device, jobs, progress)
