"""Memory, on any device: running out of it told from other errors, tidying up after that, and peaks.

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

# torch's allocator for the CPU raises a plain RuntimeError.
CPU = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory was short."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in CPU)


def release() -> None:
    """Give back what nobody refers to any more; to be called when the error itself is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def begin_peak(device: str) -> None:
    """Forget earlier peaks. Where this process's cannot be (not on Linux), `peak` is that of its whole life."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: the peak, see proc(5)


def peak(device: str) -> int:
    """Bytes: the GPU's largest allocation since `begin_peak`, or without a GPU the most that was resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
