"""InternVL 2.5 to 3.5 in transformers' own format: an InternViT over tiles, pixel shuffle, and a Qwen language model.

from harness.families import load; load("OpenGVLab/InternVL3-1B-hf").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.families import _parts
from harness.types import Block, Component, Extent

VISION = "model.vision_tower.encoder.layer"


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks at their current sizes, read from the modules.

    Raises InputError for the 6B tower, which normalises the queries and keys of all heads together.
    """
    vision = []
    for i, path, layer in _parts.layers(model, VISION, model.config.vision_feature_layer):
        # The forward pass reshapes to embed_dim, so that has to change with the number of heads.
        heads = _parts.attention(f"{path}.attention", layer.attention, "projection_layer", "embed_dim")
        ffn = _parts.mlp(f"{path}.mlp", layer.mlp, "fc1", "fc2", "activation_fn")
        vision.append(_parts.block("vision", i, path, heads, ffn))
    return (*vision, *_parts.decoder(model, "model.language_model.layers"))


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch.

    Patches and the class token attend within their tile.
    """
    return {
        "vision": _parts.pictures(inputs["pixel_values"], model.config.vision_config.patch_size[0], extra=1),
        "language": _parts.prompt(inputs),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately; see `_parts.stages`."""
    read = len(_parts.layers(model, VISION, model.config.vision_feature_layer))
    return _parts.stages(model, inputs, model.model.language_model, unread=model.get_submodule(VISION)[read:])
