"""Every family has a projector that can be trained alone."""

from __future__ import annotations

from typing import Any

from harness.families._parts import projector
from harness.types import VLM


def test_the_projector_is_outside_the_blocks(vlm: VLM) -> None:
    model: Any = vlm.model
    weights = {id(weight) for part in projector(model) for weight in part.parameters()}
    inside = {id(w) for block in vlm.blocks for w in model.get_submodule(block.path).parameters()}
    assert weights and not weights & inside
    assert id(model.get_output_embeddings().weight) not in weights
