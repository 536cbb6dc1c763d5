"""A model as other cuts leave it: blocks of different widths, and Linears as low-rank factors.

narrowed(vlm), factored(vlm, ["ffn"])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from harness.pruning import surgery
from harness.pruning.random_units import project
from harness.statistics import linears
from harness.types import VLM, Choice, Keep, Kind, LowRank, Option, Options, Plan, Ranking, Score


def narrowed(vlm: VLM) -> VLM:
    """The model without the first units of each block, as many as the block's index: no two blocks are of one width."""
    parts: dict[tuple[str, Kind], Keep | Choice] = {}
    for block, kind in vlm.select("all"):
        count = block.units(kind).count
        parts[block.name, kind] = Keep(tuple(range(min(block.index, count - 1), count)))
    return surgery.apply(vlm, Plan(parts, 1.0, 1.0), Ranking({}))


def factored(vlm: VLM, kinds: Sequence[Kind]) -> VLM:
    """The model with two factors of half the rank, in random directions, for each Linear of these kinds of units."""
    parts: dict[tuple[str, Kind], Keep | Choice] = {}
    scores: dict[tuple[str, Kind], Score] = {}
    for block, kind in vlm.select("all"):
        if kind in kinds:
            parts[block.name, kind] = Choice(0, "factors")
            option = Option("factors", 0, 0.0, partial(_factors, vlm, linears(block.units(kind))))
            scores[block.name, kind] = Options((option,))
    return surgery.apply(vlm, Plan(parts, 1.0, 1.0), Ranking(scores))


def _factors(vlm: VLM, paths: Sequence[str]) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(0)
    weights = {path: vlm.model.get_parameter(f"{path}.weight") for path in paths}
    return {path: project(vlm.model.get_submodule(path), min(w.shape) // 2, generator) for path, w in weights.items()}
