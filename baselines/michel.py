"""Head importance: the answer loss's sensitivity to a gate on each head (Michel et al. 2019, arXiv 1905.10650).

rank(vlm, calibration, seed=0, absolute="token")

I_h = mean over samples x of |A_h(x) . dL(x)/dA_h(x)| (eq. 2), each layer's scores divided by their L2 norm; heads of
all layers then compete. Departures: if heads share keys and values, a whole group is one unit; the solver weighs a
head's damage against its cost, which the paper does not need, because its heads have one size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, Additive, Kind, Ranking, Units

UNITS = "heads"

Absolute = Annotated[
    Literal["sample", "token"], "what is summed before the absolute value: eq. 2 of 1905.10650, or its released code"
]
Normalise = Annotated[Literal["layer", "none"], "divide by the L2 norm of the layer's scores (as in 1905.10650)"]


def rank(
    vlm: VLM, calibration: Calibration, *, seed: int, absolute: Absolute = "sample", normalise: Normalise = "layer"
) -> Ranking:
    """Damage of a head: its mean absolute activation * gradient, summed per sample or per token."""
    by_head = _by_sample(calibration) if absolute == "sample" else _by_token(calibration)
    scores = {}
    for key, importance in by_head.items():
        norm = float(importance.norm()) if normalise == "layer" else 1.0
        scores[key] = Additive(tuple((importance / (norm or 1.0)).tolist()))
    return Ranking(scores)


def _by_sample(calibration: Calibration) -> dict[tuple[str, Kind], Tensor]:
    """(count,) for the heads of each block: the absolute derivative by the head's gate, averaged over samples."""
    gradients = calibration.singly.gate_gradients()
    return {key: rows.abs().mean(0) for key, rows in gradients.items() if key[1] == "heads"}


def _by_token(calibration: Calibration) -> dict[tuple[str, Kind], Tensor]:
    """(count,) for the heads of each block: |activation * gradient|, averaged over samples.

    It is summed over columns before the absolute value, and over tokens after it.
    """
    vlm = calibration.vlm
    units_of: dict[tuple[str, Kind], Units] = {
        (block.name, kind): block.heads for block, kind in vlm.select("all", "heads")
    }
    device = next(vlm.model.parameters()).device
    gates = {key: torch.ones(units.count, device=device, requires_grad=True) for key, units in units_of.items()}
    sums: dict[tuple[str, Kind], Tensor] = {}

    def hook(key: tuple[str, Kind]) -> Callable[..., None]:
        def see(_: Any, args: tuple[Tensor, ...]) -> None:
            gated = args[0]  # requires a gradient because its gate does

            def add(gradient: Tensor) -> None:
                products = (gated.detach() * gradient).double().flatten(0, -2)
                batch_sums = products.unflatten(1, (units_of[key].count, -1)).sum(2).abs().sum(0)
                sums[key] = sums[key] + batch_sums if key in sums else batch_sums

            gated.register_hook(add)

        return see

    single = calibration.singly
    with single.frozen(), torch.enable_grad(), single.gated(gates), ExitStack() as hooks:
        for key, units in units_of.items():
            consumer = vlm.model.get_submodule(units.consumer)
            hooks.callback(consumer.register_forward_pre_hook(hook(key)).remove)  # after the gate's own hook
        for batch in single.batches():
            torch.autograd.grad(vlm.model(**batch, use_cache=False).loss, list(gates.values()))
    return {key: sums[key].cpu() / len(calibration.samples) for key in units_of}
