"""Qwen2.5-VL: a ViT with fused qkv, SwiGLU and mostly windowed attention, and a Qwen2 language model.

from harness.families import load; load("Qwen/Qwen2.5-VL-3B-Instruct").blocks
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.vision_utils import get_vision_window_index

from harness.families import _parts, qwen2_vl
from harness.types import Block, Component, Extent

VISION, LANGUAGE = qwen2_vl.VISION, qwen2_vl.LANGUAGE


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks at their current sizes, read from the modules. Most vision blocks have windowed heads."""
    tower = model.model.visual
    vision = []
    for i, path, layer in _parts.layers(model, VISION):
        windowed = i not in tower.fullatt_block_indexes
        heads = dataclasses.replace(_parts.fused_attention(f"{path}.attn", layer.attn), windowed=windowed)
        vision.append(_parts.block("vision", i, path, heads, _parts.gated_mlp(f"{path}.mlp", layer.mlp)))
    return (*vision, *_parts.decoder(model, LANGUAGE))


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch, over whole images and within the tower's windows."""
    grid, tower = inputs["image_grid_thw"], model.model.visual
    frames = _parts.frames(grid)
    _, ends = get_vision_window_index(
        grid,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return {
        "vision": Extent(sum(frames), sum(n * n for n in frames), sum(n * n for n in ends.diff().tolist())),
        "language": _parts.prompt(inputs),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately, as for Qwen2-VL."""
    return qwen2_vl.stages(model, inputs)
