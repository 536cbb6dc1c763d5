"""Blocks without a model, rankings of every shape with random scores, and the damage of a plan: about the solver."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image

from harness import families
from harness.families import encode
from harness.types import (
    VLM,
    Additive,
    Block,
    Choice,
    Component,
    Extent,
    Global,
    Kind,
    Option,
    Options,
    Ordinal,
    Plan,
    Ranking,
    Score,
    Units,
)

SHAPES = ["ordinal", "additive", "options", "global", "global by kind"]  # of `ranking_of`
FACTORS = "factors"  # options of heads too: attention products stay, so small budgets cannot be met
EXTENTS: dict[Component, Extent] = {"vision": Extent(40, 1000), "language": Extent(30, 900)}


def units(kind: Kind, count: int, token_macs: int, pair_macs: int = 0) -> Units:
    return Units(kind, count, 1, (), "", token_macs, pair_macs)


def layout(*blocks: tuple[str, tuple[int, int, int], tuple[int, int]]) -> VLM:
    """Blocks without a model: (component, (heads, token MACs, pair MACs), (channels, token MACs))."""
    made = tuple(
        Block(f"{part}.{i}", "", cast(Component, part), i, units("heads", *heads), units("ffn", *ffn))
        for i, (part, heads, ffn) in enumerate(blocks)
    )
    return VLM("layout", "none", torch.nn.Module(), None, made, "")


def rank_options(units: Units, ranks: int, losses: Sequence[float] | None = None) -> Options:
    """Dense, then `ranks` options at equal steps of cost, the loss rising as the ranks fall."""
    whole = units.count * units.token_macs
    points = [Option("dense", whole, 0.0)]
    for n in range(1, ranks + 1):
        loss = losses[n - 1] if losses else (n / ranks) ** 2
        points.append(Option(f"rank {ranks + 1 - n}", max(1, whole * (ranks + 1 - n) // (ranks + 1)), loss, dict))
    return Options(tuple(points))


def damage_of(ranking: Ranking, plan: Plan) -> float:
    """The damage that a plan does."""
    total = 0.0
    for key, part in plan.parts.items():
        score = ranking.scores[key]
        if isinstance(part, Choice):
            total += cast(Options, score).points[part.position].loss
        else:
            gone = set(range(len(cast(Additive, score).damage))) - set(part.indices)
            total += sum(cast(Additive, score).damage[i] for i in gone)
    return total


def extents_of(vlm: VLM) -> dict[Component, Extent]:
    inputs = encode(vlm.processor, [[Image.new("RGB", (96, 96))]], ["What is in the picture?"])
    return families.family(vlm.family).extents(vlm.model, inputs)


def ranking_of(vlm: VLM, shape: str, seed: int = 0) -> Ranking:
    """A ranking of one of the shapes a method may give, with random scores."""
    rng = random.Random(seed)
    scores: dict[tuple[str, Kind], Score] = {}
    for block, kind in vlm.select("all"):
        values = tuple(rng.random() for _ in range(block.units(kind).count))
        if shape == "ordinal":
            scores[block.name, kind] = Ordinal(values)
        elif shape in ("global", "global by kind"):
            scores[block.name, kind] = Global(values, "all" if shape == "global" else "kind")
        elif shape == FACTORS or (shape == "options" and kind == "ffn"):
            scores[block.name, kind] = rank_options(block.units(kind), 300)
        else:
            scores[block.name, kind] = Additive(values)
    return Ranking(scores)
