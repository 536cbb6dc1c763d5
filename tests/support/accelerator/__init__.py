"""A fake accelerator: `cuda` on a machine without a GPU, which refuses what CUDA refuses and counts what costs time.

    with installed(devices=2) as ledger:
        vlm = families.load(folder, device="cuda:1")
        ledger.waits, ledger.held, ledger.peaks

Tensors there hold CPU data, so results in float32 are the CPU's. Tensors of two devices do not mix, random numbers of
the device are others than the CPU's, `numpy()` and CPU generators are refused, every wait of the host for the device is
counted by its place in the sources, bytes are held from the first to the last tensor of a storage, and beyond
`ledger.limit` CUDA's out-of-memory error is raised. Not covered: kernels, their rounding, and their speed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import _disable_current_modes

from tests.support.accelerator import cuda
from tests.support.accelerator.ledger import Ledger
from tests.support.accelerator.tensor import BACKEND, Factories, Runtime, run


@contextmanager
def installed(devices: int = 1, total: int = 1 << 34) -> Iterator[Ledger]:
    """The fake accelerator with this number of devices of `total` bytes. Not on a machine with a GPU of its own."""
    assert not torch.cuda.is_available(), "this machine has a GPU"
    _register()
    Runtime.ledger, Runtime.current = Ledger(devices, total), 0
    cuda.seed_all(0)
    with cuda.patched(), torch.autograd.set_multithreading_enabled(False), Factories():
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_swap_module_params_on_conversion(True)  # as between real devices, tied weights stay tied
        try:
            yield Runtime.ledger
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_swap_module_params_on_conversion(False)


@contextmanager
def aside() -> Iterator[None]:
    """Work on the CPU inside `installed` that must run as without it: what sees all operators also hides some."""
    with _disable_current_modes():
        yield


@functools.cache
def _register() -> torch.library.Library:
    """Once per process, C++ learns of the device type; without `installed`, nothing uses it."""
    backend_registration._setup_privateuseone_for_python_backend(BACKEND)
    torch._C._ensureCUDADeviceGuardSet()
    torch.accelerator.current_accelerator = lambda check_available=False: None  # as before, outside of `installed`
    # torch.tensor(numbers on the device) reads each of them below the place where operators are caught.
    library = torch.library.Library("aten", "IMPL")
    library.impl(
        "_local_scalar_dense", lambda x: run(torch.ops.aten._local_scalar_dense.default, (x,), {}), "PrivateUse1"
    )
    return library
