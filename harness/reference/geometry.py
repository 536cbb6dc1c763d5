"""Published sizes without their weights: folders of config, processor and the embedded model's small tokenizer.

    python -m harness.reference.geometry          # writes harness/geometries/ anew
    families.load(registry.model("qwen2-vl-7b-geometry"), random_weights=True, dtype="bfloat16", device="cuda")

Speed, memory and compression time depend on the sizes of the matrices, not on what stands in them; so these load
offline and are timed with weights drawn at random. Token ids are the small tokenizer's, the vocabulary's width is the
published one. `mini-geometry` is two layers of each component of Qwen2-VL-2B: its shapes, for a machine without a GPU.

Sizes: the checkpoints' config.json on the hub, Qwen/Qwen2-VL-{2B,7B}-Instruct and llava-hf/llava-1.5-7b-hf.
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
    """Config and processor of a Qwen2-VL with a language model of these sizes."""
    words = tokenizer()
    sizes: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    made = config(words, {**TOWER, "depth": depth}, {**text, "rope_parameters": rope})
    made.tie_word_embeddings = tied
    return made, Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=PIXELS, **sizes),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(size=PIXELS, **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def llava() -> tuple[Any, Any]:
    """Config and processor of LLaVA-1.5-7B."""
    words = tokenizer()
    mark = "<|image_pad|>"
    side = {"height": 336, "width": 336}
    made = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=side),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=mark,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", mark),
    )
    return AutoConfig.for_model(
        "llava",
        vision_config=CLIP,
        text_config={**VICUNA, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id},
        image_token_index=words.convert_tokens_to_ids(mark),
    ), made


MADE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "mini-geometry": lambda: qwen2_vl({**SMALL, "num_hidden_layers": 2, "vocab_size": 1024}, tied=True, depth=2),
    "qwen2-vl-2b-geometry": lambda: qwen2_vl(SMALL, tied=True),
    "qwen2-vl-7b-geometry": lambda: qwen2_vl(LARGE, tied=False),
    "llava-1.5-7b-geometry": llava,
}


def write(name: str, folder: Path) -> Path:
    """Write the folder of one geometry, a checkpoint without weights, and return it."""
    made, processor = MADE[name]()
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    for each in MADE:
        print(write(each, GEOMETRIES / each))
