"""A tiny random checkpoint of every family, and the model in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import families
from harness.types import VLM
from tests.support.family_configs import TINY, build


@pytest.fixture(scope="module", params=TINY)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint")


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    return families.load(folder)
