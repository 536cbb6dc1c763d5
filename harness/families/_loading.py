"""Load a checkpoint folder or a hub id as a `VLM`, and save one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.families import _generation
from harness.families._folders import (
    check_folder_files,
    check_type,
    explained,
    generation_file,
    stored_values,
    weights_hash,
)
from harness.families._names import family, names
from harness.types import GREEDY, VLM, Generation, InputError


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
    generation: Generation = GREEDY,
    seed: int = 0,
    name: str | None = None,
) -> VLM:
    """Load a checkpoint folder or hub id as a VLM in evaluation mode, with frozen weights.

    `device_map` ("auto", or a mapping from modules to devices) spreads the model with accelerate; `device` is then
    ignored. `random_weights` reads only config and processor, draws the weights from `seed`, and sets `weights_hash` to
    "random:SEED"; on the device "meta" there are then only shapes. Raises InputError naming what is missing, before any
    weight is read: the folder, its config, a supported model type, or something that its processor needs. For an
    unsupported type, the error lists the model's Linear layers and says which file to write.

    The model's `generation_config` has the ids of special tokens only. What else the checkpoint says of decoding stays
    in the VLM's `generation_file`, and its `notes` name it.
    """
    import torch
    import transformers

    from harness.families import _processors, _pruned
    from harness.families._tokens import TokenError

    if not hasattr(torch, dtype) or not isinstance(getattr(torch, dtype), torch.dtype):
        raise InputError(f"dtype {dtype!r} is not a torch dtype; use float32, bfloat16 or float16")
    if random_weights and device_map is not None:
        raise InputError("device_map: random weights are drawn on one device; remove device_map")
    check_attention(attention, dtype, device)
    folder = Path(source)
    if folder.is_dir():
        check_folder_files(folder, random_weights)
    elif str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise InputError(f"model {source}: no such folder, and not a hub id of the form owner/name")
    transformers.utils.logging.disable_progress_bar()
    hub_settings: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    settings: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    try:
        config = _config(source, hub_settings)
        if config.model_type not in names():
            raise _unknown(config, source)
        processor, notes = _processors.complete(source, config, hub_settings)
        _generation.check(generation, config.get_text_config().vocab_size)
        stated = _stated(source, hub_settings)
        decoding = _generation.tokens(stated, config)
        model_class = _class(config, source, hub_settings)
        if random_weights:
            with torch.random.fork_rng([device] if device.startswith("cuda") else []), torch.device(device):
                torch.manual_seed(seed)
                model = model_class._from_config(config, **settings)
            model.generation_config = decoding
        else:
            _check_amount(source, model_class, config)
            settings |= {"generation_config": decoding, "device_map": device_map}
            settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, loaded = model_class.from_pretrained(source, config=config, **settings, **hub_settings)
            _check_complete(source, loaded)
    except (_pruned.ShapeError, TokenError) as error:
        raise InputError(f"model {source}/config.json: {error}") from error
    except OSError as error:
        raise InputError(f"model {source}: {str(error).splitlines()[0]}") from error
    if device_map is None:
        model = model.to(device)
    elif any(weight.is_meta for weight in model.parameters()):
        raise InputError(
            f"model {source}: device_map {device_map!r} leaves some weights without a device; use devices that hold all"
        )
    model = model.eval().requires_grad_(False)
    return VLM(
        name=name or str(source),
        family=config.model_type,
        model=model,
        processor=processor,
        blocks=family(config.model_type).blocks(model),
        weights_hash=f"random:{seed}" if random_weights else weights_hash(model),
        generation=generation,
        generation_file=stated,
        notes=(*notes, *_generation.left_out(stated)),
    )


def save(vlm: VLM, folder: Path) -> str:
    """Write a checkpoint folder; returns "plain" or "custom code".

    "plain": transformers' stock class loads it. "custom code": the folder includes a modelling file.
    """
    from harness.families import _saving

    return _saving.save(vlm, folder)


def attention(model: Any) -> str:
    """The attention implementation that a loaded model uses; a list if its parts differ."""
    parts = (model.config, model.config.vision_config, model.config.get_text_config())
    return ", ".join(dict.fromkeys(part._attn_implementation for part in parts))


def check_attention(attention: str, dtype: str, device: str) -> None:
    """Raise InputError for an attention that cannot run in this dtype on this device."""
    if attention != "flash_attention_2":
        return
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise InputError("attention: flash_attention_2 needs the package flash-attn and a CUDA device; use sdpa")
    if dtype == "float32" or not device.startswith("cuda"):
        raise InputError(f"attention: flash_attention_2 runs in bfloat16 or float16 on cuda, not {dtype} on {device}")


def _stated(source: str | Path, hub_settings: dict[str, Any]) -> dict[str, Any] | None:
    """The content of the checkpoint's generation_config.json; None if it has none."""
    from transformers.utils.hub import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(str(source), _generation.FILE, revision=hub_settings["revision"], **quiet)
    return None if path is None else generation_file(Path(path))


def _check_amount(source: str | Path, model_class: Any, config: Any) -> None:
    """A config that lacks a part describes the default model, which may be many times larger than the memory."""
    from harness.families import _saving

    if not Path(source).is_dir():
        return
    with explained(f"model {source}/config.json: describes no model that can be made"):
        described = sum(weight.numel() for weight in _saving.outline(model_class, config).parameters())
    if (stored := stored_values(Path(source))) < described:
        raise InputError(
            f"model {source}: the weights hold {stored:,} values, but config.json describes a model of {described:,}; "
            "add the missing *.safetensors files, or the missing part of config.json"
        )


def _check_complete(source: str | Path, loaded: Mapping[str, Any]) -> None:
    """transformers would draw at random what is missing or of another shape."""
    if missing := sorted(loaded["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"model {source}: the weights lack {missing[0]}{more}; add the *.safetensors files of it")
    for name, stored, described in sorted(loaded["mismatched_keys"]):
        raise InputError(
            f"model {source}: the weight {name} has the shape {tuple(stored)}, but config.json describes "
            f"{tuple(described)}; config.json and *.safetensors must be of one model"
        )


def _class(config: Any, source: str | Path, hub_settings: Mapping[str, Any]) -> Any:
    """The stock class for a config; for a pruned checkpoint, a subclass with the shapes in its config.

    Which visual tokens go on is code of the checkpoint, so it runs only with `trust_remote_code`.
    """
    from functools import partial

    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from harness.families import _pruned, _saving, _tokens

    stock_class = _saving.stock(config)
    changes = getattr(config, "pruned", None)
    if not changes:
        return stock_class
    if "tokens" not in changes:
        return _pruned.pruned(stock_class)
    if not hub_settings["trust_remote_code"]:
        raise InputError(
            f"model {source}/config.json: pruned.tokens: which visual tokens go on is code of this checkpoint; "
            "set trust_remote_code if you trust it"
        )
    choice = f"{_saving.CHOICE.removesuffix('.py')}.keep"
    keep = get_class_from_dynamic_module(choice, source, revision=hub_settings["revision"])
    return _pruned.pruned(stock_class, partial(_tokens.attach, keep=keep))


def _config(source: str | Path, hub_settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    path = Path(source) / "config.json"
    try:
        with explained(f"model {path}: not a config that transformers takes", OSError):
            config = AutoConfig.from_pretrained(source, **hub_settings)
    except InputError:
        if path.is_file():
            check_type(path)  # transformers does not know the type, or may not run its code
        raise
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.return_dict, part.output_attentions, part.output_hidden_states = True, False, False  # what we rely on
    return config


def _unknown(config: Any, source: str | Path) -> InputError:
    """The error for a model type without a family: the Linear layers of its model, and the file to write."""
    import torch
    from transformers import AutoModelForImageTextToText

    from harness.families._parts import linears

    where = f"model {source}{'/config.json' if Path(source).is_dir() else ''}: "
    error = InputError.unknown("model_type", config.model_type, names(), where)
    loader: Any = AutoModelForImageTextToText
    if type(config) not in loader._model_mapping:
        return InputError(f"{error}; transformers has no image-text-to-text model of this type")
    with torch.device("meta"):
        model = loader.from_config(config)
    return InputError(
        f"{error}; or write harness/families/{config.model_type}.py with blocks, extents and stages (see "
        f"qwen2_vl.py); the model's Linear layers: {linears(model)}"
    )
