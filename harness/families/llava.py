"""LLaVA 1.5: a CLIP tower without its last layer, a projector, and a Llama-like language model.

from harness.families import load; load("llava-hf/llava-1.5-7b-hf").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.families import _parts
from harness.types import Block, Component, Extent

VISION = "model.vision_tower.encoder.layers"


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks at their current sizes, read from the modules.

    The projector reads a layer before the tower's last one. The layers after it run without effect, so they are not
    among the blocks; they count as a fixed cost.
    """
    return (
        *_parts.encoder(model, VISION, model.config.vision_feature_layer),
        *_parts.decoder(model, "model.language_model.layers"),
    )


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch.

    Patches attend within their image, together with a class token if the tower has one.
    """
    extra = int(hasattr(model.model.vision_tower.embeddings, "class_embedding"))
    return {
        "vision": _parts.pictures(inputs["pixel_values"], model.config.vision_config.patch_size, extra),
        "language": _parts.prompt(inputs),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately; see `_parts.stages`."""
    read = len(_parts.layers(model, VISION, model.config.vision_feature_layer))
    return _parts.stages(model, inputs, model.model.language_model, unread=model.get_submodule(VISION)[read:])
