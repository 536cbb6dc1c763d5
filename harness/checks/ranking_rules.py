"""What a ranking must be: a finite score per unit of every block and kind, the same at every run.

scores(method, vlm, ranking)      # [] or ["vision.0 heads: 3 scores for 4 units", ...]
differences(ranking, again)       # [] or ["the same seed and samples gave other scores in a second run ..."]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from harness import registry
from harness.checks import token_rules
from harness.text import SHOWN, some
from harness.types import (
    BOTH,
    DENSE,
    KINDS,
    VLM,
    Additive,
    Global,
    InputError,
    Kind,
    Options,
    Ordinal,
    Ranking,
    Score,
    Units,
    kinds,
)

OWN_GENERATOR = "use a generator of its own instead: torch.Generator().manual_seed(seed)"


def scores(method: registry.Method, vlm: VLM, ranking: Any) -> list[str]:
    """The faults of a ranking for this model, one line each."""
    if not isinstance(ranking, Ranking) or not isinstance(ranking.scores, Mapping):
        return [f"`rank` returned {type(ranking).__name__}; it must return Ranking({{(block name, kind): score}})"]
    units = method.units
    expected: dict[tuple[str, Kind], Any] = {
        (block.name, kind): block.units(kind) for block, kind in method.ranked(vlm)
    }
    faults = []
    for key in ranking.scores:
        if key not in expected:
            faults.append(_unexpected(key, expected, units))
    if missing := [f"{block} {kind}" for block, kind in expected if (block, kind) not in ranking.scores]:
        hint = "" if units != BOTH else "; a method that ranks only one kind sets UNITS = 'heads' or 'ffn'"
        faults.append(f"no score for {some(missing)}{hint}")
    for (name, kind), block_units in expected.items():
        if (name, kind) in ranking.scores:
            fault = _fault(ranking.scores[name, kind], block_units)
            faults += [f"{name} {kind}: {fault}"] if fault else []
    if "tokens" in kinds(units) and method.name != DENSE:
        faults += token_rules.faults(ranking.tokens)
    elif ranking.tokens is not None:
        faults.append("a method that chooses visual tokens sets UNITS = 'tokens'")
    for layers in (False, True):  # layers may have scores of another shape than the widths of blocks
        alike = [score for (_, kind), score in ranking.scores.items() if (kind == "layers") == layers]
        shapes = {type(score) for score in alike} & {Additive, Ordinal, Global, Options}
        if shapes & {Ordinal, Global} and len(shapes) > 1:
            faults.append(
                "a ranking must be Ordinal or Global everywhere or nowhere: orders and damages cannot be compared"
            )
        if len({score.pool for score in alike if isinstance(score, Global)}) > 1:
            faults.append("the Global scores of a ranking must have the same pool")
    try:
        json.dumps(dict(ranking.log), allow_nan=False)
    except (TypeError, ValueError) as error:
        faults.append(f"the log cannot be stored in a record: {error}")
    return [*faults[:SHOWN], *([f"{len(faults) - SHOWN} more like these"] if len(faults) > SHOWN else [])]


def _unexpected(key: Any, expected: Iterable[tuple[str, Kind]], units: str) -> str:
    """The fault of a key of the scores that is not the block and kind of any unit to rank."""
    block, kind = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
    known = list(expected)
    if any(block == name for name, _ in known) and kind not in KINDS:
        return str(InputError.unknown("kind", kind, KINDS, f"{block}: "))
    shown = " ".join(map(str, key)) if isinstance(key, tuple) else key
    unknown = InputError.unknown("block and kind", shown, [f"{name} {kind}" for name, kind in known])
    return f"{unknown} (UNITS = {units!r})" if units != BOTH else str(unknown)


def _fault(score: Score | Any, units: Units) -> str:
    """The fault in the score of one block's units; "" if there is none."""
    count, macs = units.count, units.count * units.token_macs
    if isinstance(score, Options):
        if not score.points or (score.points[0].loss, score.points[0].make) != (0, None):
            return "the first of the Options must be the dense one, with loss 0 and without `make`"
        first, *rest = score.points
        if first.token_macs != macs:
            return f"the dense option costs {first.token_macs} multiply-adds per token; it must cost {macs}"
        if units.kind == "layers":
            if [point.token_macs for point in rest] != [0]:
                return "the Options of a layer are two: the dense one, and one of cost 0, which removes it"
        elif not rest or not all(point.make and 0 < point.token_macs < macs for point in rest):
            return "an option after the dense one must be cheaper than it and have a `make`"
        if len({point.label for point in score.points}) < len(score.points):
            return "two Options have the same label"
        numbers: Sequence[Any] = [point.loss for point in score.points]
    elif isinstance(score, Additive | Ordinal | Global):
        numbers = score.damage if isinstance(score, Additive) else score.order
        if not isinstance(numbers, Sequence) or not all(isinstance(number, int | float) for number in numbers):
            return f"the scores must be a tuple of plain numbers, not {_kind(numbers)} (use .tolist() for a tensor)"
        if len(numbers) != count:
            return f"{len(numbers)} scores for {count} units"
    else:
        return f"{type(score).__name__} is not Ordinal, Global, Additive or Options"
    bad = [place for place, number in enumerate(numbers) if not np.isfinite(number)]
    return f"score {bad[0]} is {numbers[bad[0]]}, not a finite number" if bad else ""


def _kind(numbers: Any) -> str:
    if not isinstance(numbers, Sequence):
        return type(numbers).__name__
    inner = next(type(number).__name__ for number in numbers if not isinstance(number, int | float))
    return f"{type(numbers).__name__} of {inner}"


def differences(first: Ranking, again: Ranking) -> list[str]:
    """The differences between two rankings with the same seed and samples."""
    scores_first, scores_again = first.numbers(), again.numbers()
    if changed := [
        f"{block} {kind}" for block, kind in scores_first if scores_first[block, kind] != scores_again[block, kind]
    ]:
        return [f"the same seed and samples gave other scores in a second run ({some(changed)}); {OWN_GENERATOR}"]
    if first.tokens != again.tokens:
        return ["the same seed and samples gave another TokenRule in a second run"]
    return [] if first.log == again.log else ["the same seed and samples gave another log in a second run"]
