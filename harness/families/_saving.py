"""A model, pruned or dense, as a checkpoint folder that transformers loads without this package.

    save(vlm, Path("out"))  # "plain": the stock class; "custom code": with `trust_remote_code=True`

Plain where a config of the stock class says all widths. Else the folder holds `modeling_pruned.py`, which builds that
class and reshapes it. (transformers' `per_layer_config` is no third way: none of the families' classes reads it.)
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from harness.families import _pruned
from harness.families._pruned import LowRankLinear
from harness.types import VLM, Component, Kind

Form = Literal["plain", "custom code"]
CODE = "modeling_pruned.py"
NUMBERS = (int, float, bool, str)
# What the configs of the families call a width, by kind of unit; whether a class heeds it is found by building it.
NAMES: dict[Kind, tuple[str, ...]] = {
    "heads": ("num_heads", "num_attention_heads", "num_key_value_heads"),
    "ffn": ("intermediate_size", "mlp_ratio"),
}


def save(vlm: VLM, folder: Path) -> Form:
    """Write weights (safetensors), config, generation config and processor into `folder`.

    Raises RuntimeError where the model differs from its stock class in more than widths, ranks and biases.
    """
    model: Any = vlm.model
    config = _plain(vlm)
    form: Form = "plain"
    made_of = stock(model.config)
    if config is None:
        form = "custom code"
        config = _without_shapes(model.config)
        config.pruned = difference(_skeleton(made_of, config), vlm)
        config.auto_map = {"AutoModelForImageTextToText": f"{CODE.removesuffix('.py')}.Pruned"}
    made = _skeleton(made_of if form == "plain" else _pruned.pruned(made_of), config)
    made.load_state_dict(model.state_dict(), assign=True)
    made.tie_weights()
    made.generation_config = model.generation_config
    made.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    if form == "custom code":
        name = made_of.__name__
        ending = f"from transformers import {name}  # noqa: E402\n\nPruned = pruned({name})\n"
        (folder / CODE).write_text(f"{inspect.getsource(_pruned)}\n\n{ending}", encoding="utf-8")
    return form


def stock(config: Any) -> Any:
    """The class of transformers for a config."""
    from transformers import AutoModelForImageTextToText

    loader: Any = AutoModelForImageTextToText
    return loader._model_mapping[type(config)]


def difference(skeleton: nn.Module, vlm: VLM) -> dict[str, Any]:
    """What `modeling_pruned.py` has to change of the stock class, built of the same config, to get the model's shapes.

    {} if nothing. Raises RuntimeError for what it cannot change: modules of another type, other settings than sizes.
    """
    linears: dict[str, Any] = {}
    identities: list[str] = []
    sizes: dict[str, dict[str, int]] = {}
    there = dict(skeleton.named_modules(remove_duplicate=False))
    inside = tuple(f"{block.path}." for block in vlm.blocks)
    for path, own in vlm.model.named_modules(remove_duplicate=False):
        if not path.startswith(inside) or path.rpartition(".")[0] in linears:
            continue
        other: Any = there[path]
        if isinstance(own, LowRankLinear):
            found = {"in": own.in_features, "out": own.out_features, "bias": own.up.bias is not None}
            linears[path] = {**found, "rank": own.down.out_features}
        elif isinstance(own, nn.Linear) and isinstance(other, nn.Linear):
            found = {"in": own.in_features, "out": own.out_features, "bias": own.bias is not None}
            if found != {"in": other.in_features, "out": other.out_features, "bias": other.bias is not None}:
                linears[path] = found
        elif isinstance(own, nn.Identity) and not isinstance(other, nn.Identity):
            identities.append(path)
        elif type(own) is not type(other):
            raise RuntimeError(f"{path}: a {type(own).__name__} in place of a {type(other).__name__} cannot be stored")
        else:
            changed = {name: value for name, value in _settings(own).items() if value != vars(other).get(name)}
            if wrong := [name for name, value in changed.items() if type(value) is not int]:
                raise RuntimeError(f"{path}.{wrong[0]}: differs from the stock class's and is no size")
            if changed:
                sizes[path] = changed
    found = {"linears": linears, "identities": identities, "sizes": sizes}
    return {name: value for name, value in found.items() if value}


def _settings(module: nn.Module) -> Mapping[str, Any]:
    """The plain values among a module's own attributes."""
    return {k: v for k, v in vars(module).items() if type(v) in NUMBERS and not k.startswith("_") and k != "training"}


def _skeleton(made_of: Any, config: Any) -> Any:
    """A model without weights: of a copy of the config, which its making may change."""
    with torch.device("meta"):
        return made_of._from_config(copy.deepcopy(config))


def _without_shapes(config: Any) -> Any:
    found = copy.deepcopy(config)
    for name in ("pruned", "auto_map"):
        if hasattr(found, name):
            delattr(found, name)
    return found


def _plain(vlm: VLM) -> Any:
    """A config of the stock class that says the model's widths, found by building what it says; None without one."""
    model: Any = vlm.model
    whole = _without_shapes(model.config)
    made_of = stock(whole)
    before = {block.name: block for block in _blocks(_skeleton(made_of, whole), vlm)}
    config = copy.deepcopy(whole)
    components: tuple[Component, ...] = ("vision", "language")
    for component in components:
        own = config.vision_config if component == "vision" else config.get_text_config()
        for kind, names in NAMES.items():
            ratios = {
                (block.units(kind).count, before[block.name].units(kind).count)
                for block in vlm.blocks
                if block.component == component
            }
            if len(ratios) > 1:
                return None
            count, full = ratios.pop()
            if count == full:
                continue
            for name in names:
                if isinstance(value := getattr(own, name, None), int | float):
                    setattr(own, name, value * count / full if isinstance(value, float) else value * count // full)
            if kind == "heads":
                own.head_dim = _head_dim(vlm, component)
    try:
        config = type(config).from_dict(config.to_dict())  # as a reader gets it
        return None if difference(_skeleton(made_of, config), vlm) else config
    except (ValueError, StrictDataclassError, RuntimeError):  # the class refuses these widths, or means others by them
        return None


def _blocks(skeleton: Any, vlm: VLM) -> Any:
    from harness.families import family

    return family(vlm.family).blocks(skeleton)


def _head_dim(vlm: VLM, component: Component) -> int:
    block = next(block for block in vlm.blocks if block.component == component)
    module: Any = vlm.model.get_submodule(block.heads.consumer.rpartition(".")[0])
    return module.head_dim
