"""Attention entropy, measured from outside, is that of the attention the model computes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.families import load
from harness.statistics.attention_entropy import entropy
from harness.statistics.calibration import Calibration
from harness.types import VLM, InputError
from tests.support.calibrations import calibration_on_several_questions, encoded_alone


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


def test_entropy_of_the_language_models_attention_is_that_of_the_eager_one(
    tiny: VLM, tiny_folder: Path, calibration: Calibration
) -> None:
    eager = load(tiny_folder, attention="eager")
    found = calibration.attention_entropy()
    means: dict[str, list[Tensor]] = {block.name: [] for block in tiny.blocks if block.component == "language"}
    for batch in encoded_alone(tiny, calibration):
        with torch.no_grad():
            attentions = eager.model(**batch, output_attentions=True).attentions
        for rows, layer in zip(means.values(), attentions, strict=True):
            probabilities = layer[0].double()  # (query heads, queries, keys)
            heads = torch.special.entr(probabilities).sum(-1).mean(-1) / torch.tensor(probabilities.shape[-1]).log()
            rows.append(heads)
    for name, rows in means.items():
        groups = torch.stack(rows).mean(0).reshape(tiny.block(name).heads.count, -1)
        torch.testing.assert_close(found[name], groups.mean(1), atol=1e-5, rtol=1e-4)


def test_uniform_attention_has_the_entropy_of_what_can_be_seen(tiny: VLM, calibration: Calibration) -> None:
    model = deepcopy(tiny.model)
    for name, parameter in model.named_parameters():
        if "qkv" in name or "q_proj" in name:
            parameter.data.zero_()
    flat = Calibration(replace(tiny, model=model), calibration.samples)
    found = flat.attention_entropy()
    lengths = [batch["input_ids"].shape[1] for batch in encoded_alone(tiny, calibration)]
    causal = [sum(torch.arange(1, n + 1).double().log()) / n / torch.tensor(n).double().log() for n in lengths]
    for block in tiny.blocks:
        expected = torch.ones(()) if block.component == "vision" else torch.stack(causal).mean()
        torch.testing.assert_close(found[block.name], expected.double().expand(block.heads.count), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("hidden", ["none", "causal", "bool", "float"])
def test_entropy_is_that_of_the_softmax(hidden: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2))
    lower = torch.ones(5, 5, dtype=torch.bool).tril()
    masks = {"bool": lower[None, None], "float": torch.where(lower, 0.0, -torch.inf)[None, None]}
    found = entropy(query, key, key, masks.get(hidden), is_causal=hidden == "causal", scale=0.5, enable_gqa=True)
    scores = 0.5 * query @ key.repeat_interleave(2, 1).mT
    p = (scores if hidden == "none" else scores.masked_fill(~lower, -torch.inf)).softmax(-1)
    literal = -(p * p.clamp(min=1e-30).log()).sum(-1).mean((0, 2)) / torch.tensor(5.0).log()
    torch.testing.assert_close(found, literal)


def test_attention_that_cannot_be_seen_is_refused(tiny_folder: Path, calibration: Calibration) -> None:
    eager = load(tiny_folder, attention="eager", name="eager")
    with pytest.raises(InputError, match=r"eager: the attention of vision\.0 cannot be seen"):
        Calibration(eager, calibration.samples).attention_entropy()
