"""CoFi: gates of heads and FFN channels, trained together for one budget (Xia et al. 2022, arXiv 2204.00408).

rank(vlm, calibration, seed=0, budget=Budget("vision", 0.5, extents=extents))

Hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312) under the KL divergence of the answers to the dense model's,
and a Lagrangian that holds the expected FLOPs at the budget. Then the units with the lowest gates go, over all layers
and kinds. Departures: CoFi trains weights and gates together, distils layers, and also gates whole layers and the width
of the residual stream; here weights are frozen, and only heads and channels have gates. Its Lagrangian holds a share of
the parameters, ours one of the FLOPs, also for budgets in time.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from baselines.hard_concrete import BATCH, START, Lagrangian, open_probability, sample
from harness.statistics import Calibration, answer_logits
from harness.types import VLM, Budget, Global, Kind, Ranking, Score

REGIME = "trained"

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
    hold = Lagrangian(budget.keep, steps)
    curve = []
    for step in range(steps):
        calibration.progress(f"cofi: step {step + 1} of {steps}")
        place = int(torch.randint(len(batches), (1,), generator=random))
        masks = sample(logits, random).split(counts)
        gates: dict[tuple[str, Kind], Tensor] = {
            (block.name, kind): mask for (block, kind), mask in zip(parts, masks, strict=True)
        }
        with few.frozen(), torch.enable_grad(), few.gated(gates):
            answers, _ = answer_logits(vlm.model, batches[place])
        task = kl_div(answers.log_softmax(-1), dense[place], log_target=True, reduction="batchmean")
        kept = (costs * open_probability(logits)).sum() / costs.sum()
        target = hold.target(step)
        excess = kept - target
        loss = hold.on(task, excess)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hold.raise_by(excess.item())
        if step % 10 == 9 or step == steps - 1:
            curve.append({"step": step + 1, "task": task.item(), "kept": kept.item(), "target": target})
    orders = logits.detach().split(counts)
    scores: dict[tuple[str, Kind], Score] = {
        (block.name, kind): Global(tuple(order.tolist())) for (block, kind), order in zip(parts, orders, strict=True)
    }
    return Ranking(scores, {"gates": {"curve": curve}})
