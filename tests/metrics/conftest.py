"""A model whose answers differ from question to question."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.types import VLM


@pytest.fixture
def talker(tiny: VLM) -> VLM:
    """The tiny model with larger weights, so that its random answers depend on what it sees."""
    model = type(tiny.model)(tiny.model.config).eval()
    model.generation_config = tiny.model.generation_config
    model.load_state_dict(tiny.model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return replace(tiny, model=model, name="talker")
