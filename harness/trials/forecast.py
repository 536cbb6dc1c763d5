"""How long a sweep takes, before it runs: from the board's records, or from a few steps of its model on this machine.

    seconds = estimate(board, todo, "cpu")

`sweep` and `sweep --dry-run` both say it.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import families, registry, tasks
from harness.machine import devices
from harness.trials.methods import methods_of, per_budget
from harness.trials.preflight import fetched
from harness.types import ANSWERED, DENSE, VLM, InputError, Questions, Trial, Tuning

if TYPE_CHECKING:
    from harness.records.record import Record
    from harness.trials.spec import Board
    from harness.trials.sweep import Todo

log = logging.getLogger(__name__)

LIGHT = 2e9  # bytes of weights up to which a model is loaded for an estimate
FEW = 16  # questions of each task that are asked for it, and of a training batch
WARM = 2  # rounds before those that are timed
RECOVERY = 4  # passes over the calibration questions of a recovery that trains nothing


@dataclass(frozen=True)
class Rates:
    """Seconds of the dense model on this machine, measured."""

    answer: float  # a question of the board, with its share of scoring
    forward: float  # a calibration question, without gradients
    learn: float  # a calibration question, forward and back
    timed: float  # one call of each timed stage, at every batch size
    count: float  # counting the multiply-adds once
    gpu: bool = False  # what is timed with CUDA graphs is left out elsewhere


def estimate(board: Board, todo: Todo, device: str | None = "cpu", jobs: int = 1) -> float | None:
    """The seconds until all is done: from the board's records of each recovery, or from a few steps of the model here.

    None if neither is to be had: without records of each recovery, for a model or questions that must be fetched first,
    for random or more than `LIGHT` bytes of weights, for a model that fails, and for other machines (`device` is None).
    Call `preflight.check` before: what it refuses has no estimate.
    """
    seconds = todo.seconds
    if seconds is None and todo.trials and device is not None and not fetched(board):
        from harness.machine.memory import release

        devices.check_device(device, "--device")
        try:
            seconds = probe(board, todo, device)
        except InputError:
            raise
        except Exception as error:  # the record of the trial will hold the error
            log.info("no estimate: %s: %s", type(error).__name__, error)
        release()  # the trials need the memory
    return None if seconds is None else seconds / min(jobs, len(todo.trials) or 1)


def from_records(todo: Sequence[Trial], finished: Sequence[Record]) -> float | None:
    """The seconds of these trials, by the means of finished ones with the recovery and, if any, the method.

    None if a recovery has none; one at another rate takes as long. A ranking serves several trials and is billed to
    one, so a median would leave it out.
    """

    def keys(trial: Trial) -> tuple[Any, Any]:
        recovery = replace(trial.tuning, rate=Tuning.rate)
        return (recovery, trial.method), recovery

    known: dict[Any, list[float]] = {}
    for stored in finished:
        for key in keys(stored.trial):
            known.setdefault(key, []).append(stored.cost.total_s or 0.0)
    if not all(keys(trial)[1] in known for trial in todo):
        return None
    return sum(statistics.fmean(next(known[key] for key in keys(trial) if key in known)) for trial in todo)


def probe(board: Board, todo: Todo, device: str) -> float | None:
    """The seconds of these trials, from a few steps of the model; None if that would itself take long."""
    weights = sum(file.stat().st_size for file in Path(registry.model(board.model)).glob("*.safetensors"))
    if board.random_weights or weights > LIGHT:
        return None
    rates = measured_rates(board, todo.trials, device)
    rankings = {
        (trial.ranking, (trial.scope, trial.units, trial.budget) if per_budget(trial) else None): trial
        for trial in todo.trials
    }
    return sum(_trial(board, trial, rates) for trial in todo.trials) + sum(
        _ranking(trial, rates) for trial in rankings.values()
    )


def _trial(board: Board, trial: Trial, rates: Rates) -> float:
    """The seconds of a trial without its ranking. Half of a pruned model's saving counts as time saved."""
    slower = (1 + trial.budget) / 2
    asked = tasks.count(board.questions) * bool({"accuracy", "fidelity"} & set(trial.metrics))
    blind = 2 * tasks.count(board.questions) * ("floors" in trial.metrics)  # blank and shuffled images
    seconds = rates.answer * slower * (asked + blind) + rates.count * (trial.method != DENSE)
    if "latency" in trial.metrics:
        modes = [mode for mode in trial.latency.modes if mode != "graphs" or rates.gpu]
        settings = len(modes) * (1 + len(trial.latency.images))
        seconds += settings * (WARM + trial.latency.repeats) * rates.timed * (1 + slower)
    for stage in trial.tuning.stages:
        if stage.trains:  # the steps of a method's own training are taken off these
            teacher = rates.forward if stage.loss != "answers" else 0.0
            seconds += stage.steps * stage.batch * (rates.learn + teacher)
        else:
            seconds += RECOVERY * trial.calibration.samples * rates.forward
    return seconds


def _ranking(trial: Trial, rates: Rates) -> float:
    """The seconds of a method's statistics: a pass with gradients, and its own training unless a recovery pays it."""
    if trial.method == DENSE:
        return 0.0
    own = sum(method.steps(options) for method, options in methods_of(trial))
    paid = any(stage.trains for stage in trial.tuning.stages)
    return rates.learn * (trial.calibration.samples + FEW * own * (not paid))


# --- on this machine ------------------------------------------------------------------------------------------


def measured_rates(board: Board, trials: Sequence[Trial], device: str) -> Rates:
    """The rates of the board's model on this device, from a few steps each."""
    import torch

    from harness.machine.timing import seconds
    from harness.metrics import _counting
    from harness.trials.context import Context

    asked: set[str] = {metric for trial in trials for metric in trial.metrics}
    vlm = families.load(registry.model(board.model), dtype=board.dtype, device=device, **vars(board.loading))
    context, place = Context(board.reference_input), torch.device(device)

    def fastest(call: Callable[[], Any]) -> float:
        with torch.no_grad():
            return seconds(call, place, min)

    timed = 0.0
    if "latency" in asked:
        timed = sum(fastest(call) for batch in board.latency.batches for call in context.stages(vlm, batch).values())
    answer = _answer(vlm, board.questions) if asked & set(ANSWERED) else 0.0
    count = _seconds(lambda: _counting.count(vlm.model, context.stages(vlm)["all"]), place)
    return Rates(answer, *_calibration(vlm, trials, place), timed, count, gpu=place.type == "cuda")


def _answer(vlm: VLM, questions: Questions) -> float:
    """The seconds that this model takes for a question, whose image may be smaller than the reference input."""
    few = replace(questions, limit=min(questions.limit or FEW, FEW))
    return _seconds(lambda: tasks.answer(vlm, few), vlm.model.device) / tasks.count(few)


def _calibration(vlm: VLM, trials: Sequence[Trial], device: Any) -> tuple[float, float]:
    """The seconds of a calibration question, forward only, and forward and back through the weights."""
    import torch

    from harness.statistics.calibration import Calibration

    trial = next((trial for trial in trials if trial.method != DENSE), None)
    if trial is None:
        return 0.0, 0.0
    number = max(len(trial.calibration_questions.tasks), min(FEW, trial.calibration.samples))
    samples = tasks.samples(trial.calibration_questions, number, trial.seed)
    (batch,) = Calibration(vlm, samples, len(samples)).batches()
    model: Any = vlm.model.requires_grad_(True)

    def learned() -> None:
        model(**batch, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    def read() -> None:
        with torch.no_grad():
            model(**batch, use_cache=False)

    return _seconds(read, device) / number, _seconds(learned, device) / number


def _seconds(call: Callable[[], Any], device: Any) -> float:
    """The seconds of a call: the better of two, because other work may disturb one, after one that warms up."""
    from harness.machine.timing import wait

    taken = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        wait(device)()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
