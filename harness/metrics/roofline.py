"""The roofline of each stage: its arithmetic intensity, and the achieved shares of the machine's two rates.

    infoprune sweep BOARD, with `metrics: [roofline]`

Bytes are a lower bound: the weights, inputs and outputs of Linears and convolutions, each moved once. The rates are
measured on this machine (`harness.machine`). Memory limits a stage with an intensity below `balance`, arithmetic limits
one above it. Source: Williams, Waterman and Patterson 2009, Roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.machine.timing import seconds
from harness.types import VLM, Column, MetricContext, Result, Trial, at

if TYPE_CHECKING:
    import torch


def _largest(name: str) -> Callable[[Result, Trial], Any]:
    """A reader of this figure of the pruned model, in the scope's stage at the largest batch."""

    def read(result: Result, trial: Trial) -> Any:
        batches = result.get("batches")
        sizes = [batch for batch in batches if str(batch).isdecimal()] if isinstance(batches, Mapping) else []
        return at("batches", max(sizes, key=int, default=""), "pruned", trial.scope, name)(result, trial)

    return read


COLUMNS = (
    Column(
        "intensity",
        "FLOPs a byte",
        read=_largest("intensity"),
        legend=(
            "FLOPs per byte and achieved shares of this machine's matrix rate and copy bandwidth hold for the scope's "
            "stage at the largest batch; memory is the limit of a stage with fewer FLOPs per byte than the balance."
        ),
    ),
    Column("balance", "balance"),
    Column("matmul_share", "of matrix rate", form="{:.3f}", read=_largest("matmul_share")),
    Column("copy_share", "of copy rate", form="{:.3f}", read=_largest("copy_share")),
)


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """FLOPs, bytes, intensity (FLOPs per byte) and achieved shares of both rates, per batch size, model and stage.

    Also the machine's matrix rate (FLOPs per second), its copy bandwidth (bytes per second), and their ratio `balance`.
    """
    import torch

    limits = context.machine(dense)
    result: dict[str, Any] = {
        "matmul_flops": limits.matmul_flops,
        "copy_bytes": limits.copy_bytes,
        "balance": limits.matmul_flops / limits.copy_bytes,
        "batches": {},
    }
    for batch in trial.latency.batches:
        models = result["batches"][str(batch)] = {}
        for name, vlm in (("dense", dense), ("pruned", pruned)):
            context.progress(f"roofline: {name}, batch {batch}")
            stages = context.stages(vlm, batch)
            with torch.no_grad():
                models[name] = {stage: _stage(vlm, call, limits) for stage, call in stages.items()}
    return result


def _stage(vlm: VLM, call: Callable[[], torch.Tensor], limits: Any) -> dict[str, float]:
    from harness.metrics._counting import flops

    work, moved = flops(call), moved_bytes(vlm.model, call)
    took = seconds(call, next(vlm.model.parameters()).device, median)
    return {
        "flops": work,
        "bytes": moved,
        "intensity": work / moved,
        "matmul_share": work / took / limits.matmul_flops,
        "copy_share": moved / took / limits.copy_bytes,
    }


def moved_bytes(model: torch.nn.Module, call: Callable[[], Any]) -> int:
    """Bytes of weights, inputs and outputs of every Linear and convolution that the call runs."""
    import torch

    total = 0

    def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += inputs[0].nbytes + output.nbytes + sum(weight.nbytes for weight in module.parameters(recurse=False))

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, kinds):
                hooks.callback(module.register_forward_hook(hook).remove)
        call()
    return total
