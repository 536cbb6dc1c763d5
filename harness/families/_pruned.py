"""A pruned model: transformers' own class with other widths, read from `pruned` in config.json.

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

InfoPrune-Bench copies this file into a checkpoint whose widths the stock config cannot express. It needs only torch and
transformers. Without `pruned` in the config, the model is the stock one.
"""

from __future__ import annotations

from typing import Any

from torch import empty, nn


class LowRankLinear(nn.Module):
    """Two Linears that replace one: (..., in) to (..., rank) to (..., out)."""

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool, **where: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.down = nn.Linear(inputs, rank, bias=False, **where)
        self.up = nn.Linear(rank, outputs, bias=bias, **where)
        # This empty weight stops a loader that does not know factors; otherwise it would draw a random weight.
        self.register_buffer("weight", empty(0))

    def forward(self, x: Any) -> Any:
        return self.up(self.down(x))


class ShapeError(ValueError):
    """The config does not fit the model."""


def reshape(model: nn.Module, pruned: dict[str, Any]) -> None:
    """Give the modules the shapes in `pruned`; their weights are loaded afterwards.

    {"linears": {path: {"in", "out", "bias", and "rank" for two factors}}, "identities": [path],
    "sizes": {path: {attribute: number}}}. Raises ShapeError for a path or attribute that the model does not have.
    """
    linears, sizes = pruned.get("linears", {}), pruned.get("sizes", {})
    modules = dict(model.named_modules())
    for path in (*linears, *pruned.get("identities", ()), *sizes):
        if path not in modules:
            raise ShapeError(f"pruned: the model has no module {path}")
    for path, size in linears.items():
        shape = (size["in"], size["rank"], size["out"]) if "rank" in size else (size["in"], size["out"])
        kind: Any = LowRankLinear if "rank" in size else nn.Linear
        _set(modules, path, kind(*shape, bias=size["bias"]))
    for path in pruned.get("identities", ()):
        _set(modules, path, nn.Identity())
    for path, values in sizes.items():
        for name, value in values.items():
            if not isinstance(getattr(modules[path], name, None), int) or not isinstance(value, int):
                raise ShapeError(f"pruned: {path}.{name}: not an integer size of this module")
            setattr(modules[path], name, value)


def _set(modules: dict[str, nn.Module], path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(modules[parent], leaf, module)


def pruned(stock: Any, cut_tokens: Any = None) -> Any:
    """A subclass of the transformers class `stock` that takes its shapes from the config.

    cut_tokens(model, settings): drops visual tokens, where the config has settings for that.
    """

    class Pruned(stock):
        def __init__(self, config: Any, *args: Any, **options: Any) -> None:
            super().__init__(config, *args, **options)
            changes = getattr(config, "pruned", None) or {}
            reshape(self, changes)
            if cut_tokens and "tokens" in changes:
                cut_tokens(self, changes["tokens"])

    return Pruned
