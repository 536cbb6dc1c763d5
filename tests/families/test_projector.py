"""Every family has a projector that can be trained alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import families
from harness.families._parts import projector
from tests.support.family_configs import TINY, build


@pytest.mark.parametrize("name", TINY)
def test_the_projector_is_outside_the_blocks(name: str, tmp_path: Path) -> None:
    vlm = families.load(build(name, tmp_path / name))
    model: Any = vlm.model
    weights = {id(weight) for part in projector(vlm.model) for weight in part.parameters()}
    inside = {id(w) for block in vlm.blocks for w in vlm.model.get_submodule(block.path).parameters()}
    assert weights and not weights & inside
    assert id(model.get_output_embeddings().weight) not in weights
