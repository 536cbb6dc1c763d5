"""Every test here runs on the fake accelerator, or beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.accelerator import installed
from tests.support.accelerator.ledger import Ledger


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        for item in items:
            if "accelerator" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="this machine has a GPU: -m gpu tests on it"))


@pytest.fixture
def gpus() -> Iterator[Ledger]:
    """Two fake GPUs."""
    with installed(devices=2) as ledger:
        yield ledger
