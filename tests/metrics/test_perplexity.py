"""Perplexity on English text: the model's own loss, window by window, and its intervals."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.metrics import perplexity
from harness.types import VLM
from tests.support.contexts import Attached
from tests.support.trials import dense_trial


def test_it_is_the_models_own_loss(tiny: VLM) -> None:
    """transformers computes the same mean, window by window, from labels."""
    found = perplexity.nats(tiny)
    assert found.shape == (perplexity.WINDOWS,)
    model: Any = tiny.model
    text = perplexity.TEXT.read_text(encoding="utf-8")
    tokens = torch.tensor(tiny.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    for number in (0, 5):
        row = tokens[number * perplexity.WINDOW :][: perplexity.WINDOW][None]
        with torch.no_grad():
            assert float(model(input_ids=row, labels=row).loss) == pytest.approx(found[number], rel=1e-5)


def test_the_dense_model_has_the_ratio_one_and_a_uniform_one_the_vocabulary(tiny: VLM) -> None:
    trial = dense_trial("mini_gqa", metrics=("perplexity",))
    found = perplexity.measure(tiny, tiny, trial, Attached())
    assert (found["ratio"], found["ratio_lo"], found["ratio_hi"]) == (1, 1, 1)
    assert found["perplexity"] == found["dense"] and found["lo"] < found["perplexity"] < found["hi"]
    assert found["tokens"] == (perplexity.WINDOW - 1) * perplexity.WINDOWS
    flat = VLM(**{**vars(tiny), "model": copy.deepcopy(tiny.model)})
    flat.model.get_output_embeddings().weight.data.zero_()  # type: ignore[operator]
    found = perplexity.measure(flat, tiny, trial, Attached())
    size = flat.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    assert found["perplexity"] == pytest.approx(size, rel=1e-4)
    assert found["ratio"] == pytest.approx(size / found["dense"], rel=1e-4)


def test_broken_logits_fail_and_huge_losses_stay_finite(tiny: VLM) -> None:
    broken = VLM(**{**vars(tiny), "model": copy.deepcopy(tiny.model)})
    broken.model.get_output_embeddings().weight.data.fill_(math.nan)  # type: ignore[operator]
    with pytest.raises(FloatingPointError, match="the text"):
        perplexity.nats(broken)
    assert all(math.isfinite(value) for value in perplexity._mean(np.full(4, 1e4)))
