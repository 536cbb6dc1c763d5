"""A tiny random Qwen2-VL in the real classes, made once per test session."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from harness.types import VLM

VISION = {"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2}
TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from harness.reference.model import build

    return build(tmp_path_factory.mktemp("tiny") / "checkpoint", vision=VISION, text=TEXT)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> VLM:
    from harness.families import load

    return load(tiny_folder, name="tiny")
