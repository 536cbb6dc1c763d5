"""Checks of checkpoint folders and hub ids, their model type, and hashes of their content."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors

from harness.families._names import names
from harness.types import InputError

READ = (".safetensors", ".json", ".jinja", ".model", ".txt")  # the files of a checkpoint that transformers reads


def check(source: str, *, revision: str | None = None, random_weights: bool = False) -> None:
    """Check that a folder, or the config of a hub id, can be loaded; imports no torch.

    Raises InputError naming what is missing.
    """
    if Path(source).is_dir():
        return check_folder(Path(source), random_weights=random_weights)
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(source, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {source}: no such folder, and not found on the hub: {str(error).splitlines()[0]}"
        ) from error
    check_type(Path(path))


def check_folder(folder: Path, *, random_weights: bool = False) -> None:
    """Check that a checkpoint folder is complete, without loading it or importing torch.

    Raises InputError naming what is missing.
    """
    check_folder_files(folder, random_weights)
    check_type(folder / "config.json")


def check_folder_files(folder: Path, random_weights: bool) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"model {folder}: config.json is missing; a transformers checkpoint folder has one")
    _model_type(path)
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise InputError(f"model {folder}: no processor (preprocessor_config.json or processor_config.json is missing)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise InputError(f"model {folder}: no tokenizer (tokenizer.json is missing)")
    weights = [] if random_weights else sorted(folder.glob("*.safetensors"))
    if not weights and not random_weights:
        raise InputError(f"model {folder}: no *.safetensors weights; other formats are not read")
    for file in weights:
        try:
            with safetensors.safe_open(
                file, framework="numpy"
            ):  # reads the header and checks the file's size against it
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"model {file}: not a complete safetensors file ({error})") from error


def _model_type(path: Path) -> str:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a transformers config with a model_type") from error


def check_type(path: Path) -> None:
    model_type = _model_type(path)
    if model_type not in names():
        raise InputError.unknown("model_type", model_type, names(), f"model {path}: ")


def model_type(source: str, revision: str | None = None) -> str | None:
    """The model type in the config of a folder, or in the hub's cache; None if the config cannot be read."""
    path = _cached_config(source, revision)
    try:
        return None if path is None else _model_type(path)
    except (InputError, OSError):
        return None


def checkpoint_hash(source: str, revision: str | None = None) -> str | None:
    """16 hex digits: of a SHA-256 over a folder's files that transformers reads, or of the cached hub commit.

    None for a hub id that is not in the cache.
    """
    if not Path(source).is_dir():
        path = _cached_config(source, revision)
        return None if path is None else path.parent.name[:16]
    files = sorted(file for file in Path(source).iterdir() if file.suffix in READ and file.is_file())
    return _files_hash(tuple(files), tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def _cached_config(source: str, revision: str | None) -> Path | None:
    if Path(source).is_dir():
        return Path(source) / "config.json"
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(path) if isinstance(path, str) else None


@lru_cache(maxsize=8)
def _files_hash(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def weights_hash(model: Any) -> str:
    """First 16 hex digits of the SHA-256 over all parameters, by name."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
