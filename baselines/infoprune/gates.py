"""One gate per head, trained for one budget with frozen weights (the paper's Algorithm 1).

training = Training(vlm, calibration, Loss(), layers, macs, share=0.5, seed=0)
curve = training.run(steps=240, rate=0.1)
training.logits["vision.0"]  # ln a of each head's gate; the larger, the longer the head stays
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from baselines.hard_concrete import BATCH, START, Lagrangian, open_probability, sample
from baselines.infoprune.heads import Layer, Loss
from baselines.infoprune.spectrum import masked_spectrum, side_by_side
from baselines.linalg import row_reduced
from harness.statistics import Calibration, answer_logits
from harness.types import VLM, Kind

Relaxation = Literal["hard-concrete", "sigmoid"]
Task = Literal["kl", "answers"]

PATIENCE = 60  # stop early once the kept heads have been the same for this many steps, on budget


@dataclass
class Training:
    """Gates of the heads of some layers, by block name, and what they are trained under.

    macs: multiply-adds of one head, on the reference input. share: of the heads' multiply-adds, to keep.
    information: weight of J, averaged over the layers, beside the task loss. logits: ln a of each gate, (heads,).
    """

    vlm: VLM
    calibration: Calibration
    loss: Loss
    layers: Mapping[str, Layer]
    macs: Mapping[str, int]
    share: float
    seed: int
    gate: Relaxation = "hard-concrete"
    task: Task = "kl"
    information: float = 0.1
    logits: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.logits = {  # beside what J of their layer is computed from
            name: torch.full((layer.count,), START, device=layer.covariance.device, requires_grad=True)
            for name, layer in self.layers.items()
        }

    def run(self, steps: int, rate: float) -> list[dict[str, float]]:
        """Train the gates and return the curve, one row per ten steps."""
        random = torch.Generator().manual_seed(self.seed)
        full = sum(self.macs[name] * layer.count for name, layer in self.layers.items())
        optimizer = torch.optim.Adam(list(self.logits.values()), rate)
        hold = Lagrangian(self.share, steps)
        calibration = Calibration(
            self.vlm, self.calibration.samples, min(BATCH, self.calibration.batch_size), self.calibration.progress
        )
        batches = list(calibration.batches())
        dense = self._dense_answers(batches) if self.task == "kl" else []
        information = [Information.of(self.loss, layer) for layer in self.layers.values()]
        curve, closed, unchanged_steps = [], frozenset[Any](), 0
        for step in range(steps):
            calibration.progress(f"gates: step {step + 1} of {steps}")
            place = int(torch.randint(len(batches), (1,), generator=random))
            masks = {name: self._sample(logit, random) for name, logit in self.logits.items()}
            open_ = [self.macs[name] * self._open(logit).sum() for name, logit in self.logits.items()]
            kept = stacked(open_).sum() / full
            gates: dict[tuple[str, Kind], Tensor] = {(name, "heads"): mask for name, mask in masks.items()}
            with calibration.frozen(), torch.enable_grad(), calibration.gated(gates):
                logits, tokens = answer_logits(self.vlm.model, batches[place])
            if dense:
                task = kl_div(logits.log_softmax(-1), dense[place], log_target=True, reduction="batchmean")
            else:
                task = cross_entropy(logits, tokens)
            lost = stacked([term(mask) for term, mask in zip(information, masks.values(), strict=True)]).mean()
            target = hold.target(step)
            excess = (kept - target).to(task.device)
            loss = hold.on(task + self.information * lost.to(task), excess)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            gap = excess.item()
            hold.raise_by(gap)
            if step % 10 == 9 or step == steps - 1:
                figures = {"task": task.item(), "information": lost.item(), "kept": kept.item(), "target": target}
                curve.append({"step": step + 1, **figures})
            closed_now = self._closed()
            unchanged_steps = unchanged_steps + 1 if closed_now == closed and target == self.share else 0
            closed = closed_now
            if unchanged_steps >= PATIENCE and abs(gap) < 0.02:
                break
        return curve

    def _sample(self, logit: Tensor, random: torch.Generator) -> Tensor:
        return torch.sigmoid(logit) if self.gate == "sigmoid" else sample(logit, random)

    def _open(self, logit: Tensor) -> Tensor:
        """The probability that a gate is not 0."""
        return torch.sigmoid(logit) if self.gate == "sigmoid" else open_probability(logit)

    def _closed(self) -> frozenset[tuple[str, int]]:
        """The heads that the share leaves out, if training stopped now."""
        gates = [(name, head, x) for name, logit in self.logits.items() for head, x in enumerate(logit.tolist())]
        level = threshold([(x, self.macs[name]) for name, _, x in gates], self.share)
        return frozenset((name, head) for name, head, x in gates if x < level)

    def _dense_answers(self, batches: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        with self.calibration.frozen(), torch.no_grad():
            return [answer_logits(self.vlm.model, batch)[0].log_softmax(-1) for batch in batches]


def stacked(numbers: Sequence[Tensor]) -> Tensor:
    """Numbers of layers that may lie on several devices, on the first one's: (len(numbers),)."""
    return torch.stack([number.to(numbers[0].device) for number in numbers])


def threshold(gates: Sequence[tuple[float, int]], share: float) -> float:
    """The ln a between the gates to close and those to keep, from (ln a, cost) of each, at this share of the cost."""
    left = share * sum(cost for _, cost in gates)
    ordered = sorted(gates, reverse=True)
    for place, (logit, cost) in enumerate(ordered):
        left -= cost
        if left < -cost / 2:
            return (logit + ordered[place - 1][0]) / 2 if place else logit + 1
    return ordered[-1][0] - 1


@dataclass(frozen=True)
class Information:
    """J of one layer as a function of its soft mask (heads,); what training does not change is precomputed."""

    loss: Loss
    covariance: Tensor
    weight: Tensor
    original: Tensor

    @classmethod
    def of(cls, loss: Loss, layer: Layer) -> Information:
        side = layer.output == "head"
        weight = side_by_side(layer.weight, layer.count) if side else row_reduced(layer.weight)
        original = masked_spectrum(layer.covariance, weight, torch.ones(layer.count, device=weight.device))
        return cls(loss, layer.covariance, weight, original)

    def __call__(self, mask: Tensor) -> Tensor:
        return self.loss.smooth(self.original, masked_spectrum(self.covariance, self.weight, mask))
