"""Memory on any device: detect out-of-memory errors, free memory after one, and measure peaks.

begin_peak(device)
try: forward(batch)
except Exception as error:
    if out_of_memory(error): release()
peak(device)
"""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

# torch's CPU allocator raises a plain RuntimeError with one of these texts.
CPU = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether this error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in CPU)


def release() -> None:
    """Free unreferenced memory. Call it after the error itself is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def begin_peak(device: str) -> None:
    """Reset the peak. Only Linux can reset the CPU's peak; elsewhere `peak` covers the whole life of the process."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5 resets the peak, see proc(5)


def peak(device: str) -> int:
    """Peak bytes since `begin_peak`: the GPU's allocations, or without a GPU the resident memory of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
