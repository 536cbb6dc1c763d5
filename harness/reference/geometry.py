"""Model folders with published sizes but no weights: config, processor, and the embedded model's small tokenizer.

    python -m harness.reference.geometry          # writes harness/geometries/ anew
    families.load(registry.model("qwen2-vl-7b-geometry"), random_weights=True, dtype="bfloat16", device="cuda")

Speed, memory and compression time depend on the sizes of the matrices, not on their values. So these models load
offline and are timed with random weights. Token ids come from the small tokenizer; the vocabulary size is the published
one. `mini-geometry` has two layers of each component of Qwen2-VL-2B, for a machine without a GPU.

Sizes: the config.json files on the hub of Qwen/Qwen2-VL-{2B,7B}-Instruct and llava-hf/llava-1.5-7b-hf.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPImageProcessor, LlavaProcessor, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from harness.reference.model import CHAT_TEMPLATE, config, tokenizer

GEOMETRIES = Path(__file__).parent.parent / "geometries"
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
TOWER = {
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 10_000.0},
}
SMALL = {  # Qwen2-VL-2B's language model
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
}
LARGE = {  # Qwen2-VL-7B's
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
    "vocab_size": 152_064,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32_000,
}
VICUNA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 11_008,
    "max_position_embeddings": 4096,
    "vocab_size": 32_064,
}


def qwen2_vl(text: dict[str, Any], *, tied: bool, depth: int = 32) -> tuple[Any, Any]:
    """Config and processor of a Qwen2-VL whose language model has these sizes."""
    small_tokenizer = tokenizer()
    sizes: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    model_config = config(small_tokenizer, {**TOWER, "depth": depth}, {**text, "rope_parameters": rope})
    model_config.tie_word_embeddings = tied
    return model_config, Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS, **sizes),
        tokenizer=small_tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=PIXELS, **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def llava() -> tuple[Any, Any]:
    """Config and processor of LLaVA-1.5-7B."""
    small_tokenizer = tokenizer()
    image_token = "<|image_pad|>"
    side = {"height": 336, "width": 336}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=side),
        tokenizer=small_tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=image_token,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image_token),
    )
    return AutoConfig.for_model(
        "llava",
        vision_config=CLIP,
        text_config={
            **VICUNA,
            "eos_token_id": small_tokenizer.eos_token_id,
            "pad_token_id": small_tokenizer.pad_token_id,
        },
        image_token_index=small_tokenizer.convert_tokens_to_ids(image_token),
    ), processor


MADE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "mini-geometry": lambda: qwen2_vl({**SMALL, "num_hidden_layers": 2, "vocab_size": 1024}, tied=True, depth=2),
    "qwen2-vl-2b-geometry": lambda: qwen2_vl(SMALL, tied=True),
    "qwen2-vl-7b-geometry": lambda: qwen2_vl(LARGE, tied=False),
    "llava-1.5-7b-geometry": llava,
}


def write(name: str, folder: Path) -> Path:
    """Write the folder of one geometry, a checkpoint without weights, and return it."""
    model_config, processor = MADE[name]()
    model_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    for geometry in MADE:
        print(write(geometry, GEOMETRIES / geometry))
