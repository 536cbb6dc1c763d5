"""Attention for training on packed questions, plugged into transformers through its registry of attention functions.

    enable(model)   # from here on language masks are `Layout`s and all images of a batch are attended to at once

Softmax attention as ever, computed without the pairs that the packing forbids: a question looks at the shared start of
its sequence and at itself. The stock kernels compute the whole square and were two thirds of the training time on CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "packed_flash"  # the vision tower passes all images in one call to implementations with "flash" in the name


@dataclass(frozen=True)
class Layout:
    """A row is `start` shared tokens, of which `valid` (n, start) are real, then `count` questions of `size` tokens."""

    start: int
    count: int
    size: int
    valid: torch.Tensor


def _only(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)


def _questions(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
    """q (scaled), k, v: (n, heads, start + count * size, head width)."""
    start, shape = layout.start, (layout.count, layout.size)
    valid = layout.valid[:, None, None, :]
    first, shared, values = q[:, :, :start], k[:, :, :start].transpose(-1, -2), v[:, :, :start]
    causal = torch.ones(start, start, dtype=torch.bool, device=q.device).tril()
    opening = _only(first @ shared, causal & valid).softmax(-1) @ values
    if not layout.count:
        return opening
    rest, own, mine = (t[:, :, start:].unflatten(2, shape) for t in (q, k, v))
    causal = torch.ones(layout.size, layout.size, dtype=torch.bool, device=q.device).tril()
    back = _only(rest.flatten(2, 3) @ shared, valid).unflatten(2, shape)
    inside = _only(rest @ own.transpose(-1, -2), causal)
    weights = torch.cat([back, inside], -1).softmax(-1)
    picked = (weights[..., :start].flatten(2, 3) @ values).unflatten(2, shape) + weights[..., start:] @ mine
    return torch.cat([opening, picked.flatten(2, 3)], 2)


def _images(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """q (scaled), k, v: (1, heads, patches of all images, head width); images of one size are computed as one batch."""
    lengths = ends.diff().tolist()
    if len(set(lengths)) == 1:
        q, k, v = (t[0].unflatten(1, (len(lengths), lengths[0])).transpose(0, 1) for t in (q, k, v))
        return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(0, 1).flatten(1, 2)[None]
    parts = zip(*(t.split(lengths, 2) for t in (q, k, v)), strict=True)
    return torch.cat([(a @ b.transpose(-1, -2)).softmax(-1) @ c for a, b, c in parts], 2)


def _attend(
    module: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attention_mask: Layout | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    q, k = (q * scaling).to(v.dtype), k.to(v.dtype)  # the rotation leaves them in float32
    if attention_mask is None:
        out = _images(q, k, v, kwargs["cu_seq_lens_q"])
    else:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        out = _questions(q, k, v, attention_mask)
    return out.transpose(1, 2), None


def enable(model: Any) -> None:
    """Switch a Qwen2-VL model to packed attention (training only; a saved checkpoint does not remember it)."""
    AttentionInterface.register(NAME, _attend)
    for part in (model.model.visual, model.model.language_model):
        part.config._attn_implementation = NAME
