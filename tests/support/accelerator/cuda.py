"""What `torch.cuda` says while the fake accelerator is installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.support.accelerator.tensor import Runtime, index_of

NAME = "Fake GPU"


def _properties(device: Any = None) -> Any:
    index_of(device)
    return SimpleNamespace(
        name=NAME,
        total_memory=Runtime.ledger.total,
        major=9,
        minor=0,
        multi_processor_count=132,
        uuid="00000000-0000-0000-0000-000000000000",
    )


def _reset(device: Any = None) -> None:
    place = index_of(device)
    Runtime.ledger.peaks[place] = Runtime.ledger.held[place]


def _free(device: Any = None) -> tuple[int, int]:
    ledger = Runtime.ledger
    return min(ledger.limit or ledger.total, ledger.total) - ledger.held[index_of(device)], ledger.total


def _choose(device: Any) -> None:
    Runtime.current = index_of(device)


def seed(value: int) -> None:
    """The device's random state after this seed: another than the CPU's."""
    Runtime.random[Runtime.current] = torch.Generator().manual_seed(value + 1_000_003).get_state()


def seed_all(value: int) -> None:
    Runtime.random = [
        torch.Generator().manual_seed(value + 1_000_003).get_state() for _ in range(Runtime.ledger.devices)
    ]


def _set_state(state: torch.Tensor, device: Any = None) -> None:
    Runtime.random[index_of(device)] = state.clone()


FUNCTIONS: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "clock_rate": lambda device=None: 1980,
    "current_device": lambda: Runtime.current,
    "device_count": lambda: Runtime.ledger.devices,
    "empty_cache": lambda: None,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_name": lambda device=None: NAME,
    "get_device_properties": _properties,
    "get_rng_state": lambda device=None: Runtime.random[index_of(device)].clone(),
    "init": lambda: None,
    "is_available": lambda: True,
    "is_bf16_supported": lambda including_emulation=True: True,
    "is_current_stream_capturing": lambda: False,
    "is_initialized": lambda: True,
    "manual_seed": seed,
    "manual_seed_all": seed_all,
    "max_memory_allocated": lambda device=None: Runtime.ledger.peaks[index_of(device)],
    "mem_get_info": _free,
    "memory_allocated": lambda device=None: Runtime.ledger.held[index_of(device)],
    "memory_reserved": lambda device=None: Runtime.ledger.held[index_of(device)],
    "reset_peak_memory_stats": _reset,
    "set_device": _choose,
    "set_rng_state": _set_state,
    "synchronize": lambda device=None: Runtime.ledger.wait("synchronize"),
}


# What catches operators sees those of its own thread, so transformers must load weights in this one.
ENVIRONMENT = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}


@contextmanager
def patched() -> Iterator[None]:
    """The functions of `torch.cuda` above, in place of torch's."""
    accelerator: dict[str, Any] = {"current_accelerator": lambda check_available=False: torch.device("cuda")}
    with (
        mock.patch.multiple(torch.cuda, **FUNCTIONS),
        mock.patch.multiple(torch.accelerator, **accelerator),
        mock.patch.dict(os.environ, ENVIRONMENT),
    ):
        yield
