"""Running out of memory, on any device: told from other errors, and tidied up after.

try: forward(batch)
except Exception as error:
    if out_of_memory(error): release()
"""

from __future__ import annotations

import gc

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
