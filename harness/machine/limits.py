"""Limits of this machine: measured rates of matrix products and copies, and the widths that products are made for.

    machine("cpu", "float32").matmul_flops      # FLOPs per second of a large product
    step("cuda", "bfloat16")                    # use widths that are multiples of this number

Rates are measured once per machine, kind of device, dtype, thread count and torch version, then stored in the user's
cache folder (`$XDG_CACHE_HOME/infoprune-bench`, else `~/.cache/infoprune-bench`). Widths are not measured: they are a
part of the plan, so they must be the same on every machine of a kind.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.files import put
from harness.machine.facts import facts
from harness.machine.timing import seconds
from harness.types import InputError

# Bytes of which the rows of a matrix should be a multiple. GPUs: NVIDIA, Matrix Multiplication Background User's Guide,
# "Tensor Core Requirements": 16 bytes, and 128 on A100 (compute capability 8.0; newer ones are treated alike).
# https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/
# Processors: Intel, oneMKL Developer Guide, "Coding Techniques": 64 bytes, the width of a cache line and of AVX-512.
PROCESSOR, GPU, AMPERE = 64, 16, 128


@dataclass(frozen=True)
class Machine:
    """FLOPs per second of the best large matrix product, and bytes per second (read and written) of a large copy."""

    matmul_flops: float
    copy_bytes: float


def machine(device: str, dtype: str) -> Machine:
    """The rates of this machine, measured at first use."""
    return Machine(**_cached("rates", device, dtype, _rates))


def step(device: str, dtype: str) -> int:
    """The multiple of widths for which matrix products of this dtype are documented to be fast on this device."""
    size = getattr(torch, dtype).itemsize
    if not device.startswith("cuda"):
        return PROCESSOR // size
    return (AMPERE if torch.cuda.get_device_capability(device) >= (8, 0) else GPU) // size


def _rates(device: str, dtype: str) -> dict[str, float]:
    gpu = device.startswith("cuda")
    sizes = (4096, 8192) if gpu else (512, 1024, 2048)
    torch_dtype = getattr(torch, dtype)
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(torch_dtype) for _ in range(2))
        best = max(best, 2 * size**3 / _seconds(lambda a=left, b=right: a @ b, device))
    source = torch.empty((1 << 31) if gpu else (1 << 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)
    return {"matmul_flops": best, "copy_bytes": copied}


def _seconds(call: Callable[[], Any], device: str) -> float:
    """The fastest of several calls: the machine's speed when nothing else disturbs it."""
    return seconds(call, torch.device(device), min)


def folder() -> Path:
    """The folder where measurements of this machine are stored."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infoprune-bench"


@functools.cache
def _cached(name: str, device: str, dtype: str, measure: Callable[[str, str], dict[str, float]]) -> dict[str, float]:
    """The measurement of this process, else the one in the cache folder, else a new one, which is stored there.

    Raises InputError for a stored file that is not a measurement.
    """
    about = _about(device, dtype)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = folder() / f"{name}-{key}.json"
    if path.is_file():
        try:
            return {str(key): float(value) for key, value in json.loads(path.read_text())["found"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a measurement of this machine; delete it") from error
    measurement = measure(device, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "found": measurement}, indent=1) + "\n"
    put(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return measurement


def _about(device: str, dtype: str) -> dict[str, Any]:
    """The facts that a measurement depends on."""
    known = facts(device)
    return {key: known.get(key) for key in ("cpu", "gpu", "threads")} | {
        "device": device.partition(":")[0],  # GPUs of one model have one measurement
        "dtype": dtype,
        "torch": torch.__version__,
    }
