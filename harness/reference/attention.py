"""Attention for training on packed questions, added through transformers' registry of attention functions.

    enable(model)   # afterwards, language masks are `Layout`s, and one call computes all images of a batch

This is ordinary softmax attention, but it skips the pairs that packing forbids: a question attends to the shared start
of its sequence and to itself. The stock kernels compute all pairs and took two thirds of the training time on CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "packed_flash"  # the vision tower passes all images in one call to implementations with "flash" in the name


@dataclass(frozen=True)
class Layout:
    """A row: `start` shared tokens, then `count` questions of `size` tokens each.

    `valid` (n, start) marks the shared tokens that are not padding.
    """

    start: int
    count: int
    size: int
    valid: torch.Tensor


def _only(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)


def _questions(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Attention of packed questions; q (scaled), k, v: (n, heads, start + count * size, head width)."""
    start, shape = layout.start, (layout.count, layout.size)
    valid = layout.valid[:, None, None, :]
    first, shared, values = q[:, :, :start], k[:, :, :start].transpose(-1, -2), v[:, :, :start]
    causal = torch.ones(start, start, dtype=torch.bool, device=q.device).tril()
    opening = _only(first @ shared, causal & valid).softmax(-1) @ values
    if not layout.count:
        return opening
    question_queries, own_keys, own_values = (t[:, :, start:].unflatten(2, shape) for t in (q, k, v))
    causal = torch.ones(layout.size, layout.size, dtype=torch.bool, device=q.device).tril()
    back = _only(question_queries.flatten(2, 3) @ shared, valid).unflatten(2, shape)
    inside = _only(question_queries @ own_keys.transpose(-1, -2), causal)
    weights = torch.cat([back, inside], -1).softmax(-1)
    attended = (weights[..., :start].flatten(2, 3) @ values).unflatten(2, shape) + weights[..., start:] @ own_values
    return torch.cat([opening, attended.flatten(2, 3)], 2)


def _images(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Attention within each image; q (scaled), k, v: (1, heads, patches of all images, head width).

    Images of the same size are computed as one batch.
    """
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
    q, k = (q * scaling).to(v.dtype), k.to(v.dtype)  # the rotary embedding gives float32
    if attention_mask is None:
        out = _images(q, k, v, kwargs["cu_seq_lens_q"])
    else:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        out = _questions(q, k, v, attention_mask)
    return out.transpose(1, 2), None


def enable(model: Any) -> None:
    """Switch a Qwen2-VL model to packed attention, for training only; a saved checkpoint does not store it."""
    AttentionInterface.register(NAME, _attend)
    for part in (model.model.visual, model.model.language_model):
        part.config._attn_implementation = NAME
