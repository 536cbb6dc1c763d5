"""The entropy of a model's attention, measured at every call of torch's fused attention function.

meter = EntropyMeter(vlm)
with torch.no_grad(), meter: vlm.model(**inputs)
meter.means()["vision.0"]  # (heads,), between 0 and 1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from harness.types import VLM, InputError


class EntropyMeter(TorchFunctionMode):
    """Averages the attention entropy of each block's head units over all calls while it is entered."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self._vlm = vlm
        self._block: str | None = None  # the block that runs now; set by hooks
        self._hooks = ExitStack()
        self._entropies: dict[str, list[Tensor]] = {block.name: [] for block in vlm.blocks}

    def __enter__(self) -> EntropyMeter:
        for block in self._vlm.blocks:
            module = self._vlm.model.get_submodule(block.path)
            self._hooks.callback(module.register_forward_pre_hook(self._running(block.name)).remove)
            self._hooks.callback(module.register_forward_hook(self._running(None)).remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def _running(self, name: str | None) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._block = name

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention and self._block is not None:
            units = self._vlm.block(self._block).heads
            heads = entropy(*args, **(kwargs or {}))
            self._entropies[self._block].append(heads.double().reshape(units.count, -1).mean(1))
        return func(*args, **(kwargs or {}))

    def means(self) -> dict[str, Tensor]:
        """Mean entropy by block name, (count,); raises InputError naming a block whose attention was not seen."""
        for name, entropies in self._entropies.items():
            if not entropies:
                raise InputError(
                    f"model {self._vlm.name}: the attention of {name} cannot be seen; load the model with sdpa"
                )
        return {name: torch.stack(entropies).cpu().mean(0) for name, entropies in self._entropies.items()}


def entropy(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Entropy of each head's attention over log n, n the number of keys, averaged over queries and the batch: (heads,).

    The arguments are those of scaled_dot_product_attention: (batch, heads, length, width). Values are between 0 and 1.
    """
    length, keys = query.shape[-2], key.shape[-2]
    groups = query.shape[1] // key.shape[1]
    hidden = torch.ones(length, keys, dtype=torch.bool, device=query.device).triu(1) if is_causal else None
    entropies = []
    for head in range(query.shape[1]):  # one head at a time: the scores of all heads take too much memory
        scores = query[:, head].float() @ key[:, head // groups].float().mT * (scale or query.shape[-1] ** -0.5)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        if attn_mask is not None:
            mask = attn_mask.expand(-1, query.shape[1], -1, -1)[:, head]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        entropies.append(torch.special.entr(scores.softmax(-1)).sum(-1).mean())
    return torch.stack(entropies) / max(math.log(keys), 1e-12)
