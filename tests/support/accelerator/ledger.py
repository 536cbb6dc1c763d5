"""What the fake accelerator keeps account of: bytes held and their peak per device, and waits of the host for a device.

ledger = Ledger(devices=2, total=1 << 30)
ledger.limit = 4 << 20          # now an allocation beyond it raises CUDA's out-of-memory error
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch

WATCHED = ("/harness/", "/baselines/", "/tests/accelerator/")  # the source files that a wait is put down to
PASSING = "__torch_function__"  # sees the calls of others


@dataclass(eq=False)
class Ledger:
    """The account of all devices. total: bytes that each device says it has; limit: bytes that it really gives."""

    devices: int
    total: int
    limit: int | None = None
    waits: Counter[str] = field(default_factory=Counter)  # "file:line reason" -> number
    held: list[int] = field(init=False)
    peaks: list[int] = field(init=False)
    _storages: WeakValueDictionary[int, Allocation] = field(default_factory=WeakValueDictionary)

    def __post_init__(self) -> None:
        self.held, self.peaks = [0] * self.devices, [0] * self.devices

    def allocation(self, tensor: torch.Tensor, device: int) -> Allocation:
        """The account of a CPU tensor's storage, which counts for `device` as long as a tensor on it refers to it."""
        storage = tensor.untyped_storage()
        return self._storages.get(storage._cdata) or self._allocate(storage, device)

    def _allocate(self, storage: torch.UntypedStorage, device: int) -> Allocation:
        size, limit = storage.nbytes(), self.limit
        if limit is not None and self.held[device] + size > limit:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU {device} has a total capacity of {limit} "
                f"bytes of which {limit - self.held[device]} bytes are free. (fake)"
            )
        allocation = self._storages[storage._cdata] = Allocation(self, storage, device)
        return allocation

    def wait(self, reason: str) -> None:
        """Count a wait of the host for a device: where in the sources it happens, and whether in transformers' code."""
        frame, inside = sys._getframe(1), ""
        while frame is not None and not _watched(frame.f_code):
            if not inside and "/transformers/" in frame.f_code.co_filename:
                inside = f" in transformers ({_place(frame)})"
            frame = frame.f_back
        self.waits[f"{'elsewhere' if frame is None else _place(frame)} {reason}{inside}"] += 1

    def ours(self) -> Counter[str]:
        """The waits that the project's own code asks for."""
        return Counter({place: n for place, n in self.waits.items() if " in transformers " not in place})

    def reset_peaks(self) -> None:
        self.peaks = list(self.held)


def _watched(code: Any) -> bool:
    return code.co_name != PASSING and any(part in code.co_filename for part in WATCHED)


def _place(frame: Any) -> str:
    return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


class Allocation:
    """A storage on a device, for all tensors that view it; it gives its bytes back when the last of them is gone."""

    __slots__ = ("__weakref__", "device", "ledger", "size", "storage")

    def __init__(self, ledger: Ledger, storage: torch.UntypedStorage, device: int) -> None:
        self.ledger, self.storage, self.device, self.size = ledger, storage, device, storage.nbytes()
        ledger.held[device] += self.size
        ledger.peaks[device] = max(ledger.peaks[device], ledger.held[device])

    def __del__(self) -> None:
        self.ledger.held[self.device] -= self.size
