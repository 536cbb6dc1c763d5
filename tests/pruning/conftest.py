"""A small model whose answers depend on what it sees, its calibration, and the model with half of its units."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from PIL import Image

from harness.pruning import surgery
from harness.statistics.calibration import Calibration
from harness.types import VLM, Ranking, Sample
from tests.support.plans import half


@pytest.fixture(scope="module")
def lively(tiny: VLM) -> VLM:
    """The tiny model with larger weights and biases that are not zero, so that what it says depends on what it sees."""
    model = copy.deepcopy(tiny.model)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data.mul_(2)
        if name.endswith("bias"):
            weight.data.normal_(0, 0.3, generator=generator)
    return replace(tiny, model=model)


@pytest.fixture(scope="module")
def calibration(lively: VLM) -> Calibration:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (12, 64, 64, 3), generator=generator, dtype=torch.uint8)
    asked = zip(
        pixels, itertools.cycle(["How many stars?", "What colour is it?"]), itertools.cycle(["two", "red", "7"])
    )
    return Calibration(lively, [Sample(Image.fromarray(p.numpy()), q, a) for p, q, a in asked], batch_size=4)


@pytest.fixture(scope="module")
def pruned(lively: VLM) -> VLM:
    return surgery.apply(lively, half(lively), Ranking({}))
