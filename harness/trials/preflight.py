"""What is known of a sweep before it runs, without a pass of its model: whether it can work, and how long it takes.

    for note in check(board, todo.trials, "cpu"): print(note)
    seconds = estimate(board, todo, "cpu")

`sweep` and `sweep --dry-run` both use these two.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from harness import families, registry, tasks
from harness.machine import devices
from harness.pruning import solver
from harness.types import VLM, Budget, InputError, Loading, Questions, Trial

if TYPE_CHECKING:
    from harness.trials.spec import Board
    from harness.trials.sweep import Todo

log = logging.getLogger(__name__)

LIGHT = 2e9  # bytes of weights up to which a model is loaded for an estimate
FEW = 16  # questions of each task that are asked for it


def fetched(board: Board) -> list[str]:
    """The model and question sets that a run needs from the hub; it fetches those that the Hugging Face cache lacks."""
    source = registry.model(board.model)
    downloads = [] if Path(source).is_dir() else [f"model {source} at revision {board.revision or 'main'}"]
    downloads += tasks.fetched(board.questions)
    for entry in board.methods:
        downloads += tasks.fetched(board.calibration_of(entry).questions)
    return list(dict.fromkeys(downloads))


# --- whether it can work --------------------------------------------------------------------------------------


def check(board: Board, trials: Sequence[Trial], device: str | None = "cpu", *, fetch: bool = True) -> tuple[str, ...]:
    """What of the model's checkpoint is left out or filled in, a line each.

    Raises InputError if these trials cannot work: torchao is missing, the checkpoint has a gap, its attention does not
    run on this device, or a budget is smaller than one unit in each block. `device` None: other machines. Without
    `fetch`, a model of the hub is not looked at.
    """
    _check_bits(board, trials, here=device is not None)
    source = registry.model(board.model)
    if not trials or not (fetch or Path(source).is_dir()):
        return ()
    families.check(source, revision=board.revision, random_weights=board.random_weights)
    if device is not None:
        families.check_attention(board.attention, board.dtype, device)
    state = families.checkpoint_hash(source, board.revision)
    shapes = replace(board.loading, random_weights=True, device_map=None, attention="sdpa")
    vlm = _outline(source, shapes, state)
    _check_budgets(board, trials, vlm)
    return vlm.notes


@functools.lru_cache(maxsize=1)
def _outline(source: str, loading: Loading, state: str | None) -> VLM:
    """The model without weights. `state`: a hash of its files, which may change between two calls."""
    return families.load(source, device="meta", **vars(loading))


def _check_bits(board: Board, trials: Sequence[Trial], here: bool) -> None:
    fewer = next((trial.tuning.weights for trial in trials if trial.tuning.weights != "same"), None)
    where = f"board {board.name}: tuning: weights: {fewer}"
    if fewer and here and find_spec("torchao") is None:
        raise InputError(f"{where} needs torchao; pip install 'infoprune-bench[quantise]'")
    if fewer and board.dtype == "float16":
        raise InputError(f"{where}: its sums overflow in dtype: float16; use bfloat16 or float32")


def _check_budgets(board: Board, trials: Sequence[Trial], vlm: VLM) -> None:
    from harness.trials.context import Context
    from harness.trials.pruner import in_params

    pruned = [trial for trial in trials if trial.budget < 1 and trial.currency != "latency"]  # times are not known yet
    if not pruned:
        return
    extents = Context(board.reference_input).extents(vlm)
    for trial in {(trial.scope, trial.units, trial.budget): trial for trial in pruned}.values():
        align = board.align if isinstance(board.align, int) else 1
        asked = Budget(trial.scope, trial.budget, trial.units, extents, align)
        try:
            solver.check(vlm, in_params(asked) if board.currency == "params" else asked)
        except InputError as error:
            raise InputError(f"board {board.name}: budgets: {str(error).removeprefix('budget: ')}") from error


# --- how long it takes ----------------------------------------------------------------------------------------


def estimate(board: Board, todo: Todo, device: str | None = "cpu", jobs: int = 1) -> float | None:
    """The seconds until all is done: from the board's records, or else from a few answers of the model here.

    None if neither is to be had: without records, for a model or questions that must be fetched first, for random or
    more than `LIGHT` bytes of weights, for a model that fails, and for other machines (`device` is None). Call `check`
    before: what it refuses has no estimate.
    """
    seconds = todo.seconds
    if seconds is None and todo.trials and device is not None and not fetched(board):
        devices.check_device(device, "--device")
        try:
            seconds = probe(board, todo, device)
        except InputError:
            raise
        except Exception as error:  # the record of the trial will hold the error
            log.info("no estimate: %s: %s", type(error).__name__, error)
    return None if seconds is None else seconds / jobs


def probe(board: Board, todo: Todo, device: str) -> float | None:
    """The seconds of these trials, from a few prefills and answers; None if that would itself take long."""
    weights = sum(file.stat().st_size for file in Path(registry.model(board.model)).glob("*.safetensors"))
    if board.random_weights or weights > LIGHT:
        return None
    import torch

    from harness.machine.memory import release
    from harness.machine.timing import seconds
    from harness.trials.context import Context

    vlm = families.load(registry.model(board.model), dtype=board.dtype, device=device, **vars(board.loading))
    batch = max(board.latency.batches)
    call = Context(board.reference_input).stages(vlm, batch)["all"]
    prefill = seconds(call, torch.device(device), min) / batch
    # Each timed round runs both models' stages.
    settings = len(board.latency.modes) * (1 + len(board.latency.images))
    rounds = 4 * settings * board.latency.repeats * sum(board.latency.batches) * ("latency" in board.metrics)
    asked = tasks.count(board.questions) * bool({"accuracy", "floors", "fidelity"} & set(board.metrics))
    answer = _seconds_per_answer(vlm, board.questions) if asked else prefill
    del vlm, call
    release()  # the trials need the memory
    # A question of calibration or training is run forward and back, about three times a prefill.
    rankings = {trial.ranking: trial.calibration.samples for trial in todo.trials if trial.method != "none"}
    trained = sum(trial.tuning.steps * trial.tuning.batch for trial in todo.trials if trial.tuning.trains)
    learned = 3 * (sum(rankings.values()) + trained)
    return len(todo.trials) * (prefill * rounds + answer * asked) + answer * learned


def _seconds_per_answer(vlm: VLM, questions: Questions) -> float:
    """The seconds that this model takes for a question, whose image may be smaller than the reference input."""
    few = replace(questions, limit=min(questions.limit or FEW, FEW))
    tasks.answer(vlm, few)  # loads the sets, and warms up
    start = time.perf_counter()
    tasks.answer(vlm, few)
    return (time.perf_counter() - start) / tasks.count(few)
