"""Qwen2-VL: a ViT with fused qkv and a plain two-layer MLP, a merger, and a Qwen2 language model (grouped queries).

from harness.families import load; load("Qwen/Qwen2-VL-2B-Instruct").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.families import _parts
from harness.types import Block, Component, Extent

VISION, LANGUAGE = "model.visual.blocks", "model.language_model.layers"


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks at their current sizes, read from the modules, so a pruned model is described like a dense one."""
    vision = []
    for i, path, layer in _parts.layers(model, VISION):
        heads = _parts.fused_attention(f"{path}.attn", layer.attn)
        vision.append(_parts.block("vision", i, path, heads, _parts.mlp(f"{path}.mlp", layer.mlp, "fc1", "fc2", "act")))
    return (*vision, *_parts.decoder(model, LANGUAGE))


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch.

    Patches attend within their image, text tokens within their sequence.
    """
    frames = _parts.frames(inputs["image_grid_thw"])
    return {"vision": Extent(sum(frames), sum(n * n for n in frames)), "language": _parts.prompt(inputs)}


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately; see `_parts.stages`."""
    core = model.model
    return _parts.stages(
        model,
        inputs,
        core.language_model,
        vision=lambda: core.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output,
        **_parts.places(core, inputs),
    )
