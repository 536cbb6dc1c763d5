"""A two-layer random checkpoint of every family, made offline, and the sizes of published ones for geometry.

build("llava", folder)   # an ordinary checkpoint folder: AutoModelForImageTextToText and AutoProcessor load it
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

SIDE, PATCH = 32, 8
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 12,
    "max_position_embeddings": 4096,
}
ENCODER = {**VISION, "image_size": SIDE, "patch_size": PATCH}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": 48}
TILES = [[32, 32], [32, 64], [64, 32], [64, 64]]
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_TOKENS = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}


def template(image: str, bos: str = "") -> str:
    """A chat template that shows an image as this text."""
    return (
        bos + "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )


def tokenizer(special: dict[str, str], others: tuple[str, ...] = (), bos: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level, a token a byte, with these special tokens; with `bos`, put before every text."""
    core = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        pad_token="<pad>",
        bos_token=bos,
        add_bos_token=bos is not None,
        padding_side="left",
        extra_special_tokens=special,
        clean_up_tokenization_spaces=False,
    )
    made.add_tokens(list(others), special_tokens=True)
    return made


def _qwen(config: str, processor: str, image: str, video: str, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    words = tokenizer(QWEN_TOKENS)
    ids = {f"{name}_id": words.convert_tokens_to_ids(token) for name, token in QWEN_TOKENS.items()}
    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": (4 * PATCH) ** 2, "longest_edge": 96 * 96}
    made = getattr(transformers, processor)(
        image_processor=getattr(transformers, image)(size=pixels, **sizes),
        tokenizer=words,
        video_processor=getattr(transformers, video)(size=pixels, **sizes),
        chat_template=template(QWEN_IMAGE),
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
    return AutoConfig.for_model(
        config,
        vision_config={"patch_size": PATCH, **vision},
        text_config={**TEXT, "vocab_size": len(words), "rope_parameters": rope, **text},
        **ids,
    ), made


def _qwen2_vl() -> Any:
    tower = {"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "hidden_size": 48}
    parts = ("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor")
    return _qwen("qwen2_vl", *parts, tower, {})


def _qwen2_5_vl() -> Any:
    parts = ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor")
    return _qwen("qwen2_5_vl", *parts, {**QWEN_TOWER, "window_size": 32, "fullatt_block_indexes": [1]}, {})


def _qwen3_vl() -> Any:
    parts = ("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor")
    deep = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return _qwen("qwen3_vl", *parts, {**QWEN_TOWER, **deep}, {})


def _llava() -> Any:
    words = tokenizer({"image_token": "<image>"}, bos="<bos>")
    made = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )
    return AutoConfig.for_model(
        "llava",
        vision_config={"model_type": "clip_vision_model", **ENCODER, "num_hidden_layers": 3},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words), "num_key_value_heads": 4},
        image_token_index=words.convert_tokens_to_ids("<image>"),
    ), made


def _llava_onevision() -> Any:
    words = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    size = {"height": SIDE, "width": SIDE}
    made = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=TILES),
        tokenizer=words,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    return AutoConfig.for_model(
        "llava_onevision",
        vision_config={"model_type": "siglip_vision_model", **ENCODER, "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(words)},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=TILES,
        tie_word_embeddings=True,
    ), made


def _idefics(name: str, processor: Callable[..., Any], image: Any, bos: str, **others: Any) -> Any:
    marks = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    cells = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    words = tokenizer({"image_token": "<image>"}, marks + cells, bos="<bos>")
    made = processor(
        image_processor=image(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}),
        tokenizer=words,
        image_seq_len=(SIDE // PATCH // 2) ** 2,
        chat_template=template("<image>", bos),
        **others,
    )
    return AutoConfig.for_model(
        name,
        vision_config=ENCODER,
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words), "pad_token_id": words.pad_token_id},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    ), made


def _idefics3() -> Any:
    return _idefics("idefics3", transformers.Idefics3Processor, transformers.Idefics3ImageProcessor, "<bos>")


def _smolvlm() -> Any:
    from transformers.models.smolvlm import processing_smolvlm

    module: Any = processing_smolvlm
    # Spells out numbers of video frames, is no dependency of ours, and the processor cannot be made without it.
    module.num2words = module.num2words or str
    video = transformers.SmolVLMVideoProcessor(size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE})
    parts = (transformers.SmolVLMProcessor, transformers.SmolVLMImageProcessor, "")
    return _idefics("smolvlm", *parts, video_processor=video)


def _internvl() -> Any:
    tokens = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    words = tokenizer(tokens)
    size = {"height": SIDE, "width": SIDE}
    made = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer=words,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        chat_template=template("<IMG_CONTEXT>\n"),
    )
    return AutoConfig.for_model(
        "internvl",
        vision_config={**ENCODER, "image_size": [SIDE] * 2, "patch_size": [PATCH] * 2, "attention_bias": True},
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(words)},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
    ), made


def _gemma3() -> Any:
    words = tokenizer({"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}, bos="<bos>")
    made = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=words,
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        chat_template=template("<boi>", "<bos>"),
    )
    window = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "query_pre_attn_scalar": 12}
    return AutoConfig.for_model(
        "gemma3",
        vision_config={"model_type": "siglip_vision_model", **ENCODER, "vision_use_head": False},
        text_config={**TEXT, **window, "vocab_size": len(words), "pad_token_id": words.pad_token_id},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        boi_token_index=words.convert_tokens_to_ids("<boi>"),
        eoi_token_index=words.convert_tokens_to_ids("<eoi>"),
        mm_tokens_per_image=(SIDE // PATCH // 2) ** 2,
    ), made


TINY: dict[str, Callable[[], Any]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "gemma3": _gemma3,
}


def build(name: str, folder: Path, seed: int = 0, change: Callable[[Any], Any] = lambda config: config) -> Path:
    """Write a checkpoint of this family whose every weight is random, norms and embeddings of images included.

    change: gives the config to use for the tiny one.
    """
    config, processor = TINY[name]()
    config = change(config)
    model = AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * weight[0].numel() ** -0.5 if weight.ndim > 1 else weight + 0.1 * noise)
    generation: Any = model.generation_config
    generation.eos_token_id, generation.pad_token_id = (
        processor.tokenizer.eos_token_id,
        processor.tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# --- published sizes --------------------------------------------------------------------------------------

_QWEN2_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
_QWEN2_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151655,
}
_QWEN3_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
}
_VICUNA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32064,
}
_SMOL_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49280,
}
_SMOL_17B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 8192,
    "vocab_size": 49280,
}
_GEMMA3_4B = {
    "hidden_size": 2560,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 10240,
    "sliding_window": 1024,
    "vocab_size": 262208,
}


def _tower(width: int, layers: int, heads: int, channels: int, **others: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": channels}
    return {"hidden_size": width, **sizes, **others}


_CLIP = _tower(1024, 24, 16, 4096, model_type="clip_vision_model", image_size=336, patch_size=14)
_SO400M = _tower(1152, 27, 16, 4304, patch_size=14)
_SIGLIP = {**_SO400M, "model_type": "siglip_vision_model", "vision_use_head": False}
_QWEN25_TOWER = _tower(1280, 32, 16, 3420, out_hidden_size=3584)
_QWEN3_TOWER = _tower(1152, 27, 16, 4304, out_hidden_size=4096, deepstack_visual_indexes=[8, 16, 24])

# Hub id: model type, vision, text, the rest, and the number of parameters that the hub shows for it.
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    "Qwen/Qwen2-VL-7B-Instruct": ("qwen2_vl", {"hidden_size": 3584}, _QWEN2_7B, {}, 8_291_375_616),
    "Qwen/Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl", _QWEN25_TOWER, _QWEN2_7B, {}, 8_292_166_656),
    "Qwen/Qwen3-VL-8B-Instruct": ("qwen3_vl", _QWEN3_TOWER, _QWEN3_8B, {}, 8_767_123_696),
    "llava-hf/llava-1.5-7b-hf": ("llava", _CLIP, _VICUNA_7B, {}, 7_063_427_072),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (
        "llava_onevision",
        {**_SIGLIP, "num_hidden_layers": 26, "image_size": 384},
        {"model_type": "qwen2", **_QWEN2_7B},
        {},
        8_030_348_832,
    ),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (
        "idefics3",
        _tower(768, 12, 12, 3072, image_size=512, patch_size=16),
        _SMOL_135M,
        {"scale_factor": 4},
        256_484_928,
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": (
        "smolvlm",
        {**_SO400M, "image_size": 384},
        _SMOL_17B,
        {"scale_factor": 3},
        2_246_784_880,
    ),
    "OpenGVLab/InternVL3-1B": (  # its -hf twin has 19 more rows of embeddings
        "internvl",
        _tower(1024, 24, 16, 4096, attention_bias=True),
        _QWEN2_05B,
        {"tie_word_embeddings": False},
        938_158_976,
    ),
    "google/gemma-3-4b-it": ("gemma3", {**_SIGLIP, "image_size": 896}, _GEMMA3_4B, {}, 4_300_079_472),
}


def published(hub_id: str) -> Any:
    """The model of these sizes without weights, on the meta device."""
    model_type, vision, text, rest, _ = PUBLISHED[hub_id]
    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, vision_config=vision, text_config=text, **rest)
        return AutoModelForImageTextToText.from_config(config)
