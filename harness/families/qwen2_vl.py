"""Qwen2-VL: a ViT with fused qkv and a plain two-layer MLP, a merger, a Qwen2 language model with grouped queries.

from harness.families import load; load("Qwen/Qwen2-VL-2B-Instruct").blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.types import Block, Component, Extent, Rows, Units

VISION, LANGUAGE = "model.visual", "model.language_model"


def blocks(model: Any) -> tuple[Block, ...]:
    """The blocks as they now are: read from the modules, so that a pruned model is described as well as a dense one."""
    vision = [_vision_block(i, block) for i, block in enumerate(model.model.visual.blocks)]
    language = [_language_block(i, layer) for i, layer in enumerate(model.model.language_model.layers)]
    return (*vision, *language)


def _vision_block(index: int, block: Any) -> Block:
    path, attention, mlp = f"{VISION}.blocks.{index}", block.attn, block.mlp
    count, width = attention.num_heads, attention.head_dim
    heads = Units(
        kind="heads",
        count=count,
        width=width,
        producers=tuple(Rows(f"{path}.attn.qkv", part * count * width, width) for part in range(3)),
        consumer=f"{path}.attn.proj",
        token_macs=width * (3 * attention.qkv.in_features + attention.proj.out_features),
        pair_macs=2 * width,
        sizes=((f"{path}.attn", "num_heads", 1),),
    )
    ffn = Units(
        kind="ffn",
        count=mlp.fc2.in_features,
        width=1,
        producers=(Rows(f"{path}.mlp.fc1", 0, 1),),
        consumer=f"{path}.mlp.fc2",
        token_macs=mlp.fc1.in_features + mlp.fc2.out_features,
        pair_macs=0,
    )
    return Block(f"vision.{index}", path, "vision", index, heads, ffn)


def _language_block(index: int, layer: Any) -> Block:
    path, attention, mlp = f"{LANGUAGE}.layers.{index}", layer.self_attn, layer.mlp
    width, queries = attention.head_dim, attention.num_key_value_groups
    heads = Units(
        kind="heads",
        count=attention.k_proj.out_features // width,
        width=queries * width,
        producers=(
            Rows(f"{path}.self_attn.q_proj", 0, queries * width),
            Rows(f"{path}.self_attn.k_proj", 0, width),
            Rows(f"{path}.self_attn.v_proj", 0, width),
        ),
        consumer=f"{path}.self_attn.o_proj",
        token_macs=width * ((queries + 2) * attention.q_proj.in_features + queries * attention.o_proj.out_features),
        pair_macs=2 * queries * width,
        sizes=((f"{path}.self_attn", "num_heads", queries), (f"{path}.self_attn", "num_key_value_heads", 1)),
    )
    ffn = Units(
        kind="ffn",
        count=mlp.down_proj.in_features,
        width=1,
        producers=(Rows(f"{path}.mlp.gate_proj", 0, 1), Rows(f"{path}.mlp.up_proj", 0, 1)),
        consumer=f"{path}.mlp.down_proj",
        token_macs=mlp.gate_proj.in_features + mlp.up_proj.in_features + mlp.down_proj.out_features,
        pair_macs=0,
        gated=True,
    )
    return Block(f"language.{index}", path, "language", index, heads, ffn)


def extents(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[Component, Extent]:
    """Tokens and (query, key) pairs of one encoded batch: patches attend within their image, text to its sequence."""
    patches = [int(t * h * w) for t, h, w in inputs["image_grid_thw"].tolist()]
    rows, length = inputs["input_ids"].shape
    return {
        "vision": Extent(sum(patches), sum(n * n for n in patches)),
        "language": Extent(rows * length, rows * length * length),
    }


def stages(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """What is timed and counted apart, each a call without arguments on this encoded batch.

    vision: pixels to projected image tokens. language: prefill of the language model on embeddings. all: prefill from
    pixels to the first answer token's logits. decode: one further token on the prefilled cache.
    """
    core = model.model
    with torch.no_grad():
        embedded = core.get_input_embeddings()(inputs["input_ids"])
        places, _ = core.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        cache = core.language_model(inputs_embeds=embedded, position_ids=places, use_cache=True).past_key_values
        step, after = embedded[:, -1:], places[..., -1:] + 1

    def decode() -> Any:
        out = core.language_model(inputs_embeds=step, position_ids=after, past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return out.last_hidden_state

    return {
        "vision": lambda: core.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output,
        "language": lambda: (
            core.language_model(inputs_embeds=embedded, position_ids=places, use_cache=False).last_hidden_state
        ),
        "all": lambda: model(**inputs, use_cache=False, logits_to_keep=1).logits,
        "decode": decode,
    }
