"""`infoprune doctor`: is this installation sound? Each finding is a check that was made, not a guess.

all(finding.ok for finding in examine())
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
from harness.prompts import encode


@dataclass(frozen=True)
class Finding:
    check: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Python, packages that must match, devices, disk, the registry, and an answer from the embedded model."""
    import torch

    found = [Finding("Python", sys.version_info >= (3, 11), platform.python_version())]
    names = ("torch", "torchvision", "transformers", "lmms-eval", "fvcore", "pandas", "numpy")
    found.append(Finding("packages", True, ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)))
    found.append(_torchvision())
    count = torch.cuda.device_count()
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none; CPU is used"
    found.append(Finding("CUDA devices", True, gpus))
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    found.append(Finding("free disk", free > 1, f"{free:.0f} GB here"))
    methods = [registry.method(name).name for name in registry.methods()]
    found.append(Finding("methods", bool(methods), ", ".join(methods)))
    for name, folder in registry.MODELS.items():
        vlm = families.load(folder)
        inputs = encode(vlm.processor, [[Image.new("RGB", (96, 96), "red")]], ["What color is the circle?"])
        with torch.no_grad():
            logits = vlm.model(**inputs).logits
        detail = f"{vlm.family}, weights {vlm.weights_hash}"
        found.append(Finding(f"model {name}", bool(torch.isfinite(logits).all()), detail))
    return found


def _torchvision() -> Finding:
    """torchvision's compiled operators fail to load when it was built for another torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchvision
    except RuntimeError as error:
        return Finding("torchvision matches torch", False, f"{error}; install the pair that constraints.txt names")
    return Finding("torchvision matches torch", True, torchvision.__version__)
