"""Checks of checkpoint folders and hub ids, their model type, and hashes of their content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors

from harness.families._generation import FILE
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
    processors = [_mapping(folder / name) for name in ("processor_config.json", "preprocessor_config.json")]
    if processors == [None, None]:
        raise InputError(f"model {folder}: no processor (preprocessor_config.json or processor_config.json is missing)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise InputError(f"model {folder}: no tokenizer (tokenizer.json is missing)")
    if processors[1] is None and "image_processor" not in (processors[0] or {}):
        raise InputError(f"model {folder}: no image processor (preprocessor_config.json is missing)")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"):
        _mapping(folder / name)
    generation_file(folder / FILE)
    if not random_weights:
        _check_weights(folder)


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"model {folder}: no *.safetensors weights; other formats are not read")
    shards = (_mapping(folder / "model.safetensors.index.json") or {}).get("weight_map") or {}
    if lacking := sorted(set(shards.values()) - {file.name for file in files}):
        raise InputError(f"model {folder}: {lacking[0]} is missing, which model.safetensors.index.json names; add it")
    for file in files:
        try:
            # Opening reads the header and checks the file's size against it.
            with safetensors.safe_open(file, framework="numpy"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"model {file}: not a complete safetensors file ({error})") from error


def stored_values(folder: Path) -> int:
    """The number of values in a folder's weights, by the headers of its files."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, framework="numpy") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def generation_file(path: Path) -> dict[str, Any] | None:
    """The content of a generation_config.json, None if there is none; its end-of-turn tokens are checked."""
    content = _mapping(path)
    ends = (content or {}).get("eos_token_id")
    for token in ends if isinstance(ends, list) else [ends]:
        if token is not None and (type(token) is not int or token < 0):
            raise InputError(f"model {path}: eos_token_id: must be a token's id or a list of ids, not {ends!r:.80}")
    return content


def _mapping(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file of a checkpoint; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"model {path}: not JSON that can be read; copy the file anew") from error
    if not isinstance(content, dict):
        raise InputError(f"model {path}: must hold a mapping of keys, not {content!r:.80}; copy the file anew")
    return content


def _model_type(path: Path) -> str:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a transformers config with a model_type") from error


@contextmanager
def explained(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn whatever a damaged checkpoint leads to into one line; an import that fails is no damage, nor is `passed`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ImportError, InputError, *passed)):
            raise
        text = " ".join(str(error).split())
        raise InputError(f"{what}: {type(error).__name__}: {text[:300]}") from error


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
