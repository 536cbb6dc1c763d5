"""The control of Liu et al. 2019: the widths of a plan with randomly drawn units, then tuned like the plan itself.

    plan, ranking = redraw(vlm, plan, ranking, seed=0)

If the control does as well as the plan, the method's scores add nothing beyond the widths ("Rethinking the Value of
Network Pruning", ICLR 2019). A control gets the same recovery as the plan.
On a board: `methods: [{method: M, control: random-units}]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from harness.types import VLM, Block, Choice, InputError, Keep, Kind, LowRank, Options, Plan, Ranking, Replacement


def redraw(vlm: VLM, plan: Plan, ranking: Ranking, seed: int) -> tuple[Plan, Ranking]:
    """The plan with the same number of units of each block and kind, drawn uniformly, and the ranking for it.

    A low-rank option keeps its ranks and gets random directions. Any other option (a narrower or recomposed FFN)
    becomes random channels of the same cost. Of whole layers, as many of each cost go, and the widths of those that
    stay keep their order. Raises InputError for a plan that removes layers and replaces Linears of others.
    """
    generator = torch.Generator().manual_seed(seed)
    if plan.gone:
        if any(isinstance(part, Choice) for part in plan.parts.values()):
            raise InputError("control: random-units cannot redraw a plan that removes layers and replaces Linears")
        plan = _other_layers(vlm, plan, generator)
    parts, scores = dict(plan.parts), dict(ranking.scores)
    for (name, kind), part in plan.parts.items():
        if kind == "layers":
            continue
        units = vlm.block(name).units(kind)
        if isinstance(part, Choice):
            options = scores[name, kind]
            assert isinstance(options, Options)
            point = options.points[part.position]
            replacements = point.make() if point.make else {}
            if all(isinstance(new, LowRank) for new in replacements.values()):
                ranks = {path: new.down.shape[0] for path, new in replacements.items() if isinstance(new, LowRank)}
                seed_of_option = int(torch.randint(2**62, (), generator=generator))
                random_option = replace(point, make=partial(_factors, vlm, ranks, seed_of_option) if ranks else None)
                points = (*options.points[: part.position], random_option, *options.points[part.position + 1 :])
                scores[name, kind] = Options(points)
                continue
            number = max(1, round(point.token_macs / units.token_macs))
        else:
            number = len(part.indices)
        parts[name, kind] = Keep(tuple(sorted(torch.randperm(units.count, generator=generator)[:number].tolist())))
    return replace(plan, parts=parts), replace(ranking, scores=scores)


def _other_layers(vlm: VLM, plan: Plan, generator: torch.Generator) -> Plan:
    """The plan with other layers of the same cost removed; the widths of those that stay move along."""
    names: dict[str, str] = {}  # a layer that stays -> the one that now has its widths
    gone: list[str] = []
    alike: dict[Any, list[Block]] = {}
    for block in vlm.blocks:
        alike.setdefault((block.component, replace(block.layer, consumer=""), block.fixed), []).append(block)
    for blocks in alike.values():
        stay = [block.name for block in blocks if block.name not in plan.gone]
        drawn = sorted(torch.randperm(len(blocks), generator=generator)[: len(stay)].tolist())
        names |= zip(stay, (blocks[place].name for place in drawn), strict=True)
        gone += [block.name for place, block in enumerate(blocks) if place not in drawn]
    parts: dict[tuple[str, Kind], Keep | Choice] = {(name, "layers"): Keep(()) for name in gone}
    parts |= {(names[name], kind): part for (name, kind), part in plan.parts.items() if kind != "layers"}
    return replace(plan, parts=parts)


def _factors(vlm: VLM, ranks: Mapping[str, int], seed: int) -> dict[str, Replacement]:
    generator = torch.Generator().manual_seed(seed)
    return {path: project(vlm.model.get_submodule(path), rank, generator) for path, rank in ranks.items()}


def project(linear: Any, rank: int, generator: torch.Generator) -> LowRank:
    """The Linear projected on `rank` random orthonormal directions of its narrower side; the bias is kept."""
    weight = linear.weight.detach().double().cpu()
    normal = torch.randn(min(weight.shape), rank, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(normal).Q
    wide = weight.shape[0] < weight.shape[1]
    down, up = (basis.T @ weight, basis) if wide else (basis.T, weight @ basis)
    return LowRank(down, up, None if linear.bias is None else linear.bias.detach())
