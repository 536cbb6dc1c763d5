"""Qwen3-VL: a ViT with fused qkv, and a Qwen3 language model that reads its features at several depths.

from harness.families import load; load("Qwen/Qwen3-VL-2B-Instruct").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.families import _parts, qwen2_vl
from harness.types import Block, Component, Extent

VISION, LANGUAGE = qwen2_vl.VISION, qwen2_vl.LANGUAGE


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks at their current sizes, read from the modules.

    The norms of queries and keys are per head, so they do not change. Features leave the tower at some depths and enter
    the language model after its first layers; these blocks hold both places.
    """
    tower = model.model.visual
    leave = dict.fromkeys(tower.deepstack_visual_indexes, "features for the language model leave the tower behind it")
    enter = dict.fromkeys(range(len(leave)), "features of the tower enter the language model behind it")
    vision = []
    for i, path, layer in _parts.layers(model, VISION):
        heads = _parts.fused_attention(f"{path}.attn", layer.attn)
        ffn = _parts.mlp(f"{path}.mlp", layer.mlp, "linear_fc1", "linear_fc2", "act_fn")
        vision.append(_parts.block("vision", i, path, heads, ffn, leave.get(i, "")))
    return (*vision, *_parts.decoder(model, LANGUAGE, enter))


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch, as for Qwen2-VL."""
    return qwen2_vl.extents(model, inputs)


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls that are timed and counted separately; see `_parts.stages`.

    The deeper features of the language model are zeros.
    """
    core, image_places = model.model, inputs["input_ids"] == model.config.image_token_id
    zeros = core.get_input_embeddings().weight.new_zeros(int(image_places.sum()), model.config.text_config.hidden_size)
    arguments = _parts.places(core, inputs)
    arguments["prefill"] |= {
        "visual_pos_masks": image_places,
        "deepstack_visual_embeds": [zeros] * len(core.visual.deepstack_merger_list),
    }
    return _parts.stages(
        model,
        inputs,
        core.language_model,
        vision=lambda: core.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output,
        unread=core.visual.deepstack_merger_list,  # the result of the vision stage does not include them
        **arguments,
    )
