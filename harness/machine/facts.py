"""Facts about this machine: processor, memory, GPU with clocks, library versions.

facts("cpu")["cpu"]
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "lmms-eval", "fvcore", "numpy")


@functools.cache
def facts(device: str) -> dict[str, Any]:
    """Facts about this machine for a record: processor, memory, GPU with clocks, library versions.

    A fact that cannot be read is absent.
    """
    import torch

    values: dict[str, Any] = {
        "device": device,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    # A node without a GPU writes the records of trials that died on another one.
    if device.startswith("cuda") and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        values["gpu"] = properties.name
        values["gpu_memory_bytes"] = properties.total_memory
        values |= _clock(device)
        values["cuda"] = torch.version.cuda
    return values


def _clock(device: str) -> dict[str, int]:
    """The clock of a GPU in MHz; nothing if NVML refuses, as for a partition of a GPU or in some containers."""
    import pynvml
    import torch

    try:
        return {"gpu_clock_mhz": torch.cuda.clock_rate(device)}
    except (pynvml.NVMLError, RuntimeError):  # torch turns some of NVML's errors into a RuntimeError
        return {}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
