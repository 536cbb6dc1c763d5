"""What is known of a sweep before it runs, without a pass of its model: whether it can work, and what it fetches.

for note in check(board, todo.trials, "cpu"): print(note)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from harness import families, registry, tasks
from harness.pruning import solver
from harness.types import VLM, Budget, InputError, Loading, Trial

if TYPE_CHECKING:
    from harness.trials.spec import Board


def fetched(board: Board) -> list[str]:
    """The model and question sets that a run needs from the hub; it fetches those that the Hugging Face cache lacks."""
    source = registry.model(board.model)
    downloads = [] if Path(source).is_dir() else [f"model {source} at revision {board.revision or 'main'}"]
    downloads += tasks.fetched(board.questions)
    for entry in board.methods:
        downloads += tasks.fetched(board.calibration_of(entry).questions)
    return list(dict.fromkeys(downloads))


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
