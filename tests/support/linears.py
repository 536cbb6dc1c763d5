"""What a Linear reads and weighs, and what of it belongs to a unit, in the plainest way; in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.statistics.calibration import Calibration
from harness.types import VLM, Units
from tests.support.calibrations import encoded_alone


def inputs_of(vlm: VLM, calibration: Calibration, path: str) -> Tensor:
    """What the Linear reads, each sample run alone and so without padding."""
    seen: list[Tensor] = []
    hook = vlm.model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for batch in encoded_alone(vlm, calibration):
        with torch.no_grad():
            vlm.model(**batch)
    hook.remove()
    return torch.cat([rows.flatten(0, -2) for rows in seen]).double()


def weight_of(vlm: VLM, path: str) -> Tensor:
    return vlm.model.get_parameter(f"{path}.weight").detach().double()


def parts_of(units: Units, unit: int) -> list[tuple[str, slice, slice]]:
    """(module, rows, columns) of the weights that leave with a unit; the consumer's are the last."""
    parts = [
        (rows.module, slice(rows.offset + unit * rows.width, rows.offset + (unit + 1) * rows.width), slice(None))
        for rows in units.producers
    ]
    return [*parts, (units.consumer, slice(None), slice(unit * units.width, (unit + 1) * units.width))]


def output_gradients_of(vlm: VLM, calibration: Calibration, path: str) -> Tensor:
    """Gradients of each sample's summed answer loss by what the Linear says, each sample run alone; float64."""
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.requires_grad_().retain_grad()
        seen.append(output)

    hook = vlm.model.get_submodule(path).register_forward_hook(keep)
    for batch in encoded_alone(vlm, calibration):
        (vlm.model(**batch).loss * (batch["labels"] != -100).sum()).backward()
    hook.remove()
    return torch.cat([output.grad.flatten(0, -2) for output in seen if output.grad is not None]).double()
