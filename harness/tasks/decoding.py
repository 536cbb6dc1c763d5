"""How answers are decoded: greedily, up to an end-of-turn token of the checkpoint or LONGEST tokens.

    with without_own_settings(model):
        model.generate(**inputs, generation_config=greedy(vlm), logits_processor=added(vlm, mask))

What a board's `generation` adds is added here, and nothing else is: neither the checkpoint's generation_config.json nor
a model's `generation_config` has a say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from harness.tasks.truths import LONGEST
from harness.types import VLM


class Finite(LogitsProcessor):
    """Notes whether logits are NaN or +Inf, because a broken model must fail, not score low.

    To ask after each token would be a wait for the device each time, so `check` asks once per batch.
    """

    def __init__(self) -> None:
        self._broken: list[torch.Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self._broken.append((scores.isnan() | scores.isposinf()).any())
        return scores

    def check(self) -> None:
        """Raise FloatingPointError if any of the logits were NaN or +Inf."""
        if torch.stack(self._broken).any():
            raise FloatingPointError("the model's logits are NaN or Inf")


class First(LogitsProcessor):
    """Stores the log-probabilities of each answer's first token, (rows, vocabulary), on the CPU."""

    def __init__(self) -> None:
        self.scores: torch.Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.scores is None:
            self.scores = scores.float().log_softmax(-1).cpu()
        return scores


class Unpadded(LogitsProcessor):
    """Runs processors on each row without its padding, so that an answer does not depend on its batch."""

    def __init__(self, inner: LogitsProcessorList, padding: list[int]) -> None:
        self.inner, self.padding = inner, padding

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        rows = [self.inner(input_ids[i : i + 1, pad:], scores[i : i + 1]) for i, pad in enumerate(self.padding)]
        return torch.cat(rows)


def ends(vlm: VLM) -> set[int]:
    """The checkpoint's end-of-turn tokens: its tokenizer's, and those of its generation_config.json."""
    model: Any = vlm.model
    stated = model.generation_config.eos_token_id
    return {vlm.processor.tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])} - {None}


def greedy(vlm: VLM) -> GenerationConfig:
    """Greedy decoding of at most LONGEST tokens."""
    pad = vlm.processor.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=LONGEST, do_sample=False, num_beams=1, eos_token_id=sorted(ends(vlm)), pad_token_id=pad
    )


def added(vlm: VLM, attention_mask: torch.Tensor) -> list[LogitsProcessor]:
    """What the board's `generation` adds, for a batch that is padded on the left as this mask (rows, tokens) says."""
    asked, inner = vlm.generation, LogitsProcessorList()
    if asked.repetition_penalty != 1:
        inner.append(RepetitionPenaltyLogitsProcessor(asked.repetition_penalty))
    if asked.no_repeat_ngram_size:
        inner.append(NoRepeatNGramLogitsProcessor(asked.no_repeat_ngram_size))
    if banned := [*map(list, asked.bad_words_ids), *([token] for token in asked.suppress_tokens)]:
        inner.append(NoBadWordsLogitsProcessor(banned))
    return [Unpadded(inner, (attention_mask == 0).sum(1).tolist())] if inner else []


@contextmanager
def without_own_settings(model: Any) -> Iterator[None]:
    """The model without settings of its own, which `generate` would take for all that it is not told."""
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
