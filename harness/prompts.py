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
    texts = [p + e for p, e in zip(prompts, endings, strict=True)]
    # A template that writes the token a text begins with is not to have it twice.
    begun = bool(tokenizer.bos_token) and all(prompt.startswith(tokenizer.bos_token) for prompt in prompts)
    batch = processor(
        text=texts,
        images=[[image.convert("RGB") for image in own] for own in images] if any(images) else None,
        add_special_tokens=not begun,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = {key: value.to(device) for key, value in batch.items()}
    if answers is not None:
        labels = inputs["input_ids"].new_full(inputs["input_ids"].shape, -100)
        for row, (text, ending) in enumerate(zip(texts, endings, strict=True)):
            # Within its text, as a first word may be another token than alone.
            spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            width = sum(end > len(text) - len(ending) for _, end in spans)
            labels[row, -width:] = inputs["input_ids"][row, -width:]
        inputs["labels"] = labels
    return inputs
