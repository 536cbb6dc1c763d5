"""Load a checkpoint folder or a hub id as a `VLM`, and save one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.families._folders import check_folder_files, check_type, weights_hash
from harness.families._names import family, names
from harness.types import VLM, InputError


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
    """Load a checkpoint folder or hub id as a VLM in evaluation mode, with frozen weights.

    `device_map` ("auto", or a mapping from modules to devices) spreads the model with accelerate; `device` is then
    ignored. `random_weights` reads only config and processor, draws the weights from `seed`, and sets `weights_hash` to
    "random:SEED". Raises InputError naming what is missing: the folder, its config, its processor, or a supported model
    type. For an unsupported type, the error lists the model's Linear layers and says which file to write.
    """
    import torch
    import transformers
    from transformers import AutoProcessor

    from harness.families import _pruned
    from harness.families._tokens import TokenError

    if not hasattr(torch, dtype) or not isinstance(getattr(torch, dtype), torch.dtype):
        raise InputError(f"dtype {dtype!r} is not a torch dtype; use float32, bfloat16 or float16")
    if random_weights and device_map is not None:
        raise InputError("device_map: random weights are drawn on one device; remove device_map")
    if attention == "flash_attention_2":
        _check_flash(dtype, device)
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
        processor = AutoProcessor.from_pretrained(source, **hub_settings)
        model_class = _class(config, source, hub_settings)
        if random_weights:
            with torch.random.fork_rng([device] if device.startswith("cuda") else []), torch.device(device):
                torch.manual_seed(seed)
                model = model_class._from_config(config, **settings)
        else:
            model = model_class.from_pretrained(
                source, config=config, device_map=device_map, **settings, **hub_settings
            )
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


def _check_flash(dtype: str, device: str) -> None:
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise InputError("attention: flash_attention_2 needs the package flash-attn and a CUDA device; use sdpa")
    if dtype == "float32" or not device.startswith("cuda"):
        raise InputError(f"attention: flash_attention_2 runs in bfloat16 or float16 on cuda, not {dtype} on {device}")


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

    try:
        return AutoConfig.from_pretrained(source, **hub_settings)
    except ValueError as error:  # transformers does not know the type, or may not run its code
        if Path(source).is_dir():
            check_type(Path(source) / "config.json")
        raise InputError(f"model {source}: {str(error).splitlines()[0]}") from error


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
