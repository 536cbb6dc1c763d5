"""How many visual tokens meet a budget: the plan of a method of the kind `tokens`. Pure but for the reference input.

    plan = solve(vlm, ranking, Budget("language", 0.5, "tokens", extents), inputs, "fastv")

The budget is a share of the FLOPs of the scope's blocks. What is dropped is the same share of every row's visual
tokens, so the cost of the reference input decides for all inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.families._parts import visual
from harness.families._received import has_class_token
from harness.families._tokens import kept
from harness.types import TOLERANCE, VLM, Budget, InputError, Plan, Ranking, TokenRule, Tokens


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
    flops = reach(vlm, rule, budget, inputs)
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
    tokens = Tokens(rule.layer, share, method, rule.attention, dict(rule.options))
    return Plan({}, budget.keep, flops[share], tokens=tokens)


def reach(vlm: VLM, rule: TokenRule, budget: Budget, inputs: Mapping[str, torch.Tensor]) -> dict[float, float]:
    """Each share of the visual tokens that can go on, and the share of the scope's FLOPs that then stays.

    Raises the errors of `solve` that say why none can be dropped.
    """
    _check_rule(vlm, rule)
    counts = visual(vlm.model, inputs).sum(1).tolist()
    if (most := max(counts)) < 2:
        raise InputError(f"model {vlm.name}: the reference image gives {most} visual tokens, so none can be dropped")
    dense = _cost(vlm, None, budget, counts, 1.0)
    return {n / most: _cost(vlm, rule, budget, counts, n / most) / dense for n in range(1, most)}


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
        tokens, pairs = extent.tokens, None
        if rule and block.component == "language" and block.index >= rule.layer:
            rows = len(counts)
            longest = extent.tokens // rows - min(count - (kept(count, share) if count else 0) for count in counts)
            tokens, pairs = rows * longest, rows * longest**2
        for units in (block.heads, block.ffn):
            seen = pairs if pairs is not None else extent.window_pairs if units.windowed else extent.pairs
            total += units.count * (tokens * units.token_macs + seen * units.pair_macs)
    return total + (_watching(vlm, rule, budget) if rule else 0)


def _watching(vlm: VLM, rule: TokenRule, budget: Budget) -> float:
    """Multiply-adds of the attention that a method sees: one more product of queries and keys in one block."""
    if rule.attention == "none" or (rule.attention == "vision" and budget.scope == "language"):
        return 0
    component = "language" if rule.attention == "text" else "vision"
    blocks = [block for block in vlm.blocks if block.component == component]
    heads = (blocks[rule.layer - 1] if rule.attention == "text" else blocks[-1]).heads
    extent = budget.extents[component]
    queries = "one" if rule.attention == "text" or has_class_token(vlm.model) else "all"
    pairs = extent.tokens if queries == "one" else extent.window_pairs if heads.windowed else extent.pairs
    return heads.count * heads.pair_macs / 2 * pairs


def settings(vlm: VLM, tokens: Tokens) -> dict[str, Any]:
    """The arguments of `families._tokens.attach` for a plan's tokens."""
    language = next(block for block in vlm.blocks if block.component == "language")
    tower = [block for block in vlm.blocks if block.component == "vision"][-1]
    model: Any = vlm.model
    lengths = (getattr(vlm.processor, name, None) for name in ("image_seq_length", "image_seq_len"))
    return {
        "layer": tokens.layer,
        "share": tokens.share,
        "language": language.path.rsplit(".", 2)[0],
        "image": model.config.image_token_id,
        "attention": tokens.attention,
        "tower": tower.heads.consumer.rpartition(".")[0],
        "tile": next((length for length in lengths if length), 0),
        "options": dict(tokens.options),
    }
