"""`infoprune doctor`: checks whether this installation works. Each result is that of a check that ran.

all(result.ok for result in examine())
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from harness import families, registry
from harness.families import encode


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    check: str
    ok: bool
    detail: str
    code: int = 1  # the command's exit code if it is not ok: 2 for what is not usable at all


def examine() -> list[CheckResult]:
    """Check Python, matching packages, devices, disk, the registry, and a forward pass of every embedded model."""
    import torch

    results = [CheckResult("Python", sys.version_info >= (3, 11), platform.python_version())]
    packages = ("torch", "torchvision", "transformers", "lmms-eval", "fvcore", "pandas", "numpy")
    results.append(CheckResult("packages", True, ", ".join(f"{n} {importlib.metadata.version(n)}" for n in packages)))
    results.append(_torchvision())
    count = torch.cuda.device_count()
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none; CPU is used"
    results.append(CheckResult("CUDA devices", True, gpus))
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    results.append(CheckResult("free disk", free > 1, f"{free:.0f} GB here"))
    methods = registry.every_method()
    usable = [name for name, method in methods.items() if not isinstance(method, str)]
    results.append(CheckResult("methods", bool(usable), ", ".join(usable)))
    for kind, loaded in (("method", methods), ("command", registry.commands())):
        broken = {name: reason for name, reason in loaded.items() if isinstance(reason, str)}
        results += [CheckResult(f"{kind} {name}", False, reason, code=2) for name, reason in broken.items()]
    for name, folder in registry.MODELS.items():
        vlm = families.load(folder)
        inputs = encode(vlm.processor, [[Image.new("RGB", (96, 96), "red")]], ["What color is the circle?"])
        with torch.no_grad():
            logits = vlm.model(**inputs).logits
        detail = f"{vlm.family}, weights {vlm.weights_hash}"
        results.append(CheckResult(f"model {name}", bool(torch.isfinite(logits).all()), detail))
    return results


def _torchvision() -> CheckResult:
    """torchvision's compiled operators fail to load if it was built for another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision
    except RuntimeError as error:
        return CheckResult(
            "torchvision matches torch",
            False,
            f"{error}; install the torch and torchvision versions in constraints.txt",
        )
    return CheckResult("torchvision matches torch", True, torchvision.__version__)
