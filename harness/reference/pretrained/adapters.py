"""What is learned: the projector, and a low-rank adapter on every Linear of the language model. Saved as one file.

    learned = Learned.of(model, rank=16); learned.save(path); Learned.load(path, model).merge(model)

A Linear with weight W becomes W + SCALE * B @ A. Merged, the model is a plain checkpoint again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from harness.files import put
from harness.types import InputError

RANK = 16
SCALE = 2.0
LAYERS = "model.language_model.layers"
PROJECTOR = "model.multi_modal_projector"
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class Learned:
    """The learned tensors by name, in float32: the projector's own names, and PATH.A, PATH.B of each adapted Linear."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def of(cls, model: Any, rank: int = RANK, seed: int = 0) -> Learned:
        """Fresh adapters, which change nothing yet (B is zero), beside the projector as it is."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, value in model.get_submodule(PROJECTOR).state_dict().items():
            tensors[f"{PROJECTOR}.{name}"] = value.detach().float().clone()
        for path in linears(model):
            rows, columns = model.get_submodule(path).weight.shape
            tensors[f"{path}.A"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
            tensors[f"{path}.B"] = torch.zeros(rows, rank)
        return cls(tensors)

    @classmethod
    def load(cls, path: Path, model: Any) -> Learned:
        """The tensors of a file, checked against the model's shapes. Raises InputError if they do not fit."""
        try:
            tensors = {name: value.float() for name, value in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not whole adapters in safetensors format ({error})") from error
        wanted = cls.of(model).tensors
        if set(wanted) != set(tensors):
            name = sorted(set(wanted) ^ set(tensors))[0]
            raise InputError(f"{path}: its tensors are not this model's ('{name}' is only on one side)")
        for name, value in tensors.items():
            side = 1 if name.endswith(".A") else 0
            if value.shape[side] != wanted[name].shape[side]:
                raise InputError(f"{path}: '{name}' is {tuple(value.shape)}, which does not fit this model")
        return cls(tensors)

    def save(self, path: Path, dtype: torch.dtype = torch.bfloat16, about: dict[str, str] | None = None) -> Path:
        """Write them, whole or not at all, with `about` as the file's metadata."""
        flat = {name: value.detach().to(dtype).contiguous() for name, value in sorted(self.tensors.items())}
        put(path, lambda temporary: save_file(flat, temporary, metadata=about))
        return path

    @torch.no_grad()
    def merge(self, model: Any) -> None:
        """Write the projector into the model and add every adapter to its Linear.

        In float64, so that rounding to bfloat16 afterwards gives the same bits on every machine.
        """
        for name, value in self.tensors.items():
            if name.startswith(PROJECTOR):
                model.get_parameter(name).copy_(value)
            elif name.endswith(".A"):
                path = name.removesuffix(".A")
                weight = model.get_parameter(f"{path}.weight")
                weight.copy_(weight.double() + SCALE * self.tensors[f"{path}.B"].double() @ value.double())


def linears(model: Any) -> list[str]:
    """Paths of the Linears that get an adapter: all of the language model's layers."""
    count = len(model.get_submodule(LAYERS))
    return [f"{LAYERS}.{i}.{linear}" for i in range(count) for linear in LINEARS]


def about(path: Path) -> dict[str, str]:
    """The metadata of a file of adapters."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}
