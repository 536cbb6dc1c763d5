"""The control of Liu et al. 2019: a plan's widths with units drawn at random, to be tuned like the plan itself.

    plan, ranking = redraw(vlm, plan, ranking, seed=0)

If it does as well as the plan, the method's score has added nothing but the widths ("Rethinking the Value of Network
Pruning", ICLR 2019). A method's repair is no part of its widths: a control has none.
On a board: `methods: [{method: M, control: random-units}]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from harness.types import VLM, Choice, Keep, LowRank, Options, Plan, Ranking, Replacement


def redraw(vlm: VLM, plan: Plan, ranking: Ranking, seed: int) -> tuple[Plan, Ranking]:
    """The plan with as many units of each block and kind, drawn uniformly; and the ranking that goes with it.

    Of a low-rank option the ranks stay and the directions are random. Any other option (a narrower or recomposed FFN)
    becomes as many random channels as cost the same.
    """
    generator = torch.Generator().manual_seed(seed)
    parts, scores = dict(plan.parts), dict(ranking.scores)
    for (name, kind), part in plan.parts.items():
        units = vlm.block(name).units(kind)
        if isinstance(part, Choice):
            options = scores[name, kind]
            assert isinstance(options, Options)
            point = options.points[part.position]
            made = point.make() if point.make else {}
            if all(isinstance(new, LowRank) for new in made.values()):
                ranks = {path: new.down.shape[0] for path, new in made.items() if isinstance(new, LowRank)}
                own = int(torch.randint(2**62, (), generator=generator))
                random = replace(point, make=partial(_factors, vlm, ranks, own) if ranks else None)
                points = (*options.points[: part.position], random, *options.points[part.position + 1 :])
                scores[name, kind] = Options(points)
                continue
            number = max(1, round(point.token_macs / units.token_macs))
        else:
            number = len(part.indices)
        parts[name, kind] = Keep(tuple(sorted(torch.randperm(units.count, generator=generator)[:number].tolist())))
    return replace(plan, parts=parts), replace(ranking, scores=scores)


def _factors(vlm: VLM, ranks: Mapping[str, int], seed: int) -> dict[str, Replacement]:
    generator = torch.Generator().manual_seed(seed)
    return {path: project(vlm.model.get_submodule(path), rank, generator) for path, rank in ranks.items()}


def project(linear: Any, rank: int, generator: torch.Generator) -> LowRank:
    """The Linear seen through `rank` random orthonormal directions of its narrower side; the bias stays."""
    weight = linear.weight.detach().double().cpu()
    normal = torch.randn(min(weight.shape), rank, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(normal).Q
    wide = weight.shape[0] < weight.shape[1]
    down, up = (basis.T @ weight, basis) if wide else (basis.T, weight @ basis)
    return LowRank(down, up, None if linear.bias is None else linear.bias.detach())
