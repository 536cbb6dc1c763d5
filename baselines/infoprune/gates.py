"""InfoPrune with learned gates (reconstructed): heads by training, the paper's Algorithm 1; FFNs as without training.

    rank(vlm, calibration, seed=0, budget=Budget("vision", 0.5, extents=extents), steps=200)

One gate per head (or KV group), frozen weights: task loss + information loss J + a Lagrangian that holds the expected
FLOPs to the budget (CoFi, arXiv 2204.00408). Gates only order the heads; the solver then cuts exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from baselines.infoprune import head_layer, options, rounded
from baselines.infoprune import rank as without_training
from baselines.infoprune.heads import Layer
from baselines.infoprune.spectrum import masked_information_loss, masked_spectrum, side_by_side
from baselines.linalg import row_reduced
from harness.calibration import Calibration, answer_logits
from harness.types import VLM, Additive, Budget, Kind, Options, Ranking, hull

ROLE, REGIME = "studied", "trained"

Gate = Annotated[Literal["hard-concrete", "sigmoid"], "a gate's relaxation: hard-concrete (Louizos 2018), or sigmoid"]
Task = Annotated[Literal["kl", "answers"], "task loss: KL to the dense model, or cross-entropy, on answers"]
Information = Annotated[float, "weight of J, averaged over layers, beside the task loss (its size is open)"]
Steps = Annotated[int, "training steps, a mini-batch of the calibration set each (`a few hundred`)"]
Rate = Annotated[float, "Adam's learning rate of the gates' ln a; open"]

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # the hard-concrete's stretch and temperature (Louizos 2018)
START = 2.0  # ln a of every gate: nearly all open
PATIENCE = 60  # stop early once the kept heads have been the same for this many steps, on budget


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    budget: Budget,
    steps: Steps = 240,
    rate: Rate = 0.1,
    gate: Gate = "hard-concrete",
    task: Task = "kl",
    information: Information = 0.1,
    alpha: options.Alpha = 0.5,
    beta: options.Beta = 1.0,
    distribution: options.Distribution = "amplitude",
    ks_over: options.KsOver = "cumulative",
    k: options.K = 0.99,
    output: options.Output = "layer",
    arm: options.FfnArm = "select",
    whiten: options.Whiten = True,
    weigh: options.Weigh = "ablation",
) -> Ranking:
    """Heads of the budget's scope by ln a of gates trained for it; everything else as `infoprune` has it.

    The budget is split between heads and FFNs without training, where a FLOP costs the same loss in both; within the
    heads' part the trained order then applies. Raises InputError as `infoprune` does.
    """
    shared = {"alpha": alpha, "beta": beta, "distribution": distribution, "ks_over": ks_over, "k": k, "output": output}
    untrained = without_training(vlm, calibration, seed=seed, arm=arm, whiten=whiten, weigh=weigh, **shared)
    keys: list[tuple[str, Kind]] = [(block.name, kind) for block, kind in vlm.select(budget.scope, "heads")]
    if budget.units == "ffn" or not keys:
        return untrained
    price, share = exchange(vlm, untrained, budget)
    macs = {key: vlm.block(key[0]).heads.macs(budget.extents[vlm.block(key[0]).component]) for key in keys}
    moments = calibration.moments([vlm.block(name).heads.consumer for name, _ in keys])
    terms = [Regulariser.of(head_layer(vlm, vlm.block(name), moments, output), output, shared) for name, _ in keys]
    trained = _Training(vlm, calibration, dict(macs), terms, share, seed, gate, task, information)
    curve = trained.run(steps, rate)
    logits = {key: value.detach().tolist() for key, value in trained.logits.items()}
    threshold = _threshold([(x, macs[key]) for key in keys for x in logits[key]], share)
    scores = dict(untrained.scores)
    for key in keys:
        scores[key] = Additive(
            tuple(price * macs[key] * math.exp(max(-20, min(20, x - threshold))) for x in logits[key])
        )
    log = {"share_of_heads": share, "curve": curve, "logits": {name: logits[name, kind] for name, kind in keys}}
    return Ranking(scores, {**untrained.log, "gates": rounded(log)})


def exchange(vlm: VLM, ranking: Ranking, budget: Budget) -> tuple[float, float]:
    """The loss per multiply-add at which a joint cut meets the budget, and the share of the heads' FLOPs kept there."""
    steps: list[tuple[float, float, bool]] = []  # (loss per multiply-add, multiply-adds saved, whether of a head)
    total = heads = 0.0
    for block, kind in vlm.select(budget.scope, budget.units):
        extent, units = budget.extents[block.component], block.units(kind)
        total += units.count * units.macs(extent)
        score = ranking.scores[block.name, kind]
        if isinstance(score, Additive):
            heads += units.count * units.macs(extent)
            steps += [(damage / units.macs(extent), units.macs(extent), True) for damage in score.damage]
        elif isinstance(score, Options):
            steps += [(slope / extent.tokens, saved * extent.tokens, False) for slope, saved in _steps(score)]
    excess, kept, last = (1 - budget.keep) * total, heads, 0.0
    for price, saved, of_head in sorted(steps):
        if excess <= 0:
            break
        excess, last = excess - saved, price
        kept -= saved * of_head
    return max(last, 1e-12), max(0.0, kept / heads)


def _steps(score: Options) -> list[tuple[float, int]]:
    """(loss per multiply-add, multiply-adds saved) of each step down the lower convex hull of cost and loss."""
    ladder = [(point.token_macs, point.loss) for point in score.points]
    corners = [ladder[place] for place in hull(ladder)]
    return [
        ((less[1] - more[1]) / (more[0] - less[0]), more[0] - less[0]) for more, less in itertools.pairwise(corners)
    ]


def _threshold(gates: list[tuple[float, int]], share: float) -> float:
    """The ln a that separates the gates to close from those to keep at this share of the FLOPs."""
    left = share * sum(cost for _, cost in gates)
    ordered = sorted(gates, reverse=True)
    for place, (logit, cost) in enumerate(ordered):
        left -= cost
        if left < -cost / 2:
            return (logit + ordered[place - 1][0]) / 2 if place else logit + 1
    return ordered[-1][0] - 1


@dataclass(frozen=True)
class Regulariser:
    """J of one layer as a function of its soft mask (heads,); what training does not change is computed once."""

    covariance: Tensor
    weight: Tensor
    original: Tensor
    how: Mapping[str, Any]

    @classmethod
    def of(cls, layer: Layer, output: str, shared: Mapping[str, Any]) -> Regulariser:
        weight = side_by_side(layer.weight, layer.count) if output == "head" else row_reduced(layer.weight)
        original = masked_spectrum(layer.covariance, weight, torch.ones(layer.count, device=weight.device))
        how = {key: shared[key] for key in ("alpha", "beta", "distribution", "k")} | {"over": shared["ks_over"]}
        return cls(layer.covariance, weight, original, how)

    def __call__(self, mask: Tensor) -> Tensor:
        return masked_information_loss(self.covariance, self.weight, mask, original=self.original, **self.how)


@dataclass
class _Training:
    vlm: VLM
    calibration: Calibration
    macs: dict[tuple[str, Kind], int]
    terms: list[Regulariser]
    share: float
    seed: int
    gate: str
    task: str
    information: float
    logits: dict[tuple[str, Kind], Tensor] = field(default_factory=dict)

    def run(self, steps: int, rate: float) -> list[dict[str, float]]:
        """Train the gates and return the curve, one row per ten steps."""
        device = next(self.vlm.model.parameters()).device
        random = torch.Generator().manual_seed(self.seed)
        counts = {key: self.vlm.block(key[0]).heads.count for key in self.macs}
        self.logits = {key: torch.full((n,), START, device=device, requires_grad=True) for key, n in counts.items()}
        full = sum(self.macs[key] * n for key, n in counts.items())
        optimizer = torch.optim.Adam(list(self.logits.values()), rate)
        linear = quadratic = 0.0
        batches = list(self.calibration.batches())
        dense = self._dense_answers(batches) if self.task == "kl" else []
        curve, closed, same = [], frozenset[Any](), 0
        for step in range(steps):
            self.calibration.progress(f"gates: step {step + 1} of {steps}")
            place = int(torch.randint(len(batches), (1,), generator=random))
            gates = {key: self._sample(logit, random) for key, logit in self.logits.items()}
            open_ = [self.macs[key] * self._open(logit).sum() for key, logit in self.logits.items()]
            kept = torch.stack(open_).sum() / full
            with self.calibration.frozen(), torch.enable_grad(), self.calibration.gated(gates):
                logits, tokens = answer_logits(self.vlm.model, batches[place])
            if dense:
                task = kl_div(logits.log_softmax(-1), dense[place], log_target=True, reduction="batchmean")
            else:
                task = cross_entropy(logits, tokens)
            lost = torch.stack([term(mask) for term, mask in zip(self.terms, gates.values(), strict=True)]).mean()
            # The target falls from 1 to the budget over the first half: gates that close early rarely open again.
            target = 1 - (1 - self.share) * min(1.0, 2 * (step + 1) / steps)
            excess = kept - target
            loss = task + self.information * lost.to(task) + linear * excess + quadratic * excess.square()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            gap = excess.item()
            linear, quadratic = linear + gap, quadratic + 10 * gap**2
            if step % 10 == 9 or step == steps - 1:
                figures = {"task": task.item(), "information": lost.item(), "kept": kept.item(), "target": target}
                curve.append({"step": step + 1, **figures})
            opened = {key: logit.tolist() for key, logit in self.logits.items()}
            threshold = _threshold([(x, self.macs[key]) for key in opened for x in opened[key]], self.share)
            now = frozenset((key, i) for key in opened for i, x in enumerate(opened[key]) if x < threshold)
            same = same + 1 if now == closed and target == self.share else 0
            closed = now
            if same >= PATIENCE and abs(gap) < 0.02:
                break
        return curve

    def _sample(self, logit: Tensor, random: torch.Generator) -> Tensor:
        if self.gate == "sigmoid":
            return torch.sigmoid(logit)
        # Drawn on the CPU, so that a seed gives the same noise on every device.
        noise = torch.rand(logit.shape, generator=random).clamp(1e-6, 1 - 1e-6).to(logit.device)
        relaxed = torch.sigmoid((noise.logit() + logit) / TEMPERATURE)
        return (relaxed * (HIGH - LOW) + LOW).clamp(0, 1)

    def _open(self, logit: Tensor) -> Tensor:
        """The probability that a gate is not 0."""
        return torch.sigmoid(logit - (0 if self.gate == "sigmoid" else TEMPERATURE * math.log(-LOW / HIGH)))

    def _dense_answers(self, batches: list[dict[str, Any]]) -> list[Tensor]:
        with self.calibration.frozen(), torch.no_grad():
            return [answer_logits(self.vlm.model, batch)[0].log_softmax(-1) for batch in batches]
