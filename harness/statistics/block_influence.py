"""How much each block turns the residual stream: one minus the cosine of its input and output, averaged over tokens.

block_influence(vlm, batches)["language.2"]  # between 0 (the block changes no direction) and 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from harness.statistics.gradients import frozen
from harness.types import VLM, InputError


def block_influence(vlm: VLM, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The influence of every block, by its name, in one pass. See `Calibration.block_influence`."""
    totals, counts = ({block.name: 0.0 for block in vlm.blocks} for _ in range(2))
    real = torch.empty(0)

    def watch(name: str, is_text: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before: Tensor = args[0] if args else kwargs["hidden_states"]
            after: Tensor = output[0] if isinstance(output, tuple) else output
            if is_text:
                before, after = before[real], after[real]
            cosines = cosine_similarity(before.double().flatten(0, -2), after.double().flatten(0, -2), dim=-1)
            totals[name] += float((1 - cosines).sum())
            counts[name] += cosines.numel()

        return hook

    with frozen(vlm.model), torch.no_grad(), ExitStack() as hooks:
        for block in vlm.blocks:
            hook = watch(block.name, block.component == "language")
            module = vlm.model.get_submodule(block.path)
            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for batch in batches:
            real = batch["attention_mask"].bool()
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            vlm.model(**inputs, use_cache=False, logits_to_keep=1)
    influence = {name: total / counts[name] for name, total in totals.items()}
    if wrong := [name for name, value in influence.items() if value != value]:
        raise InputError(f"model {vlm.name}: {wrong[0]}: its input or output on the calibration samples has NaN or Inf")
    return influence
