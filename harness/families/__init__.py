"""Model families, one file each under transformers' model-type name, and the one way to load any of them.

    vlm = load("path/to/checkpoint")           # or a hub id
    vlm = load("Qwen/Qwen2-VL-7B-Instruct", device="cuda", dtype="bfloat16", random_weights=True)    # its geometry

A family file says where the blocks of its architecture are: `blocks(model)`, `extents(model, inputs)` and
`stages(model, inputs)`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors

from harness.types import VLM, InputError

READ = (".safetensors", ".json", ".jinja", ".model", ".txt")  # what transformers reads of a checkpoint's folder


def names() -> list[str]:
    """The supported model types."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


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
    device_map: str | Mapping[str, str | int] | None = None,
    attention: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    random_weights: bool = False,
    seed: int = 0,
    name: str | None = None,
) -> VLM:
    """Load a checkpoint folder or hub id as a VLM in evaluation mode.

    `device_map` ("auto", or modules to devices) spreads the model by accelerate; `device` is then not asked.
    `random_weights` reads config and processor only, draws the weights by `seed`, and says so in `weights_hash`.
    Raises InputError naming what is missing: the folder, its config, its processor, or a supported model type; for
    another type, what its modules are and how a family is written.
    """
    import torch
    import transformers
    from transformers import AutoProcessor

    from harness.families import _pruned

    if not hasattr(torch, dtype) or not isinstance(getattr(torch, dtype), torch.dtype):
        raise InputError(f"dtype {dtype!r} is not a torch dtype; use float32, bfloat16 or float16")
    if random_weights and device_map is not None:
        raise InputError("device_map: random weights are made on one device; leave it out")
    if attention == "flash_attention_2":
        _check_flash(dtype, device)
    folder = Path(source)
    if folder.is_dir():
        _check_files(folder, random_weights)
    elif str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise InputError(f"model {source}: no such folder, and not a hub id of the form owner/name")
    transformers.utils.logging.disable_progress_bar()
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    how: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    try:
        config = _config(source, hub)
        if config.model_type not in names():
            raise _unknown(config, source)
        processor = AutoProcessor.from_pretrained(source, **hub)
        made_of = _class(config)
        if random_weights:
            with torch.random.fork_rng([device] if device.startswith("cuda") else []), torch.device(device):
                torch.manual_seed(seed)
                model = made_of._from_config(config, **how)
        else:
            model = made_of.from_pretrained(source, config=config, device_map=device_map, **how, **hub)
    except _pruned.ShapeError as error:
        raise InputError(f"model {source}/config.json: {error}") from error
    except OSError as error:
        raise InputError(f"model {source}: {str(error).splitlines()[0]}") from error
    if device_map is None:
        model = model.to(device)
    elif any(weight.is_meta for weight in model.parameters()):
        raise InputError(
            f"model {source}: device_map {device_map!r} leaves weights behind; they must fit on its devices"
        )
    model = model.eval().requires_grad_(False)
    return VLM(
        name=name or str(source),
        family=config.model_type,
        model=model,
        processor=processor,
        blocks=family(config.model_type).blocks(model),
        weights_hash=f"random:{seed}" if random_weights else weights_hash(model),
    )


def save(vlm: VLM, folder: Path) -> str:
    """Write a checkpoint folder; "plain" if the stock class loads it, "custom code" if it brings a modelling file."""
    from harness.families import _saving

    return _saving.save(vlm, folder)


def attention(model: Any) -> str:
    """The attention implementation that a loaded model runs: of each part, where they differ."""
    parts = (model.config, model.config.vision_config, model.config.get_text_config())
    return ", ".join(dict.fromkeys(part._attn_implementation for part in parts))


def _check_flash(dtype: str, device: str) -> None:
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise InputError("attention: flash_attention_2 needs the package flash-attn and a CUDA device; use sdpa")
    if dtype == "float32" or not device.startswith("cuda"):
        raise InputError(f"attention: flash_attention_2 runs in bfloat16 or float16 on cuda, not {dtype} on {device}")


def _class(config: Any) -> Any:
    """The stock class of a config; of a pruned checkpoint, that class in the shapes that its config says."""
    from harness.families import _pruned, _saving

    made_of = _saving.stock(config)
    return _pruned.pruned(made_of) if getattr(config, "pruned", None) else made_of


def check(source: str, *, revision: str | None = None, random_weights: bool = False) -> None:
    """Raise InputError unless a folder, or the config of a hub id, can be loaded; imports no torch."""
    if Path(source).is_dir():
        return check_folder(Path(source), random_weights=random_weights)
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(source, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(f"model {source}: no such folder, nor on the hub: {str(error).splitlines()[0]}") from error
    _check_type(Path(path))


def check_folder(folder: Path, *, random_weights: bool = False) -> None:
    """Raise InputError naming what a checkpoint folder lacks, without loading it or importing torch."""
    _check_files(folder, random_weights)
    _check_type(folder / "config.json")


def _check_files(folder: Path, random_weights: bool) -> None:
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
            with safetensors.safe_open(file, framework="numpy"):  # reads the header, holds it against the file's size
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"model {file}: not whole weights in safetensors format ({error})") from error


def _model_type(path: Path) -> str:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a transformers config with a model_type") from error


def _check_type(path: Path) -> None:
    model_type = _model_type(path)
    if model_type not in names():
        raise InputError.unknown("model_type", model_type, names(), f"model {path}: ")


def _config(source: str | Path, hub: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **hub)
    except ValueError as error:  # a type that transformers does not know, or code that may not run
        if Path(source).is_dir():
            _check_type(Path(source) / "config.json")
        raise InputError(f"model {source}: {str(error).splitlines()[0]}") from error


def _unknown(config: Any, source: str | Path) -> InputError:
    """What a model of a type without a family is made of, from its config alone, and what a family has to say."""
    import torch
    from transformers import AutoModelForImageTextToText

    from harness.families._parts import linears

    where = f"model {source}{'/config.json' if Path(source).is_dir() else ''}: "
    known = InputError.unknown("model_type", config.model_type, names(), where)
    loader: Any = AutoModelForImageTextToText
    if type(config) not in loader._model_mapping:
        return InputError(f"{known}; transformers has no image-text-to-text model of this type")
    with torch.device("meta"):
        model = loader.from_config(config)
    return InputError(
        f"{known}; or write harness/families/{config.model_type}.py with blocks, extents and stages, as qwen2_vl.py "
        f"does, around the blocks of Linear layers found in it: {linears(model)}"
    )


def model_type(source: str, revision: str | None = None) -> str | None:
    """A checkpoint's model type, by the config in its folder or in the hub's cache; None if it cannot be read."""
    path = _cached_config(source, revision)
    try:
        return None if path is None else _model_type(path)
    except (InputError, OSError):
        return None


def checkpoint_hash(source: str, revision: str | None = None) -> str | None:
    """16 hex digits: of the SHA-256 over what transformers reads of a folder, or of the hub's commit in the cache.

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

    found = huggingface_hub.try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


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
