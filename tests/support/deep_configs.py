"""Tiny configs with more layers, whose layers differ where a family's may."""

from __future__ import annotations

from typing import Any

DEPTH = 4
# What a family says of single layers, at this depth.
VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"fullatt_block_indexes": [1, 3]},
    "qwen3_vl": {"deepstack_visual_indexes": [0, 2]},
}
TEXT: dict[str, dict[str, Any]] = {
    "gemma3": {"layer_types": ["sliding_attention", "full_attention"] * (DEPTH // 2)},
    "qwen2_vl": {
        "layer_types": ["full_attention", "sliding_attention"] * (DEPTH // 2),
        "sliding_window": 16,
        "use_sliding_window": True,
    },
}


def deep(config: Any, **top: Any) -> Any:
    """The config with DEPTH layers in tower and language model, and these keys changed at its top."""
    content = config.to_dict()
    name = content["model_type"]
    vision, text = content["vision_config"], content["text_config"]
    vision["depth" if "depth" in vision else "num_hidden_layers"] = DEPTH
    text["num_hidden_layers"] = DEPTH
    text.pop("layer_types", None)
    vision |= VISION.get(name, {})
    text |= TEXT.get(name, {})
    return type(config).from_dict(content | top)
