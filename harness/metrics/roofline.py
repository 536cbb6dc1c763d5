"""How near the machine's limits each stage runs: arithmetic intensity, and the achieved shares of its two rates.

    infoprune sweep BOARD, with `metrics: [roofline]`

Bytes are those that the Linear layers must move at least: weights, inputs and outputs, once. The rates are measured on
this machine (`harness.machine`): a stage whose intensity is below `balance` is bound by memory, above it by arithmetic.
Williams, Waterman & Patterson 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch

from harness.metrics.flops import flops
from harness.metrics.latency import seconds
from harness.types import VLM, Trial


@torch.no_grad()
def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """Per batch size, model and stage: FLOPs, bytes, intensity (FLOPs a byte), and shares of the matrix rate and of the
    copy bandwidth that were reached; with the machine's rates and `balance`, the intensity where they meet."""
    limits = context.machine(dense)
    found: dict[str, Any] = {
        "matmul_flops": limits.matmul_flops,
        "copy_bytes": limits.copy_bytes,
        "balance": limits.matmul_flops / limits.copy_bytes,
        "batches": {},
    }
    for batch in (int(b) for b in trial.latency["batches"]):
        own = found["batches"][str(batch)] = {}
        for name, vlm in (("dense", dense), ("pruned", pruned)):
            context.progress(f"roofline: {name}, batch {batch}")
            stages = context.stages(vlm, batch)
            own[name] = {stage: _stage(vlm, call, limits) for stage, call in stages.items()}
    return found


def _stage(vlm: VLM, call: Callable[[], torch.Tensor], limits: Any) -> dict[str, float]:
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
