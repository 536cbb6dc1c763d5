"""Remove whole blocks: the list of a model's layers gets shorter, and all that counts layers is renumbered.

drop(model, vlm, {"vision.3"})  # in place

A block that goes passes the residual stream on unchanged. What a config says of depth is changed with it, so that the
shorter model is the stock class of its config, and a cache has a place per layer that is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from harness.types import VLM, Block, InputError

DEPTHS = ("num_hidden_layers", "depth")  # of a config: the number of layers
LISTS = ("layer_types",)  # of a config: a value per layer
INDICES = ("fullatt_block_indexes", "deepstack_visual_indexes")  # of a config or a module: indices of layers
READ = "vision_feature_layer"  # of a config: the hidden states of the tower that are read


def drop(model: nn.Module, vlm: VLM, names: Collection[str]) -> None:
    """Remove these blocks of `vlm` from `model`, a copy of its model. Raises the errors of `check_gone`."""
    check_gone(vlm, names)
    for component in ("vision", "language"):
        if going := [block for block in vlm.blocks if block.component == component and block.name in names]:
            _shorten(model, going)


def check_gone(vlm: VLM, names: Collection[str]) -> None:
    """Raise InputError for a block that cannot go, and if a component would have no block."""
    for component in ("vision", "language"):
        blocks = [block for block in vlm.blocks if block.component == component]
        going = [block for block in blocks if block.name in names]
        for block in going:
            if block.fixed:
                raise InputError(f"plan: {block.name} cannot go as a whole: {block.fixed}")
        if going and len(going) == len(blocks):
            raise InputError(f"plan: no block of {component} would stay; keep one of them")


def _shorten(model: Any, going: Sequence[Block]) -> None:
    path = going[0].path.rpartition(".")[0]
    layers = model.get_submodule(path)
    removed = {int(block.path.rpartition(".")[2]) for block in going}
    places = {old: new for new, old in enumerate(i for i in range(len(layers)) if i not in removed)}
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.ModuleList(layers[old] for old in places))
    for old, new in places.items():
        for module in layers[old].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = new
    is_vision = going[0].component == "vision"
    part = type(model.config.vision_config if is_vision else model.config.get_text_config())
    for config in _configs(model):
        if isinstance(config, part):
            _renumber(config, places, len(layers))
        elif is_vision and hasattr(config, READ):
            setattr(config, READ, _read(getattr(config, READ), removed, len(layers)))
    for module in model.get_submodule(parent).modules():
        _renumber_indices(module, places)
        if hasattr(module, "has_sliding_layers"):
            module.has_sliding_layers = "sliding_attention" in module.config.layer_types


def _configs(model: nn.Module) -> Iterator[Any]:
    """Every config object that a module holds, with its parts: transformers copies some of them."""
    seen: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        for each in (config, *(getattr(config, name, None) for name in ("vision_config", "text_config"))):
            if each is not None:
                seen[id(each)] = each
    return iter(seen.values())


def _renumber(config: Any, places: Mapping[int, int], depth: int) -> None:
    for name in LISTS:
        if values := getattr(config, name, None):
            setattr(config, name, [values[old] for old in places])
    for name in DEPTHS:
        if getattr(config, name, None) == depth:
            setattr(config, name, len(places))
    _renumber_indices(config, places)


def _renumber_indices(holder: Any, places: Mapping[int, int]) -> None:
    for name in INDICES:
        if values := getattr(holder, name, None):
            setattr(holder, name, [places[old] for old in values if old in places])


def _read(read: int | list[int], removed: Collection[int], depth: int) -> int | list[int]:
    """Which hidden states are read in the shorter tower: after the same layers, counted from the same end."""
    if isinstance(read, list | tuple):
        return [index for each in read if isinstance(index := _read(each, removed, depth), int)]
    state = read % (depth + 1)
    now = state - sum(index < state for index in removed)
    return now if read >= 0 else now - (depth + 1 - len(removed))
