"""Where the built checkpoint lies: a folder of the user's cache, known by its name, and of the right version.

    place()     # where `infoprune reference build dinov2-smollm2` writes
    built()     # the same, checked; InputError with the command to run if it is missing or of another version

Light: no torch, no transformers.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

from harness.reference.pretrained.wheels import BUILD, need
from harness.types import InputError

NAME = "dinov2-smollm2"
STAMP = "build.json"  # in the folder: what it was built from, and the hash of its weights
SHIPPED = Path(__file__).parent / "adapters.safetensors"
EXPECTED = Path(__file__).parent / "expected.json"  # {"weights": hash of a build with the shipped adapters}


def place() -> Path:
    """The folder of the user's cache that holds the model. Raises InputError if the package platformdirs is missing."""
    need("platformdirs", f"model {NAME}: finding its cache folder")
    import platformdirs

    return platformdirs.user_cache_path("infoprune-bench") / "models" / NAME


def built() -> Path:
    """The folder, if it holds a whole build of this version. Raises InputError with the command that builds it."""
    folder = place()
    if not (folder / STAMP).is_file():
        raise InputError(f"model {NAME}: not built on this machine yet; run `{BUILD}` (about 200 MB to fetch)")
    if version(folder) != current():
        raise InputError(f"model {NAME}: {folder} was built by another version; run `{BUILD}`")
    return folder


def version(folder: Path) -> str:
    """The adapters' hash that a build says it was made with; empty if it does not say."""
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))["adapters"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def current() -> str:
    """The shipped adapters' hash."""
    return adapters_hash(SHIPPED)


def adapters_hash(path: Path) -> str:
    """SHA-256 of a file of adapters."""
    status = path.stat()
    return _hash(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _hash(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
