"""The processor of a checkpoint, with everything that a question about an image needs; gaps are named before any work.

processor, notes = complete("path/to/checkpoint", config, {})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from harness.families._folders import explained
from harness.families._prompts import encode_batch, render
from harness.types import InputError

SIDE = 64  # pixels of the image that is tried
FILES = "processor_config.json, preprocessor_config.json, tokenizer_config.json and tokenizer.json"


def complete(source: str | Path, config: Any, hub_settings: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The processor, and a line on everything that was filled in.

    Without a pad token the end-of-turn token pads: padding is masked. Raises InputError for other gaps: no image
    processor, end-of-turn token or chat template, an image token that tokenizer and config do not share, a vocabulary
    larger than the embedding, and anything else because of which a question cannot be encoded.
    """
    from transformers import AutoProcessor

    where = f"model {source}"
    with explained(f"{where}: no processor can be made of its files; add {FILES} of the model that it comes from"):
        processor = AutoProcessor.from_pretrained(source, **hub_settings)
    for part, file in (("image_processor", "preprocessor_config.json"), ("tokenizer", "tokenizer.json")):
        if getattr(processor, part, None) is None:
            raise InputError(
                f"{where}: a {type(processor).__name__} without {part}; add {file}, and processor_class to "
                "processor_config.json"
            )
    tokenizer, notes = processor.tokenizer, []
    if tokenizer.eos_token is None:
        raise InputError(f"{where}/tokenizer_config.json: eos_token is missing; add the token that ends a turn")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(
            f"tokenizer_config.json: pad_token is missing; the end-of-turn token {tokenizer.eos_token} pads, masked"
        )
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= (rows := config.get_text_config().vocab_size):
        raise InputError(
            f"{where}/tokenizer.json: token {token!r} has the id {last}, but the embedding has {rows} rows (vocab_size "
            "in config.json); add tokenizer files that belong to the weights"
        )
    processor.chat_template = processor.chat_template or tokenizer.chat_template
    if not processor.chat_template:
        raise InputError(f"{where}: chat_template.jinja is missing; add the template of the model's turns")
    _try(processor, config, where)
    return processor, tuple(notes)


def _try(processor: Any, config: Any, where: str) -> None:
    """Encode two questions, one longer than the other, with answers."""
    image, token = Image.new("RGB", (SIDE, SIDE)), getattr(processor, "image_token", None)
    if config.image_token_id not in processor.image_token_ids:
        raise InputError(
            f"{where}/tokenizer.json: the image token {token!r} has the id {processor.image_token_ids[0]}, but "
            f"config.json has image_token_id {config.image_token_id}; add the token with this id"
        )
    with explained(f"{where}/chat_template.jinja: a user's turn cannot be rendered"):
        render(processor, "What?", 1)
    with explained(f"{where}/chat_template.jinja: must show each image as {token!r}, but a question cannot be encoded"):
        inputs = encode_batch(processor, [[image], [image]], ["What?", "What is this?"], ["a", "b c"])
    if not (inputs["input_ids"] == config.image_token_id).any(1).all():
        raise InputError(f"{where}/chat_template.jinja: shows no image; a user's turn must show each as {token!r}")
