"""Gemma 3 (4B and larger): a SigLIP tower, pooling, and a language model with mostly sliding-window attention.

from harness.families import load; load("google/gemma-3-4b-it").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.families import _parts
from harness.types import Block, Component, Extent


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks at their current sizes, read from the modules.

    The norms of queries and keys are per head, so they do not change.
    """
    return (
        *_parts.encoder(model, "model.vision_tower.encoder.layers"),
        *_parts.decoder(model, "model.language_model.layers"),
    )


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch.

    A layer with a sliding window masks the pairs outside the window but still computes their products, so all pairs
    count.
    """
    return {
        "vision": _parts.pictures(inputs["pixel_values"], model.config.vision_config.patch_size),
        "language": _parts.prompt(inputs),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately; see `_parts.stages`.

    In a prompt, the tokens of an image attend to each other.
    """
    with torch.no_grad():
        embedded = model.get_input_embeddings()(inputs["input_ids"])
    masks = model.create_masks_for_generate(
        model.config, embedded, inputs["attention_mask"], None, None, token_type_ids=inputs["token_type_ids"]
    )
    arguments = {"attention_mask": masks}
    return _parts.stages(model, inputs, model.model.language_model, prefill=arguments, traced=arguments)
