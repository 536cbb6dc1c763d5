"""An untrained checkpoint folder of the embedded model: sizes, tokenizer, processor, chat template, initial weights.

    from harness.reference.model import build; build(Path("untrained"))

The folder is an ordinary Qwen2-VL checkpoint: AutoModelForImageTextToText and AutoProcessor load it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.utils import logging

from harness.reference.questions import FORMS, ask
from harness.reference.scenes import SIDE, WORDS, objects_scene, text_scene

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SUFFIX = "\nAnswer the question using a single word or phrase."
PATCH, MERGE = 8, 2

# One turn per message, images at their place in its content, and no system turn, which keeps prompts short.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SIZES: dict[str, Any] = {
    "vision": {"depth": 4, "embed_dim": 64, "num_heads": 8, "mlp_ratio": 3},
    "text": {
        "num_hidden_layers": 4,
        "hidden_size": 96,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 256,
    },
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with one token per word of the questions; other text becomes bytes, digits stay single."""
    core = Tokenizer(models.BPE())
    pattern = Regex(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    lines = ["user\n", "assistant\n", SUFFIX, *WORDS, *(f" {word}" for word in WORDS), "yes no small large"]
    for task in FORMS:
        for _ in range(400):
            scene = text_scene(rng) if task == "mini_textvqa" else objects_scene(rng)
            lines += [f"{q.text} {q.answer}\n{q.answer}" for q in ask(scene, task, rng, 8)]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=list(SPECIAL),
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def processor(side: int = SIDE) -> Qwen2VLProcessor:
    """Qwen2-VL's own processor with patches of 8 pixels; images are scaled to about `side` x `side` pixels at most."""
    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    pixels = {"shortest_edge": (4 * PATCH) ** 2, "longest_edge": side * side}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **sizes),
        tokenizer=tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=pixels, **sizes),
        chat_template=CHAT_TEMPLATE,
    )


def config(vocabulary: PreTrainedTokenizerFast, vision: dict[str, Any], text: dict[str, Any]) -> Qwen2VLConfig:
    """The configuration for these sizes, with the special tokens of the tokenizer."""
    ids: dict[str, Any] = {token: vocabulary.convert_tokens_to_ids(token) for token in SPECIAL}
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]  # frequencies for time, height, width
    ends: dict[str, Any] = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    return Qwen2VLConfig(
        vision_config={
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "hidden_size": text["hidden_size"],
            # An image has about a dozen patches per side, not thousands.
            "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
            **vision,
        },
        text_config={
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": section},
            **ends,
            **text,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        **ends,
    )


def initialise(model: torch.nn.Module, seed: int) -> None:
    """Xavier initialisation of every Linear and of the patch embedding.

    At these widths, the usual fixed 0.02 is too small for training to start.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            rows = module.weight.data.view(module.weight.shape[0], -1)
            torch.nn.init.xavier_uniform_(rows, generator=generator)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=module.embedding_dim**-0.5, generator=generator)


def build(
    folder: Path,
    *,
    seed: int = 0,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    side: int = SIDE,
) -> Path:
    """Write an untrained checkpoint of these sizes (default: the embedded model's) to `folder` and return it."""
    new_processor = processor(side)
    sizes = {"vision": vision or SIZES["vision"], "text": text or SIZES["text"]}
    model = Qwen2VLForConditionalGeneration(config(new_processor.tokenizer, **sizes))
    initialise(model, seed)
    generation = model.generation_config
    if generation is not None:
        generation.eos_token_id = new_processor.tokenizer.eos_token_id
        generation.pad_token_id = new_processor.tokenizer.pad_token_id
    logging.disable_progress_bar()  # no bar over a model's files: it is a single file
    model.save_pretrained(folder)
    new_processor.save_pretrained(folder)
    return folder
