"""Hard-concrete gates, trained at a budget: for contestants that learn which units to keep.

    hold = Lagrangian(keep=0.5, steps=240)
    loss = hold.on(task, kept - hold.target(step)); ...; hold.raise_by(gap)

Gates from 0 to 1 whose noise can be differentiated (Louizos et al. 2018, arXiv 1712.01312), and a Lagrangian that holds
what they keep at a budget (CoFi, Xia et al. 2022, arXiv 2204.00408).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # the stretch and the temperature (1712.01312)
START = 2.0  # ln a of every gate at the start: nearly open
BATCH = 8  # questions of a step, see `registry.Method.steps`: half of a tuning's, and so twice the steps


def sample(logits: Tensor, random: torch.Generator) -> Tensor:
    """Gates from 0 to 1, both reached. Drawn on the CPU, so that a seed gives the same noise on every device."""
    noise = torch.rand(logits.shape, generator=random).clamp(1e-6, 1 - 1e-6).to(logits.device)
    relaxed = torch.sigmoid((noise.logit() + logits) / TEMPERATURE)
    return (relaxed * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(logits: Tensor) -> Tensor:
    """The probability that a gate is not 0."""
    return torch.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH))


@dataclass
class Lagrangian:
    """Holds the share of the cost that gates keep at `keep`, over a training of so many steps."""

    keep: float
    steps: int
    linear: float = 0.0
    quadratic: float = 0.0

    def target(self, step: int) -> float:
        """The share at a step (from 0), falling over the first half: gates that close early rarely open again."""
        return 1 - (1 - self.keep) * min(1.0, 2 * (step + 1) / self.steps)

    def on(self, loss: Tensor, excess: Tensor) -> Tensor:
        """The loss with the price of keeping so much more than the target."""
        return loss + self.linear * excess + self.quadratic * excess.square()

    def raise_by(self, excess: float) -> None:
        """Raise the prices for the next step."""
        self.linear, self.quadratic = self.linear + excess, self.quadratic + 10 * excess**2
