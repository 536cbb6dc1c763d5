"""LLaVA-OneVision: a SigLIP tower over an image and its tiles, a projector, and a Qwen2 language model.

from harness.families import load; load("llava-hf/llava-onevision-qwen2-0.5b-ov-hf").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.models.llava_onevision import modeling_llava_onevision as modeling

from harness.families import _parts, llava
from harness.types import Block, Component, Extent


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks as they now are, as for LLaVA 1.5."""
    return llava.blocks(model)


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch: the patches of a tile attend; padding tiles are dropped."""
    config = model.config
    each = inputs["batch_num_images"].tolist()
    alone = [number == 1 for number in each for _ in range(number)]
    tiles = sum(
        modeling.image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
        if tiled
        else 1
        for size, tiled in zip(inputs["image_sizes"].tolist(), alone, strict=True)
    )
    pixels = inputs["pixel_values"].flatten(0, 1)[:tiles]
    return {
        "vision": _parts.pictures(pixels, config.vision_config.patch_size),
        "language": _parts.prompt(inputs),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """What is timed and counted apart, as for LLaVA 1.5."""
    made = llava.stages(model, inputs)
    return {**made, **{name: _traceable(made[name]) for name in ("vision", "all")}}


def _traceable(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same call; when traced, with sizes as numbers: transformers rounds them, and a tracer makes them tensors."""

    def unpad(features: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        (height, width), (rows, columns) = map(int, features.shape[1:]), size.tolist()
        if columns / rows > width / height:
            off = (height - int(round(rows * width / columns, 7))) // 2
            return features[:, off : height - off]
        off = (width - int(round(columns * height / rows, 7))) // 2
        return features[:, :, off : width - off]

    def traceable() -> Any:
        if not _parts.tracing():
            return call()
        own, modeling.unpad_image = modeling.unpad_image, unpad
        try:
            return call()
        finally:
            modeling.unpad_image = own

    return traceable
