"""Models of any family and size in memory, with random weights, and how much of them to keep.

sized("llava", Sizes(heads=3, groups=2, queries=3, tower=60, text=5))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from harness import families
from harness.types import VLM
from tests.support.family_configs import TINY

HEAD = {"vision": 8, "language": 12}  # the width of a head


@dataclass(frozen=True)
class Sizes:
    """heads of the tower; groups of the language model with so many queries each; channels of both kinds of FFN."""

    heads: int = 4
    groups: int = 2
    queries: int = 2
    tower: int = 64
    text: int = 64


def sized(family: str, sizes: Sizes, change: Callable[[Any], None] = lambda config: None) -> VLM:
    """The tiny model of a family in these sizes; `change` may set more of its config."""
    config, processor = TINY[family]()
    vision, text = config.vision_config, config.get_text_config()
    vision.num_attention_heads = sizes.heads  # an alias of num_heads in Qwen's towers
    text.num_attention_heads, text.num_key_value_heads = sizes.groups * sizes.queries, sizes.groups
    text.hidden_size, text.head_dim = HEAD["language"] * sizes.groups * sizes.queries, HEAD["language"]
    text.intermediate_size = sizes.text
    width = HEAD["vision"] * sizes.heads
    if family == "qwen2_vl":
        vision.embed_dim, vision.mlp_ratio, vision.hidden_size = width, max(1, sizes.tower // width), text.hidden_size
    else:
        vision.hidden_size, vision.intermediate_size = width, sizes.tower
        if family in ("qwen2_5_vl", "qwen3_vl"):
            vision.out_hidden_size = text.hidden_size
    change(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
    blocks = families.family(family).blocks(model)
    return VLM(name=family, family=family, model=model, processor=processor, blocks=blocks, weights_hash="random")
