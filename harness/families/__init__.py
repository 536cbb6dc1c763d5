"""Model families, one file each under transformers' model-type name, and the one way to load any of them.

    vlm = load("path/to/checkpoint")           # or a hub id

A family file says where the blocks of its architecture are: `blocks(model)`, `extents(model, inputs)` and
`stages(model, inputs)`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import safetensors

from harness.types import VLM, InputError


def names() -> list[str]:
    """The supported model types."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def family(model_type: str) -> Any:
    """The module of a model type. Raises InputError listing the supported ones."""
    if model_type not in names():
        raise InputError.unknown("model type", model_type, names())
    return importlib.import_module(f"harness.families.{model_type}")


def load(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> VLM:
    """Load a checkpoint folder or hub id as a VLM in evaluation mode.

    Raises InputError naming what is missing: the folder, its config, its processor, or a supported model type.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if not hasattr(torch, dtype) or not isinstance(getattr(torch, dtype), torch.dtype):
        raise InputError(f"dtype {dtype!r} is not a torch dtype; use float32, bfloat16 or float16")
    folder = Path(source)
    if folder.is_dir():
        check_folder(folder)
    elif str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise InputError(f"model {source}: no such folder, and not a hub id of the form owner/name")
    transformers.utils.logging.disable_progress_bar()
    loader: Any = AutoModelForImageTextToText  # its decorators hide the signature
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **hub)
        made = family(config.model_type)
        model = loader.from_pretrained(source, dtype=getattr(torch, dtype), attn_implementation=attention, **hub)
        processor = AutoProcessor.from_pretrained(source, **hub)
    except OSError as error:
        raise InputError(f"model {source}: {str(error).splitlines()[0]}") from error
    model = model.to(device).eval().requires_grad_(False)
    return VLM(
        name=name or str(source),
        family=config.model_type,
        model=model,
        processor=processor,
        blocks=made.blocks(model),
        weights_hash=weights_hash(model),
    )


def check(source: str) -> None:
    """Raise InputError unless a folder, or the config of a hub id, can be loaded; imports no torch."""
    if Path(source).is_dir():
        return check_folder(Path(source))
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(source, "config.json")
    except (OSError, ValueError) as error:
        raise InputError(f"model {source}: no such folder, nor on the hub: {str(error).splitlines()[0]}") from error
    _check_type(Path(path))


def check_folder(folder: Path) -> None:
    """Raise InputError naming what a checkpoint folder lacks, without loading it or importing torch."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"model {folder}: config.json is missing; a transformers checkpoint folder has one")
    _check_type(path)
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise InputError(f"model {folder}: no processor (preprocessor_config.json or processor_config.json is missing)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise InputError(f"model {folder}: no tokenizer (tokenizer.json is missing)")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"model {folder}: no *.safetensors weights; other formats are not read")
    for file in weights:
        try:
            with safetensors.safe_open(file, framework="numpy"):  # reads the header, holds it against the file's size
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"model {file}: not whole weights in safetensors format ({error})") from error


def _check_type(path: Path) -> None:
    try:
        model_type = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a transformers config with a model_type") from error
    if model_type not in names():
        raise InputError.unknown("model_type", model_type, names(), f"model {path}: ")


def weights_hash(model: Any) -> str:
    """First 16 hex digits of the SHA-256 over all parameters, by name."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
