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
    """The blocks at their current sizes, as for LLaVA 1.5."""
    return llava.blocks(model)


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch.

    Patches attend within their tile; padding tiles do not count, because the model drops them.
    """
    config = model.config
    images_per_sample = inputs["batch_num_images"].tolist()
    single = [number == 1 for number in images_per_sample for _ in range(number)]
    tiles = sum(
        modeling.image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
        if tiled
        else 1
        for size, tiled in zip(inputs["image_sizes"].tolist(), single, strict=True)
    )
    pixels = inputs["pixel_values"].flatten(0, 1)[:tiles]
    return {
        "vision": _parts.pictures(pixels, config.vision_config.patch_size),
        "language": _parts.prompt(inputs),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately, as for LLaVA 1.5."""
    calls = llava.stages(model, inputs)
    return {**calls, **{name: _traceable(calls[name]) for name in ("vision", "all")}}


def _traceable(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same call; while traced, image sizes are plain numbers.

    transformers rounds the sizes, but a tracer turns them into tensors.
    """

    def unpad(features: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        (height, width), (rows, columns) = map(int, features.shape[1:]), size.tolist()
        if columns / rows > width / height:
            margin = (height - int(round(rows * width / columns, 7))) // 2
            return features[:, margin : height - margin]
        margin = (width - int(round(columns * height / rows, 7))) // 2
        return features[:, :, margin : width - margin]

    def traceable() -> Any:
        if not _parts.tracing():
            return call()
        original, modeling.unpad_image = modeling.unpad_image, unpad
        try:
            return call()
        finally:
            modeling.unpad_image = original

    return traceable
