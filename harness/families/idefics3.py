"""Idefics3 and the first SmolVLM: a SigLIP tower over tiles, pixel shuffle, and a Llama language model.

from harness.families import load; load("HuggingFaceTB/SmolVLM-256M-Instruct").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.families import _parts
from harness.types import Block, Component, Extent


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks at their current sizes, read from the modules."""
    return (
        *_parts.encoder(model, "model.vision_model.encoder.layers"),
        *_parts.decoder(model, "model.text_model.layers"),
    )


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch.

    Patches attend within their tile; padding tiles do not count, because the model drops them.
    """
    tiles = inputs["pixel_values"].flatten(0, 1)
    real = tiles[(tiles != 0).flatten(1).any(1)]
    return {
        "vision": _parts.pictures(real, model.config.vision_config.patch_size),
        "language": _parts.prompt(inputs),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately; see `_parts.stages`."""
    return _parts.stages(model, inputs, model.model.text_model)
