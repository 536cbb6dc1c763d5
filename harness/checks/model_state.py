"""A snapshot of a model: lists later changes and undoes them.

state = State(model); ...; state.changes(); state.restore()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.text import some

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class State:
    """A snapshot of a model's modules, weights, buffers, gradients, flags, modes and hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = {path: (module, _inside(module)) for path, module in model.named_modules()}
        self.values = {path: (value, value.detach().clone()) for path, value in _tensors(model)}
        self.flags = {path: value.requires_grad for path, value in _tensors(model)}

    def changes(self) -> list[str]:
        """What changed since the snapshot, one line per sort of change."""
        now = dict(self.model.named_modules())
        moved = [path for path in self.modules | now if now.get(path) is not self.modules.get(path, (None,))[0]]
        snapshots = {path: (module, then, _inside(module)) for path, (module, then) in self.modules.items()}
        tensors = dict(_tensors(self.model))
        changes = {
            "modules were added, taken away or replaced": moved,
            "weights were changed": [
                path
                for path, (_, then) in self.values.items()
                if path in tensors and not torch.equal(tensors[path].detach(), then)
            ],
            "requires_grad was changed": [
                path for path, flag in self.flags.items() if path in tensors and tensors[path].requires_grad != flag
            ],
            "gradients were left": [path for path, value in tensors.items() if value.grad is not None],
            "train or evaluation mode was changed": [
                path for path, (_, then, later) in snapshots.items() if then["training"] != later["training"]
            ],
            "hooks were left": [
                path for path, (_, then, later) in snapshots.items() if any(then[hook] != later[hook] for hook in HOOKS)
            ],
        }
        return [f"{text}: {some([path or 'the model' for path in paths])}" for text, paths in changes.items() if paths]

    def restore(self) -> None:
        """Undo all changes since the snapshot."""
        for module, then in self.modules.values():
            for name, value in then.items():
                current = getattr(module, name)
                if isinstance(value, dict):
                    current.clear()
                    current.update(value)
                else:
                    module.training = value
        for value, then in self.values.values():
            value.data.copy_(then)
            value.grad = None
        for path, value in _tensors(self.model):
            value.requires_grad_(self.flags[path])


def _inside(module: nn.Module) -> dict[str, Any]:
    tables = {name: dict(getattr(module, name)) for name in ("_modules", "_parameters", "_buffers", *HOOKS)}
    return {**tables, "training": module.training}


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
