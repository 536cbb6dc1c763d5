"""What is known of this machine, and what it can do: matrix rate, copy bandwidth, widths at which products run well.

    facts("cpu")["cpu"]
    machine("cpu", "float32").matmul_flops      # FLOPs a second of a large product
    step("cuda", "bfloat16")                    # the multiple that widths should have here

Measured once per machine, device, dtype, threads and version of torch; kept under the user's cache folder
(`$XDG_CACHE_HOME/infoprune-bench`, else `~/.cache/infoprune-bench`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness.files import put
from harness.metrics.latency import seconds
from harness.types import InputError

STEPS = (1, 8, 16, 32, 64, 128)  # multiples that widths are tried at
GOOD = 0.97  # of the best multiple's rate: the smallest multiple that reaches it is taken

PACKAGES = ("torch", "transformers", "lmms-eval", "fvcore", "numpy")


@functools.cache
def facts(device: str) -> dict[str, Any]:
    """What is known of the machine: processor, memory, GPU with clocks, library versions."""
    found: dict[str, Any] = {
        "device": device,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_bytes"] = properties.total_memory
        found["gpu_clock_mhz"] = torch.cuda.clock_rate(device)
        found["cuda"] = torch.version.cuda
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# --- measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """FLOPs a second of the best large matrix product, and bytes a second (read and written) of a large copy."""

    matmul_flops: float
    copy_bytes: float


def machine(device: str, dtype: str) -> Machine:
    """The rates of this machine, measured at first use."""
    return Machine(**_kept("rates", device, dtype, _rates))


def step(device: str, dtype: str) -> int:
    """The smallest multiple of STEPS at which products run at GOOD of the best rate over all of them."""
    rates = {int(key): rate for key, rate in table(device, dtype).items()}
    return min(multiple for multiple, rate in rates.items() if rate >= GOOD * max(rates.values()))


def table(device: str, dtype: str) -> dict[str, float]:
    """FLOPs a second of products whose width is an odd number of times each multiple, by multiple."""
    return _kept("widths", device, dtype, _widths)


def _rates(device: str, dtype: str) -> dict[str, float]:
    gpu = device.startswith("cuda")
    sizes = (4096, 8192) if gpu else (512, 1024, 2048)
    kind = getattr(torch, dtype)
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        best = max(best, 2 * size**3 / _seconds(lambda a=left, b=right: a @ b, device))
    source = torch.empty((1 << 31) if gpu else (1 << 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)
    return {"matmul_flops": best, "copy_bytes": copied}


def _widths(device: str, dtype: str) -> dict[str, float]:
    """An FFN's two products, at some odd multiples of each step around one width."""
    gpu = device.startswith("cuda")
    tokens, inner, centre = (8192, 4096, 5120) if gpu else (256, 768, 1280)
    kind = getattr(torch, dtype)
    x = torch.randn(tokens, inner, device=device).to(kind)
    found = {}
    for multiple in STEPS:
        rates = []
        for turn in (-1, 0, 1):
            width = multiple * (2 * (centre // (2 * multiple) + turn) + 1)
            up, down = (torch.randn(*shape, device=device).to(kind) for shape in ((inner, width), (width, inner)))
            rates.append(4 * tokens * inner * width / _seconds(lambda a=up, b=down: x @ a @ b, device))
        found[str(multiple)] = median(rates)
    return found


def _seconds(call: Callable[[], Any], device: str) -> float:
    """The fastest of some calls: what the machine can do when nothing else disturbs it."""
    return seconds(call, torch.device(device), min)


def folder() -> Path:
    """Where measurements of this machine are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infoprune-bench"


@functools.cache
def _kept(name: str, device: str, dtype: str, measure: Callable[[str, str], dict[str, float]]) -> dict[str, float]:
    """The measurement from this process, else from the cache folder, else made now and put there.

    Raises InputError for a kept file that cannot be read as one.
    """
    about = _about(device, dtype)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = folder() / f"{name}-{key}.json"
    if path.is_file():
        try:
            return {str(key): float(value) for key, value in json.loads(path.read_text())["found"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a measurement of this machine; delete it") from error
    found = measure(device, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "found": found}, indent=1) + "\n"
    put(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return found


def _about(device: str, dtype: str) -> dict[str, Any]:
    """What a measurement depends on."""
    named = facts(device)
    return {key: named.get(key) for key in ("cpu", "gpu", "threads")} | {
        "device": device,
        "dtype": dtype,
        "torch": torch.__version__,
    }
