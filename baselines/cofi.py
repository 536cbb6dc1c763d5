"""CoFi: gates of heads and FFN channels, trained together for one budget (Xia et al. 2022, arXiv 2204.00408).

rank(vlm, calibration, seed=0, budget=Budget("vision", 0.5, extents=extents))

Hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312) under the KL divergence of the answers to the dense model's,
and a Lagrangian that holds the expected FLOPs at the budget. Then the units with the lowest gates go, over all layers
and kinds. Departures: CoFi trains weights and gates together, distils layers, and also gates whole layers and the width
of the residual stream; here weights are frozen, and only heads and channels have gates. Its Lagrangian holds a share of
the parameters, ours one of the FLOPs, also for budgets in time.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from harness.statistics import Calibration, answer_logits
from harness.types import VLM, Budget, Global, Kind, Ranking, Score

REGIME = "trained"

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # the hard-concrete's stretch and temperature (1712.01312)
START = 2.0  # ln a of every gate at the start: nearly open
BATCH = 8  # questions per step

Steps = Annotated[int, "training steps, a mini-batch of the calibration set each"]
Rate = Annotated[float, "Adam's learning rate of the gates' ln a"]


def rank(
    vlm: VLM, calibration: Calibration, *, seed: int, budget: Budget, steps: Steps = 240, rate: Rate = 0.1
) -> Ranking:
    """Heads and channels of the budget's scope in one order, by ln a of gates trained for it."""
    parts = list(vlm.select(budget.scope, budget.units))
    counts = [block.units(kind).count for block, kind in parts]
    device = next(vlm.model.parameters()).device
    costs = torch.cat(
        [
            torch.full((count,), float(block.units(kind).macs(budget.extents[block.component])), device=device)
            for (block, kind), count in zip(parts, counts, strict=True)
        ]
    )
    few = Calibration(vlm, calibration.samples, min(BATCH, calibration.batch_size))
    batches = list(few.batches())
    with few.frozen(), torch.no_grad():
        dense = [answer_logits(vlm.model, batch)[0].log_softmax(-1) for batch in batches]
    logits = torch.full_like(costs, START, requires_grad=True)
    optimizer = torch.optim.Adam([logits], rate)
    random = torch.Generator().manual_seed(seed)
    linear = quadratic = 0.0
    curve = []
    for step in range(steps):
        calibration.progress(f"cofi: step {step + 1} of {steps}")
        place = int(torch.randint(len(batches), (1,), generator=random))
        masks = _sample(logits, random).split(counts)
        gates: dict[tuple[str, Kind], Tensor] = {
            (block.name, kind): mask for (block, kind), mask in zip(parts, masks, strict=True)
        }
        with few.frozen(), torch.enable_grad(), few.gated(gates):
            answers, _ = answer_logits(vlm.model, batches[place])
        task = kl_div(answers.log_softmax(-1), dense[place], log_target=True, reduction="batchmean")
        kept = (costs * _open(logits)).sum() / costs.sum()
        # The target falls from 1 to the budget over the first half: gates that close early rarely open again.
        target = 1 - (1 - budget.keep) * min(1.0, 2 * (step + 1) / steps)
        excess = kept - target
        loss = task + linear * excess + quadratic * excess.square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gap = excess.item()
        linear, quadratic = linear + gap, quadratic + 10 * gap**2
        if step % 10 == 9 or step == steps - 1:
            curve.append({"step": step + 1, "task": task.item(), "kept": kept.item(), "target": target})
    orders = logits.detach().split(counts)
    scores: dict[tuple[str, Kind], Score] = {
        (block.name, kind): Global(tuple(order.tolist())) for (block, kind), order in zip(parts, orders, strict=True)
    }
    return Ranking(scores, {"gates": {"curve": curve}})


def _sample(logits: Tensor, random: torch.Generator) -> Tensor:
    """Gates from 0 to 1, both reached. Drawn on the CPU, so that a seed gives the same noise on every device."""
    noise = torch.rand(logits.shape, generator=random).clamp(1e-6, 1 - 1e-6).to(logits.device)
    relaxed = torch.sigmoid((noise.logit() + logits) / TEMPERATURE)
    return (relaxed * (HIGH - LOW) + LOW).clamp(0, 1)


def _open(logits: Tensor) -> Tensor:
    """The probability that a gate is not 0."""
    return torch.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH))
