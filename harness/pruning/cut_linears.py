"""The Linears after a cut, which read less than before, and the output that each should still give.

    for cut in cut_linears(dense, pruned, plan): cut.linear, cut.take(inputs)

The Linear after a cut is the one that reads the removed units; of two factors, it is the second. For the inputs of the
dense model, its target is the output of the dense Linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.families._pruned import LowRankLinear
from harness.statistics.calibration import Calibration, linears
from harness.types import VLM, Keep, Kind, Plan, Units


@dataclass(frozen=True)
class CutLinear:
    """A Linear after a cut. part: its block and kind. path: in the dense model. kept: the input columns that stay
    (k,), or the first factor's weight (k, in); None where other producers feed it, so that no dense input is like its
    own.
    """

    part: tuple[str, Kind]
    path: str
    old: Any
    linear: Any
    kept: Tensor | None

    def take(self, inputs: Tensor) -> Tensor:
        """What the Linear reads of dense inputs: (..., in) to (..., k)."""
        assert self.kept is not None
        return inputs @ self.kept.T if self.kept.is_floating_point() else inputs[..., self.kept]

    @property
    def weight(self) -> Tensor:
        """The weight, (out, k), in float64."""
        return self.linear.weight.detach().double()

    def target(self, mean: Tensor) -> Tensor:
        """The dense Linear's mean output for this mean input, (out,), in float64."""
        bias = 0 if self.old.bias is None else self.old.bias.detach().double()
        return self.old.weight.detach().double() @ mean + bias


def cut_linears(dense: VLM, vlm: VLM, plan: Plan) -> Iterator[CutLinear]:
    """The Linears after the cuts of a plan, in its order. A whole layer that went has none."""
    for (name, kind), part in plan.parts.items():
        if kind == "layers" or name in plan.gone:
            continue
        units, now = dense.block(name).units(kind), vlm.block(name).units(kind)
        for path, path_now in zip(linears(units), linears(now), strict=True):
            old: Any = dense.model.get_submodule(path)
            new: Any = vlm.model.get_submodule(path_now)
            if isinstance(new, LowRankLinear):
                yield CutLinear((name, kind), path, old, new.up, new.down.weight.detach().double())
            elif path == units.consumer and new.in_features < old.in_features:
                kept = _columns(units, part).to(new.weight.device) if isinstance(part, Keep) else None
                yield CutLinear((name, kind), path, old, new, kept)


def _columns(units: Units, part: Keep) -> Tensor:
    return (torch.tensor(part.indices)[:, None] * units.width + torch.arange(units.width)).flatten()


@torch.no_grad()
def other_producers(dense: VLM, vlm: VLM, cut: CutLinear, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Inputs (n, k) and target outputs (n, out) of a Linear that other producers feed, in float64.

    Both come from the same calibration rows, read by the FFN of each model.
    """
    name, kind = cut.part
    units, now = dense.block(name).units(kind), vlm.block(name).units(kind)
    first = units.producers[0].module
    rows = calibration.rows([first])[first]
    whole, whole_now = (each.consumer.rpartition(".")[0] for each in (units, now))
    read: list[Tensor] = []
    with cut.linear.register_forward_pre_hook(lambda module, args: read.append(args[0].double())):
        vlm.model.get_submodule(whole_now)(rows)
    return read[0], dense.model.get_submodule(whole)(rows).double()
