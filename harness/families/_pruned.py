"""A pruned model: the architecture's own class of transformers with other widths, read from `pruned` in config.json.

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

Written by InfoPrune-Bench into checkpoints whose widths no config of the class can say, as a file of their own; it
needs torch and transformers only. Without `pruned` in its config, a model is the stock one.
"""

from __future__ import annotations

from typing import Any

from torch import empty, nn


class LowRankLinear(nn.Module):
    """Two Linears in place of one: (..., in) to (..., rank) to (..., out)."""

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool, **where: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.down = nn.Linear(inputs, rank, bias=False, **where)
        self.up = nn.Linear(rank, outputs, bias=bias, **where)
        # A loader that knows nothing of factors stops at this shape, where it would else draw a weight at random.
        self.register_buffer("weight", empty(0))

    def forward(self, x: Any) -> Any:
        return self.up(self.down(x))


class ShapeError(ValueError):
    """The config does not fit the model."""


def reshape(model: nn.Module, pruned: dict[str, Any]) -> None:
    """Give the modules the shapes that `pruned` says, their weights still to be loaded.

    {"linears": {path: {"in", "out", "bias", and "rank" for two factors}}, "identities": [path],
    "sizes": {path: {attribute: number}}}. Raises ShapeError for a path or attribute that the model does not have.
    """
    linears, sizes = pruned.get("linears", {}), pruned.get("sizes", {})
    there = dict(model.named_modules())
    for path in (*linears, *pruned.get("identities", ()), *sizes):
        if path not in there:
            raise ShapeError(f"pruned: the model has no module {path}")
    for path, size in linears.items():
        shape = (size["in"], size["rank"], size["out"]) if "rank" in size else (size["in"], size["out"])
        kind: Any = LowRankLinear if "rank" in size else nn.Linear
        _set(there, path, kind(*shape, bias=size["bias"]))
    for path in pruned.get("identities", ()):
        _set(there, path, nn.Identity())
    for path, values in sizes.items():
        for name, value in values.items():
            if not isinstance(getattr(there[path], name, None), int) or not isinstance(value, int):
                raise ShapeError(f"pruned: {path}.{name}: not a size of this module")
            setattr(there[path], name, value)


def _set(there: dict[str, nn.Module], path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(there[parent], leaf, module)


def pruned(stock: Any) -> Any:
    """The class of transformers `stock`, but with the shapes that its config says."""

    class Pruned(stock):
        def __init__(self, config: Any, *args: Any, **options: Any) -> None:
            super().__init__(config, *args, **options)
            reshape(self, getattr(config, "pruned", None) or {})

    return Pruned
