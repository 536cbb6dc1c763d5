"""`infoprune doctor`: checks whether this installation works. Each result is that of a check that ran.

all(result.ok for result in examine())
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import registry
from harness.method_files import FAILURES
from harness.types import InputError

PACKAGES = ("torch", "torchvision", "transformers", "lmms-eval", "fvcore", "pandas", "numpy")


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    check: str
    ok: bool
    detail: str
    code: int = 1  # the command's exit code if it is not ok: 2 for what is not usable at all


def examine() -> list[CheckResult]:
    """Check Python, matching packages, devices, disk, the registry, and a forward pass of every embedded model.

    An error in a check is its result; the others run all the same.
    """
    checks: dict[str, Callable[[], Iterable[CheckResult]]] = {
        "packages": _packages,
        "torchvision matches torch": _torchvision,
        "CUDA devices": _devices,
        "free disk": _disk,
        "methods": _registered,
    }
    checks |= {f"model {name}": partial(_model, name) for name in (*registry.MODELS, *registry.BUILT)}
    results = [CheckResult("Python", sys.version_info >= (3, 11), platform.python_version())]
    for check, run in checks.items():
        try:
            results += run()
        except FAILURES as error:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            results.append(CheckResult(check, False, f"{kind}{' '.join(str(error).split())}", code=2))
    return results


def _packages() -> Iterator[CheckResult]:
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    detail = ", ".join(f"{name} {versions.get(name, 'is missing')}" for name in PACKAGES)
    yield CheckResult("packages", len(versions) == len(PACKAGES), detail)


def _torchvision() -> Iterator[CheckResult]:
    """torchvision's compiled operators fail to load if it was built for another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision
    except RuntimeError as error:
        hint = "install the torch and torchvision versions in constraints.txt"
        yield CheckResult("torchvision matches torch", False, f"{error}; {hint}")
    else:
        yield CheckResult("torchvision matches torch", True, torchvision.__version__)


def _devices() -> Iterator[CheckResult]:
    import torch

    names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    yield CheckResult("CUDA devices", True, ", ".join(names) or "none; CPU is used")


def _disk() -> Iterator[CheckResult]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield CheckResult("free disk", free > 1, f"{free:.0f} GB here")


def _registered() -> Iterator[CheckResult]:
    """The methods that can be used; and each method, command and part of bench that cannot be loaded."""
    methods = registry.every_method()
    usable = [name for name, method in methods.items() if not isinstance(method, str)]
    yield CheckResult("methods", bool(usable), ", ".join(usable))
    for kind, loaded in (("method", methods), ("command", registry.commands()), ("bench", registry.benches())):
        for name, reason in loaded.items():
            if isinstance(reason, str):
                yield CheckResult(f"{kind} {name}", False, reason, code=2)


def _model(name: str) -> Iterator[CheckResult]:
    """A forward pass; no installation needs a model that has to be built first."""
    check = f"model {name}"
    try:
        source = registry.model(name)
    except InputError as error:
        yield CheckResult(check, True, str(error))
        return
    import torch
    from PIL import Image

    from harness import families

    vlm = families.load(source, name=name)
    inputs = families.encode(vlm.processor, [[Image.new("RGB", (96, 96), "red")]], ["What color is the circle?"])
    with torch.no_grad():
        logits = vlm.model(**inputs).logits
    yield CheckResult(check, bool(torch.isfinite(logits).all()), f"{vlm.family}, weights {vlm.weights_hash}")
