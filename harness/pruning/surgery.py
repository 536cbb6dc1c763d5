"""The only code that changes a model's structure: applies a plan and returns the model with smaller modules.

    pruned = apply(vlm, plan, ranking)

The dense model is not changed. The pruned model shares all tensors that the plan does not name with it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from harness.families import _tokens
from harness.families._pruned import LowRankLinear
from harness.pruning import tokens
from harness.pruning.depth import check_gone, drop
from harness.types import (
    VLM,
    WIDTHS,
    Block,
    Choice,
    Dense,
    InputError,
    Keep,
    Kind,
    LowRank,
    Options,
    Plan,
    Ranking,
    Units,
)


def apply(vlm: VLM, plan: Plan, ranking: Ranking) -> VLM:
    """Cut the model to what the plan keeps. The blocks that stay keep their names.

    Raises InputError if the plan is of a model of other blocks or widths, or if a Linear to cut is already factored,
    and KeyError if the plan chooses an option that the ranking does not offer.
    """
    _check_fits(vlm, plan)
    shared = {id(tensor): tensor for tensor in (*vlm.model.parameters(), *vlm.model.buffers())}
    model = copy.deepcopy(vlm.model, memo=shared)
    for (name, kind), part in plan.parts.items():
        block = vlm.block(name)
        if kind == "layers" or name in plan.gone:
            continue
        if isinstance(part, Keep):
            if len(part.indices) < block.units(kind).count:
                _keep(model, block.units(kind), part.indices)
        else:
            _replace(model, block, kind, part, ranking)
    drop(model, vlm, plan.gone)
    from harness.families import family

    names = [block.name for block in vlm.blocks if block.name not in plan.gone]
    blocks = zip(family(vlm.family).blocks(model), names, strict=True)
    blocks = tuple(dataclasses.replace(block, name=name) for block, name in blocks)
    pruned = dataclasses.replace(vlm, model=model, blocks=blocks)
    if plan.tokens is not None:
        if ranking.tokens is None:
            raise KeyError("the plan drops visual tokens, the ranking has no rule for them")
        _tokens.attach(model, tokens.settings(pruned, plan.tokens), ranking.tokens.keep)
    return pruned


def _check_fits(vlm: VLM, plan: Plan) -> None:
    kinds: tuple[Kind, ...] = (*WIDTHS, "layers")
    counts: dict[tuple[str, Kind], int] = {}
    for block in vlm.blocks:
        counts |= {(block.name, kind): block.units(kind).count for kind in kinds}
    for name, kind in (*plan.parts, *plan.widths):
        if (name, kind) not in counts:
            raise InputError(f"plan.blocks.{name}.{kind}: {vlm.name} has no such block")
    cut = {(vlm.block(name).component, kind) for name, kind in plan.widths}
    for (name, kind), count in counts.items():
        if (vlm.block(name).component, kind) in cut and (of := plan.widths.get((name, kind))) != count:
            there = f"{of} units there" if of else "no such block"
            raise InputError(f"plan.widths.{name}.{kind}: {vlm.name} has {count} units, and the plan's model {there}")
        part = plan.parts.get((name, kind))
        if isinstance(part, Keep) and not _among(part.indices, count, may_go=kind == "layers"):
            raise InputError(
                f"plan.blocks.{name}.{kind}: {vlm.name} has units 0 to {count - 1} there; a plan lists each unit that"
                " stays once, in rising order"
            )
    check_gone(vlm, plan.gone)


def _among(indices: Sequence[int], count: int, may_go: bool) -> bool:
    """Whether these are some of `count` units: rising, and none twice; none at all where a whole block may go."""
    if not indices:
        return may_go
    whole = all(type(index) is int for index in indices)
    return whole and list(indices) == sorted(set(indices)) and 0 <= indices[0] <= indices[-1] < count


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def _low_rank(factors: LowRank, like: nn.Linear) -> LowRankLinear:
    sizes = like.in_features, len(factors.down), like.out_features
    pair = LowRankLinear(*sizes, bias=factors.bias is not None, device="meta")
    pair.weight = like.weight.new_empty(0)
    pair.down = _linear(factors.down.to(like.weight), None)
    pair.up = _linear(factors.up.to(like.weight), None if factors.bias is None else factors.bias.to(like.weight))
    return pair


def _dense_linear(dense: Dense, like: torch.Tensor) -> nn.Linear:
    return _linear(dense.weight.to(like), None if dense.bias is None else dense.bias.to(like))


def _get(model: nn.Module, path: str) -> nn.Linear:
    linear = model.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise InputError(
            f"model: {path} is a {type(linear).__name__}: only a Linear can be cut, and a factored one cannot"
        )
    return linear


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _keep(model: nn.Module, units: Units, kept: Sequence[int]) -> None:
    """Remove the rows and columns of all units except the kept ones.

    Indices stay on the CPU, from where they reach each Linear's own device.
    """

    def spread(offset: int, width: int) -> torch.Tensor:
        starts = torch.tensor(list(kept)) * width + offset
        return (starts[:, None] + torch.arange(width)).flatten()

    for path in dict.fromkeys(rows.module for rows in units.producers):
        linear = _get(model, path)
        index = torch.cat([spread(rows.offset, rows.width) for rows in units.producers if rows.module == path])
        bias = None if linear.bias is None else linear.bias[index]
        _set(model, path, _linear(linear.weight[index], bias))
    linear = _get(model, units.consumer)
    _set(model, units.consumer, _linear(linear.weight[:, spread(0, units.width)], linear.bias))
    for path, attribute, amount in units.sizes:
        setattr(model.get_submodule(path), attribute, amount * len(kept))


def _replace(model: nn.Module, block: Block, kind: Kind, choice: Choice, ranking: Ranking) -> None:
    score = ranking.scores[block.name, kind]
    if not isinstance(score, Options):
        raise KeyError(f"the plan chooses an option for the {kind} of {block.name}, the ranking offers none")
    make = score.points[choice.position].make
    for path, new in (make() if make else {}).items():
        if new is None:
            _set(model, path, nn.Identity())
        else:
            old = _get(model, path)
            _set(model, path, _low_rank(new, old) if isinstance(new, LowRank) else _dense_linear(new, old.weight))
