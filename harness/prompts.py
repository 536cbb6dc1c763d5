"""Questions about images as model inputs: the one place where a chat prompt is rendered and padded.

inputs = encode(vlm.processor, [[image]], ["What colour is the star?"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image


def encode(
    processor: Any,
    images: Sequence[Sequence[Image.Image]],
    texts: Sequence[str],
    answers: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Render one user turn per text (its images first) with the processor's chat template, pad left, and tensorise.

    With `answers`, each prompt is followed by its answer and the end-of-turn token, and `labels` are those tokens
    (-100 elsewhere). Without, the prompt ends where the model is to speak. Shapes: ids (n, longest).
    """
    tokenizer = processor.tokenizer
    prompts = []
    for own, text in zip(images, texts, strict=True):
        content = [{"type": "image"} for _ in own] + [{"type": "text", "text": text}]
        message = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    endings = [""] * len(prompts) if answers is None else [a + tokenizer.eos_token for a in answers]
    flat = [image.convert("RGB") for own in images for image in own]
    batch = processor(
        text=[p + e for p, e in zip(prompts, endings, strict=True)],
        images=flat or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = {key: value.to(device) for key, value in batch.items()}
    if answers is not None:
        labels = inputs["input_ids"].new_full(inputs["input_ids"].shape, -100)
        for row, ending in enumerate(endings):
            width = len(tokenizer(ending, add_special_tokens=False)["input_ids"])
            labels[row, -width:] = inputs["input_ids"][row, -width:]
        inputs["labels"] = labels
    return inputs
