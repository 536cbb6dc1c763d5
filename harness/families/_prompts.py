"""Encode questions about images as model inputs; the only place where a chat prompt is rendered and padded.

inputs = encode(vlm.processor, [[image]], ["What colour is the star?"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.pictures import as_shown
from harness.types import InputError

if TYPE_CHECKING:
    import torch
    from PIL import Image


def render(processor: Any, text: str, images: int) -> str:
    """One user turn with this many images before its text, up to where the model's answer begins."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    message = [{"role": "user", "content": content}]
    return processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def encode(
    processor: Any,
    images: Sequence[Sequence[Image.Image]],
    texts: Sequence[str],
    answers: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    places: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """Render one user turn per text, its images first, with the processor's chat template; pad on the left.

    With `answers`, each prompt is followed by its answer and the end-of-turn token; `labels` holds these tokens and is
    -100 elsewhere. Without, the prompt ends where the model's answer begins. Returns tensors; ids: (n, longest).
    Raises InputError for a text that holds one of the model's tokens (`<image>`), and for a question or an image that
    the processor refuses. `places` name the questions in these errors, for example by file and row.
    """
    names = places or [f"question {text!r:.80}" for text in texts]
    refuse_tokens(processor, texts, names)
    refuse_tokens(processor, answers or (), names)
    try:
        return encode_batch(processor, images, texts, answers, device)
    except (ValueError, ArithmeticError) as error:
        for row, name in enumerate(names):
            try:
                encode_batch(processor, images[row : row + 1], texts[row : row + 1], answers and answers[row : row + 1])
            except (ValueError, ArithmeticError) as fault:
                sizes = " and ".join(f"an image of {image.width}x{image.height} pixels" for image in images[row])
                why = " ".join(str(fault).split())
                raise InputError(f"{name}: the processor refuses it, with {sizes or 'no image'}: {why}") from error
        raise


def refuse_tokens(processor: Any, texts: Sequence[str], names: Sequence[str]) -> None:
    """Raise InputError if a text holds what the tokenizer reads as one token with a meaning of its own."""
    tokenizer = processor.tokenizer
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = [*special, *tokenizer.all_special_tokens, *filter(None, [getattr(processor, "image_token", None)])]
    for name, text in zip(names, texts, strict=False):
        if token := next((token for token in tokens if token in text), None):
            raise InputError(f"{name}: holds {token!r}, which this model reads as a token; word it without that")


def encode_batch(
    processor: Any,
    images: Sequence[Sequence[Image.Image]],
    texts: Sequence[str],
    answers: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """What `encode` gives; an error of the processor is passed on."""
    tokenizer = processor.tokenizer
    prompts = [render(processor, text, len(row_images)) for row_images, text in zip(images, texts, strict=True)]
    endings = [""] * len(prompts) if answers is None else [a + tokenizer.eos_token for a in answers]
    texts = [p + e for p, e in zip(prompts, endings, strict=True)]
    # If the template already writes the beginning-of-sequence token, the tokenizer must not add a second one.
    has_bos = bool(tokenizer.bos_token) and all(prompt.startswith(tokenizer.bos_token) for prompt in prompts)
    batch = processor(
        text=texts,
        images=[[as_shown(image) for image in row_images] for row_images in images] if any(images) else None,
        add_special_tokens=not has_bos,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = {key: value.to(device) for key, value in batch.items()}
    if answers is not None:
        labels = inputs["input_ids"].new_full(inputs["input_ids"].shape, -100)
        for row, (text, ending) in enumerate(zip(texts, endings, strict=True)):
            # Tokenized within its text, because a word can have other tokens when it stands alone.
            spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            width = sum(end > len(text) - len(ending) for _, end in spans)
            labels[row, -width:] = inputs["input_ids"][row, -width:]
        inputs["labels"] = labels
    return inputs
