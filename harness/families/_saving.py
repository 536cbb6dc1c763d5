"""Save a dense or pruned model as a checkpoint folder that transformers loads without this package.

    save(vlm, Path("out"))  # "plain": the stock class; "custom code": with `trust_remote_code=True`

A checkpoint is plain if a config of the stock class can express all widths. Otherwise the folder holds
`modeling_pruned.py`, which builds the stock class and reshapes it; where visual tokens are dropped, also the mechanism
and the method's choice. (transformers' `per_layer_config` would not help: no class of the families reads it.)
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from harness.families import _pruned, _received, _tokens
from harness.families._choices import source
from harness.families._generation import FILE
from harness.families._pruned import LowRankLinear
from harness.types import VLM, Component, Kind

Form = Literal["plain", "custom code"]
CODE = "modeling_pruned.py"
# Where visual tokens are dropped: the mechanism, the attention that a method may see, and the method's choice.
CUT, RECEIVED, CHOICE = "token_cut.py", "token_attention.py", "token_choice.py"
NUMBERS = (int, float, bool, str)
# What configs and classes raise over widths that they cannot have.
REFUSALS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError)
# The config keys of a width, by kind of unit. Building the class shows whether it uses them.
NAMES: dict[Kind, tuple[str, ...]] = {
    "heads": ("num_heads", "num_attention_heads", "num_key_value_heads"),
    "ffn": ("intermediate_size", "mlp_ratio"),
}


def save(vlm: VLM, folder: Path) -> Form:
    """Write weights (safetensors), config, generation config and processor into `folder`; returns the form.

    Raises RuntimeError if the model differs from its stock class in more than widths, ranks, biases and visual tokens,
    and InputError if the choice of tokens cannot be written out.
    """
    model: Any = vlm.model
    cut = getattr(model, "token_cut", None)
    choice = source(cut.keep) if cut else ""
    config = None if cut else _plain(vlm)
    form: Form = "plain"
    stock_class = stock(model.config)
    if config is None:
        form = "custom code"
        config = _without_shapes(model.config)
        config.pruned = difference(outline(stock_class, config), vlm) | ({"tokens": cut.settings()} if cut else {})
        config.auto_map = {"AutoModelForImageTextToText": f"{CODE.removesuffix('.py')}.Pruned"}
    skeleton = outline(stock_class if form == "plain" else _pruned.pruned(stock_class), config)
    skeleton.load_state_dict(model.state_dict(), assign=True)
    skeleton.tie_weights()
    skeleton.generation_config = model.generation_config
    skeleton.save_pretrained(folder)
    if vlm.generation_file is not None:  # as the checkpoint has it, though nothing here decodes by it
        (folder / FILE).write_text(json.dumps(vlm.generation_file, indent=2) + "\n", encoding="utf-8")
    vlm.processor.save_pretrained(folder)
    if form == "custom code":
        name = stock_class.__name__
        ending = f"from transformers import {name}  # noqa: E402\n\nPruned = pruned({name})\n"
        if cut:
            beside = f"from .{RECEIVED.removesuffix('.py')} import"
            mechanism = inspect.getsource(_tokens).replace(f"from {_received.__name__} import", beside)
            (folder / CUT).write_text(mechanism, encoding="utf-8")
            (folder / RECEIVED).write_text(inspect.getsource(_received), encoding="utf-8")
            (folder / CHOICE).write_text(choice, encoding="utf-8")
            ending = (
                f"from functools import partial  # noqa: E402\n\nfrom transformers import {name}  # noqa: E402\n\n"
                "from .token_choice import keep  # noqa: E402\nfrom .token_cut import attach  # noqa: E402\n\n"
                f"Pruned = pruned({name}, partial(attach, keep=keep))\n"
            )
        (folder / CODE).write_text(f"{inspect.getsource(_pruned)}\n\n{ending}", encoding="utf-8")
    return form


def stock(config: Any) -> Any:
    """The transformers class for a config."""
    from transformers import AutoModelForImageTextToText

    loader: Any = AutoModelForImageTextToText
    return loader._model_mapping[type(config)]


def difference(skeleton: nn.Module, vlm: VLM) -> dict[str, Any]:
    """The changes that `modeling_pruned.py` must make to the stock class to get the model's shapes; {} if none.

    `skeleton`: the stock class, built from the same config. Raises RuntimeError for differences that cannot be stored:
    modules of another type, and settings that are not sizes.
    """
    linears: dict[str, Any] = {}
    identities: list[str] = []
    sizes: dict[str, dict[str, int]] = {}
    stock_modules = dict(skeleton.named_modules(remove_duplicate=False))
    inside = tuple(f"{block.path}." for block in vlm.blocks)
    for path, module in vlm.model.named_modules(remove_duplicate=False):
        if not path.startswith(inside) or path.rpartition(".")[0] in linears:
            continue
        stock_module: Any = stock_modules[path]
        if isinstance(module, LowRankLinear):
            shape = {"in": module.in_features, "out": module.out_features, "bias": module.up.bias is not None}
            linears[path] = {**shape, "rank": module.down.out_features}
        elif isinstance(module, nn.Linear) and isinstance(stock_module, nn.Linear):
            shape = {"in": module.in_features, "out": module.out_features, "bias": module.bias is not None}
            if shape != {
                "in": stock_module.in_features,
                "out": stock_module.out_features,
                "bias": stock_module.bias is not None,
            }:
                linears[path] = shape
        elif isinstance(module, nn.Identity) and not isinstance(stock_module, nn.Identity):
            identities.append(path)
        elif type(module) is not type(stock_module):
            raise RuntimeError(
                f"{path}: a {type(module).__name__} in place of a {type(stock_module).__name__} cannot be stored"
            )
        else:
            new_sizes = {
                name: value for name, value in _settings(module).items() if value != vars(stock_module).get(name)
            }
            if wrong := [name for name, value in new_sizes.items() if type(value) is not int]:
                raise RuntimeError(f"{path}.{wrong[0]}: differs from the stock class and is not an integer size")
            if new_sizes:
                sizes[path] = new_sizes
    changes = {"linears": linears, "identities": identities, "sizes": sizes}
    return {name: value for name, value in changes.items() if value}


def _settings(module: nn.Module) -> Mapping[str, Any]:
    """The attributes of a module that are plain values."""
    return {k: v for k, v in vars(module).items() if type(v) in NUMBERS and not k.startswith("_") and k != "training"}


def outline(model_class: Any, config: Any) -> Any:
    """A model without weights, built from a copy of the config because building can change it."""
    with torch.device("meta"):
        return model_class._from_config(copy.deepcopy(config))


def _without_shapes(config: Any) -> Any:
    stripped = copy.deepcopy(config)
    for name in ("pruned", "auto_map"):
        if hasattr(stripped, name):
            delattr(stripped, name)
    return stripped


def _plain(vlm: VLM) -> Any:
    """A config of the stock class that gives the model's widths, checked by building it; None if there is none."""
    model: Any = vlm.model
    stock_config = _without_shapes(model.config)
    stock_class = stock(stock_config)
    before = _blocks(outline(stock_class, stock_config), vlm)  # a pruned model's config holds its depth
    config = copy.deepcopy(stock_config)
    components: tuple[Component, ...] = ("vision", "language")
    for component, (kind, names) in itertools.product(components, NAMES.items()):
        part = config.vision_config if component == "vision" else config.get_text_config()
        shares = {
            Fraction(block.units(kind).count, whole.units(kind).count)
            for block, whole in zip(vlm.blocks, before, strict=True)
            if block.component == component
        }
        if not shares or shares == {1}:
            continue
        if len(shares) > 1:
            return None
        share = shares.pop()
        for name in {part.attribute_map.get(name, name) for name in names}:  # an alias is no second width
            if not isinstance(value := getattr(part, name, None), int | float):
                continue
            if isinstance(value, int) and (value * share).denominator > 1:
                return None
            setattr(part, name, type(value)(value * share))
        if kind == "heads":
            part.head_dim = _head_dim(vlm, component)
    try:
        config = type(config).from_dict(config.to_dict())  # as a loader reads it
        skeleton = outline(stock_class, config)
        return None if difference(skeleton, vlm) or _shapes(skeleton) != _shapes(model) else config
    except REFUSALS:
        return None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shapes of all weights and buffers by name, of layers outside of the blocks too."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tensor.shape for name, tensor in tensors}


def _blocks(skeleton: Any, vlm: VLM) -> Any:
    from harness.families._names import family

    return family(vlm.family).blocks(skeleton)


def _head_dim(vlm: VLM, component: Component) -> int:
    block = next(block for block in vlm.blocks if block.component == component)
    module: Any = vlm.model.get_submodule(block.heads.consumer.rpartition(".")[0])
    return module.head_dim
