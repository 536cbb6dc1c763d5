"""Run one trial, from model to record: prune, measure, and retry with smaller batches after out-of-memory.

worker = Worker("cpu"); record, samples = worker.run(trial)
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness import families, registry, tasks
from harness.machine.facts import facts
from harness.machine.memory import begin_peak, out_of_memory, peak, release
from harness.machine.phases import STEPS, PhaseTimer
from harness.progress import Progress, silent
from harness.records.record import Cost, Failure, Record
from harness.trials import staleness
from harness.trials.caches import ModelCache
from harness.trials.context import Context
from harness.trials.methods import per_budget
from harness.trials.pruner import BATCH, Pruned, Pruner, SharedRanking
from harness.trials.result import Result, code, contestant
from harness.types import ANSWERED, Trial

log = logging.getLogger(__name__)

SHRINKS = ("calibration", "ranking", "surgery")  # phases that are retried with half the batch


@dataclass(frozen=True)
class SharedAnswers:
    """The answers of this plan's model to some of the questions, by batch. Workers send them to each other."""

    plan: str
    replies: Mapping[Any, Any]


class Worker:
    """Runs trials on one device, one after the other."""

    def __init__(self, device: str = "cpu", progress: Progress = silent) -> None:
        self.device, self.progress = device, progress
        self._values = ModelCache()  # answers and counts of models, for the metrics
        self.pruner = Pruner(device, progress, self._values)

    def run(self, trial: Trial, answers: Sequence[SharedAnswers] = ()) -> Result:
        """The record of a trial and its samples. A failed trial gives a record too; an interrupt is passed on.

        answers: results of other workers' `answer`. This worker answers the rest of the questions.
        """
        watch = PhaseTimer(self.progress)
        begin_peak(self.device)
        while (result := self._attempt(trial, watch, answers)) is None:
            self.pruner.halve()  # not in the handler, where the error would still hold the memory
            release()
        record = result.record
        cost = replace(
            record.cost,
            **{f"{step}_s": watch.whole[step] for step in STEPS if step in watch.whole},
            calibration_batch=self.pruner.batch if self.pruner.batch < BATCH else None,
            phases_s=watch.own,
            total_s=time.perf_counter() - watch.start,
            peak_memory_bytes=record.cost.peak_memory_bytes or peak(self.device),
        )
        return result._replace(record=replace(record, cost=cost))

    def _attempt(self, trial: Trial, watch: PhaseTimer, answers: Sequence[SharedAnswers]) -> Result | None:
        """The record without its phase times, and the samples. None if a smaller batch may help."""
        hashes: dict[str, str] = {}
        env = facts(self.device)
        try:
            with watch:
                with watch("load"):
                    hashes |= staleness.hashes(trial)
                    dense = self.pruner.load(trial)
                    hashes["weights"] = dense.weights_hash
                    env = {**env, "attention": families.attention(dense.model)}
                    if dense.notes:
                        env["notes"] = list(dense.notes)
                pruned = self.pruner.prune(trial, watch)
                hashes |= pruned.hashes
                watch.set("peak_memory_bytes", peak(self.device))  # before the metrics run: the peak of pruning alone
                replies = {
                    key: reply for part in answers if part.plan == hashes["plan"] for key, reply in part.replies.items()
                }
                context = Context(trial.reference_input, self.progress, replies, self._values)
                metrics = self._measure(trial, pruned, context, watch)
                with watch("hashes"):
                    hashes["data"] = tasks.data_hash(trial.questions)[:16]
                record = Record(
                    trial=trial,
                    contestant=contestant(trial),
                    plan=pruned.plan,
                    metrics=metrics,
                    cost=Cost(**watch.figures),
                    log=pruned.log,
                    env=env,
                    code=code(),
                    hashes=hashes,
                )
                with watch("record"):
                    # Fails, for example, for a NaN or a tensor in a method's log.
                    json.dumps(record.to_json(), allow_nan=False)
                return Result(record, context.samples)
        except Exception as error:  # the sweep continues; the record holds the error
            if out_of_memory(error) and watch.phase in SHRINKS and self.pruner.batch > 1:
                return None
            failed = Failure(type(error).__name__, str(error)[:2000], watch.phase)
            cost = Cost(**watch.figures)
            return Result(Record(trial, contestant(trial), failed, cost=cost, env=env, code=code(), hashes=hashes))

    def _measure(self, trial: Trial, pruned: Pruned, context: Context, watch: PhaseTimer) -> dict[str, dict[str, Any]]:
        """The result of each metric of the trial, by name."""
        metrics: dict[str, dict[str, Any]] = {}
        seconds: dict[str, float] = {}
        watch.set("metrics_s", seconds)
        for name in trial.metrics:
            measure = registry.metric(name)
            with watch(f"metric {name}"):
                start = time.perf_counter()
                metrics[name] = measure(pruned.vlm, pruned.dense, trial, context)
                seconds[name] = time.perf_counter() - start
                _check_json(name, metrics[name])
        if trial.currency == "latency" and "latency" in metrics:
            measured = 1 / metrics["latency"]["speedup"]
            time_kept = {"requested": trial.budget, "predicted": pruned.plan.achieved, "measured": measured}
            metrics["latency"] = {**metrics["latency"], "kept": time_kept}
        return metrics

    def prune(self, trial: Trial) -> Pruned:
        """The models of a trial, without measurements. Errors are passed on."""
        return self.pruner.prune(trial, PhaseTimer(self.progress))

    # --- what workers share -----------------------------------------------------------------------------------

    def share(self, trial: Trial) -> SharedRanking | None:
        """The dense model's ranking for this trial and others with the same key, for other workers to `adopt`.

        None for methods that rank per budget, and if ranking fails: then each trial's own record holds the error.
        """
        try:
            return self.pruner.rank(trial, PhaseTimer(self.progress))
        except Exception as error:
            _warn("ranking", trial, error)
            return None

    def adopt(self, ranking: SharedRanking) -> None:
        """Use another worker's ranking for the trials with its key."""
        self.pruner.adopt(ranking)

    def answer(self, trial: Trial, part: tuple[int, int]) -> SharedAnswers | None:
        """The pruned model's answers to one share of the questions, for another worker's `run`. `part`: (number, of).

        None if workers cannot share the model (tuning, a ranking per budget), if no metric needs answers, and after
        an error: then the trial's own run answers all questions or records the error.
        """
        if trial.tuning.method != "none" or not set(ANSWERED) & set(trial.metrics):
            return None
        if per_budget(trial):
            return None
        first = "fidelity" in trial.metrics
        try:
            pruned = self.prune(trial)
            replies = tasks.answer_share(pruned.vlm, trial.questions, part, first=first)
        except Exception as error:
            _warn("answers", trial, error)
            return None
        return SharedAnswers(pruned.hashes["plan"], replies)


def share_processor(jobs: int) -> None:
    """Limit torch's threads to this worker's share of the cores."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // jobs)))


def _check_json(metric: str, result: Mapping[str, Any]) -> None:
    for key, value in result.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metric {metric}: {key} is no plain JSON value: {error}") from error


def _warn(what: str, trial: Trial, error: Exception) -> None:
    log.warning(f"{trial.method}: no {what} to share ({type(error).__name__}: {error}); the trial makes its own")
