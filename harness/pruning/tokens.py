"""How many visual tokens meet a budget: the plan of a method of the kind `tokens`. Pure but for the reference input.

    plan = solve(vlm, ranking, Budget("language", 0.5, "tokens", extents), inputs, "fastv")

The budget is a share of the FLOPs of the scope's blocks. What is dropped is the same share of every row's visual
tokens, so the cost of the reference input decides for all inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from harness.families._parts import visual
from harness.families._received import has_class_token
from harness.families._tokens import kept
from harness.types import (
    TOLERANCE,
    VLM,
    Budget,
    Extent,
    InputError,
    Keep,
    Kind,
    Plan,
    Ranking,
    TokenPlan,
    TokenRule,
    kinds,
)


def solve(
    vlm: VLM,
    ranking: Ranking,
    budget: Budget,
    inputs: Mapping[str, torch.Tensor],
    method: str,
    tolerance: float = TOLERANCE,
) -> Plan:
    """The plan that keeps `budget.keep` of the FLOPs of the scope's blocks, within `tolerance` (relative).

    inputs: the encoded reference input. Raises InputError if the method gives no rule for tokens, if its layer is not
    in the model, if the reference input has no visual tokens, or if no number of tokens meets the budget (the error
    names the smallest reachable or the nearest budget).
    """
    if not 0 < budget.keep <= 1:
        raise InputError(f"budget: {budget.keep} is not in (0, 1]")
    if budget.keep == 1:
        return Plan({}, 1.0, 1.0)
    rule = ranking.tokens
    if hasattr(vlm.model, "token_cut"):
        raise InputError(f"model {vlm.name}: it already drops visual tokens; take the model without that")
    if rule is None:
        raise InputError("budget: the method does not choose visual tokens; choose other `units`")
    flops = flops_by_share(vlm, rule, budget, inputs)
    share = min(flops, key=lambda share: abs(flops[share] - budget.keep))
    if abs(flops[share] / budget.keep - 1) > tolerance:
        smallest = min(flops.values())
        reason = (
            f"the smallest reachable is {smallest:.4f}"
            if smallest > budget.keep
            else f"the nearest plan keeps {flops[share]:.4f}"
        )
        raise InputError(
            f"budget: {budget.keep:g} of the FLOPs of scope {budget.scope} with fewer visual tokens from layer "
            f"{rule.layer} on: {reason}"
        )
    tokens = TokenPlan(rule.layer, share, method, rule.attention, dict(rule.options))
    return Plan({}, budget.keep, flops[share], tokens=tokens)


def flops_by_share(vlm: VLM, rule: TokenRule, budget: Budget, inputs: Mapping[str, torch.Tensor]) -> dict[float, float]:
    """Each share of the visual tokens that can go on, and the share of the scope's FLOPs that then stays.

    Raises the errors of `solve` that say why none can be dropped.
    """
    _check_rule(vlm, rule)
    counts = visual(vlm.model, inputs).sum(1).tolist()
    if (most := max(counts)) < 2:
        raise InputError(f"model {vlm.name}: the reference image gives {most} visual tokens, so none can be dropped")
    dense = _cost(vlm, None, budget, counts, 1.0)
    return {n / most: _cost(vlm, rule, budget, counts, n / most) / dense for n in range(1, most)}


def tokens_budget(budget: Budget) -> Budget:
    """What the tokens alone have to keep of a budget for several kinds."""
    share = budget.shares.get("tokens", 1.0)
    return replace(budget, keep=1 - share * (1 - budget.keep), units="tokens", shares={})


def blocks_budget(
    vlm: VLM, ranking: Ranking, first: Plan, budget: Budget, inputs: Mapping[str, torch.Tensor], cut: Plan | None = None
) -> tuple[Budget, float]:
    """The budget of the other kinds once the tokens of the plan `first` are gone, and the share that watching costs.

    Watching is reading the attention that the choice needs. The blocks after the cut see fewer tokens, so their units
    save less. cut: what goes beside the tokens, if it is known, since attention is read of the heads that stay.
    """
    if first.tokens is None or ranking.tokens is None:
        return replace(budget, shares=_without_tokens(budget)), 0.0
    counts = visual(vlm.model, inputs).sum(1).tolist()
    extent = _fewer(budget.extents["language"], counts, first.tokens.share)
    behind = [block for block in vlm.blocks if block.component == "language" and block.index >= first.tokens.layer]
    watching = _watching(vlm, ranking.tokens, budget, cut) / _cost(vlm, None, budget, counts, 1.0)
    fewer = {block.name: extent for block in behind}
    return replace(budget, keep=budget.keep - watching, fewer=fewer, shares=_without_tokens(budget)), watching


def _without_tokens(budget: Budget) -> dict[Kind, float]:
    """The shares of the other kinds of what is left to save; {} for one kind."""
    left = 1 - budget.shares.get("tokens", 0.0)
    if len(kinds(budget.units)) < 3 or left < 1e-9:
        return {}
    return {kind: share / left for kind, share in budget.shares.items() if kind != "tokens"}


def _fewer(extent: Extent, counts: Sequence[int], share: float) -> Extent:
    """The tokens and pairs of prompts with these visual tokens, after the cut."""
    rows = len(counts)
    longest = extent.tokens // rows - min(count - (kept(count, share) if count else 0) for count in counts)
    return Extent(rows * longest, rows * longest**2)


def _check_rule(vlm: VLM, rule: TokenRule) -> None:
    layers = sum(block.component == "language" for block in vlm.blocks)
    if not 0 <= rule.layer < layers:
        raise InputError(
            f"tokens: layer: {rule.layer} is not in the language model of {vlm.name}; use 0 to {layers - 1}"
        )
    if rule.attention == "text" and rule.layer == 0:
        raise InputError("tokens: layer: 0 has no layer before it, whose attention this method reads; use 1 or more")


def _cost(vlm: VLM, rule: TokenRule | None, budget: Budget, counts: list[int], share: float) -> float:
    """Multiply-adds of the scope's blocks for the reference input if this share of its visual tokens goes on."""
    total = 0.0
    for block in vlm.blocks:
        if budget.scope not in ("all", block.component):
            continue
        extent = budget.extents[block.component]
        if rule and block.component == "language" and block.index >= rule.layer:
            extent = _fewer(extent, counts, share)
        total += sum(units.count * units.macs(extent) for units in (block.heads, block.ffn))
    return total + (_watching(vlm, rule, budget) if rule else 0)


def _watching(vlm: VLM, rule: TokenRule, budget: Budget, cut: Plan | None = None) -> float:
    """Multiply-adds of the attention that a method sees: one more product of queries and keys in one block.

    cut: the plan of the block's heads and of the layers; None: all are there.
    """
    if rule.attention == "none" or (rule.attention == "vision" and budget.scope == "language"):
        return 0
    component = "language" if rule.attention == "text" else "vision"
    gone = cut.gone if cut else set()
    blocks = [block for block in vlm.blocks if block.component == component and block.name not in gone]
    if rule.attention == "text":
        blocks = [block for block in blocks if block.index < rule.layer]
    if not blocks:  # which `settings` refuses
        return 0
    heads = blocks[-1].heads
    part = cut.parts.get((blocks[-1].name, "heads")) if cut else None
    count = len(part.indices) if isinstance(part, Keep) else heads.count
    extent = budget.extents[component]
    queries = "one" if rule.attention == "text" or has_class_token(vlm.model) else "all"
    pairs = extent.tokens if queries == "one" else extent.window_pairs if heads.windowed else extent.pairs
    return count * heads.pair_macs / 2 * pairs


def settings(vlm: VLM, tokens: TokenPlan) -> dict[str, Any]:
    """The arguments of `families._tokens.attach` for a plan's tokens; `vlm` may have lost blocks by the same plan."""
    language = [block for block in vlm.blocks if block.component == "language"]
    tower = [block for block in vlm.blocks if block.component == "vision"][-1]
    layer = sum(int(block.name.rpartition(".")[2]) < tokens.layer for block in language)  # names are those of the dense
    if layer == 0 and tokens.attention == "text":
        raise InputError("plan: no layer stays before the cut of visual tokens, whose attention this method reads")
    model: Any = vlm.model
    lengths = (getattr(vlm.processor, name, None) for name in ("image_seq_length", "image_seq_len"))
    return {
        "layer": layer,
        "share": tokens.share,
        "language": language[0].path.rsplit(".", 2)[0],
        "image": model.config.image_token_id,
        "attention": tokens.attention,
        "tower": tower.heads.consumer.rpartition(".")[0],
        "tile": next((length for length in lengths if length), 0),
        "options": dict(tokens.options),
    }
