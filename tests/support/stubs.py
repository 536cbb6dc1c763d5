"""A worker that computes nothing, for what is about sweeps and not about models; and a board for it.

Its records are what the trial says and nothing else, so that any two runs can be compared byte for byte.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.progress import Progress, silent
from harness.records.record import Cost, MethodFacts, Record
from harness.trials import spec, staleness
from harness.trials.result import Result
from harness.types import CalibrationSpec, Questions, Trial
from tests.support.stored import samples

PHASES = ("load", "calibration", "ranking", "surgery", "metric accuracy")


class Stub:
    """Names the phases of a trial; seeds beyond 90 go wrong in their own ways."""

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        samples([0.0] * 3)  # what this imports is no part of a trial's time

    def run(self, trial: Trial, answers: Sequence[str] = ()) -> Result:
        for phase in PHASES:
            self.progress(phase)
        if trial.seed == 95:
            raise RuntimeError("a stub with a fault")
        if trial.seed == 97:
            time.sleep(300)
        if trial.seed == 98:
            os.kill(os.getpid(), signal.SIGKILL)
        if trial.seed == 99:
            held = bytearray(os.urandom(1 << 20)) * 400
            time.sleep(300)
            del held
        answers = samples([(trial.seed + i) % 2 for i in range(18)])
        return Result(record_of(trial), answers)

    def share(self, trial: Trial) -> tuple[str, ...]:
        return trial.ranking

    def adopt(self, ranking: tuple[str, ...]) -> None:
        self.ranking = ranking

    def answer(self, trial: Trial, part: tuple[int, int]) -> str:
        return f"{trial.id} {part[0]} of {part[1]}"


def make(device: str, jobs: int, progress: Progress) -> Stub:
    return Stub(progress)


def record_of(trial: Trial) -> Record:
    """The record of a trial, always the same."""
    accuracy = {task: {"accuracy": 0.5} for task in ("mini_gqa", "mini_textvqa", "mini_vqav2")}
    return Record(
        trial=trial,
        contestant=MethodFacts(trial.method, trial.variant, "reference", "none"),
        metrics={"accuracy": {"mean": 0.5, "tasks": accuracy}},
        cost=Cost(total_s=0.0),
        hashes=staleness.hashes(trial),
    )


class Trials(spec.Board):
    """A board of one trial for each of these seeds and budgets, so that no method has to be imported."""

    seeds: tuple[int, ...]

    def trials(self) -> list[Trial]:
        first = Trial(
            board=self.name, model=self.model, method="random", options={}, scope="vision", units="both", budget=0.5,
            seed=0, questions=Questions(self.tasks, limit=6), metrics=("accuracy",),
            calibration=CalibrationSpec(8, self.tasks),
        )  # fmt: skip
        return [replace(first, seed=seed, budget=budget) for seed in self.seeds for budget in self.budgets]


def board(*seeds: int, budgets: tuple[float, ...] = (0.75, 0.5), **changes: Any) -> Trials:
    random = spec.Contestant(method="random")
    return Trials(**{"name": "made", "model": "mini-qwen2-vl", "methods": (random,), "budgets": budgets,
                  "tasks": ("mini_gqa",), "seeds": seeds, **changes})  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """What a sweep left in a board's folder, but for its log and claims."""
    kept = [file for file in sorted(folder.iterdir()) if file.name not in (".claims", "sweep.log")]
    return {file.name: file.read_bytes() for file in kept}
