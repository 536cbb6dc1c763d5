"""Least-squares refit: each Linear after a cut is fitted to the dense one's output, where that helps the answers.

    for step in refit(pruned, calibration, plan): print(step["module"], step["before"], step["after"], step["kept"])

Plain least squares can do harm: a few large activations rule the squared error, and what matters to the answers is lost
among what does not. So rows count by how strongly the answers depend on them (but behind an FFN without its old
channels, where all count alike), and a fit stays only if the answers to questions that are held out come closer to the
dense model's. Each Linear is fitted for the dense model's input: fits in forward order, each for what the cut and
fitted blocks before it let through, would take a pass for every block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.progress import Progress, silent
from harness.pruning.cut_linears import CutLinear, cut_linears, other_producers
from harness.pruning.held_out import Change, Part, keep_what_helps, split
from harness.statistics.calibration import Calibration
from harness.statistics.sensitivity import weighted_moments
from harness.types import VLM, Plan

DAMPING = 1e-4  # share of the inputs' mean variance


@dataclass(frozen=True)
class Wanted:
    """The inputs and target outputs of a Linear, over calibration rows: means, and centred second moments, in float64.

    inputs (in,) and covariance (in, in) of what it reads; outputs (out,) and cross (out, in) with the target; power:
    the target's mean square.
    """

    inputs: Tensor
    covariance: Tensor
    outputs: Tensor
    cross: Tensor
    power: float

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """The mean squared error of this weight and bias, relative to the target's mean square."""
        offset = self.outputs - weight @ self.inputs - (0 if bias is None else bias)
        spread = self.power - float(self.outputs.square().sum())
        centred = spread - 2 * float((weight * self.cross).sum()) + float((weight @ self.covariance * weight).sum())
        return max(0.0, centred + float(offset.square().sum())) / max(self.power, torch.finfo(torch.float64).tiny)


def refit(vlm: VLM, calibration: Calibration, plan: Plan, progress: Progress = silent) -> Iterator[dict[str, Any]]:
    """Refit the Linears after each cut to the dense model's outputs, in place.

    plan: what was cut from the dense model, which `calibration` holds. Each Linear is fitted by itself, for the dense
    model's inputs, with an intercept, on three quarters of the questions. Yields its relative squared error before and
    after, and whether the fit was kept. Sources: He, Zhang and Sun 2017, Channel Pruning, section 3.1, and Meng et al.
    2024, OSSCAR (arXiv 2403.12983), for the solution from second moments; the weights of rows and the trial on held-out
    questions are ours.
    """
    fitting, held = split(calibration)
    steps: list[tuple[CutLinear, float, float]] = []
    changes: dict[Part, list[Change]] = {}
    for cut, wanted in _wanted(vlm, fitting, plan):
        progress(f"refit: {cut.path}")
        weight = least_squares(wanted.covariance, wanted.cross, cut.weight)
        bias = wanted.outputs - weight @ wanted.inputs
        had = None if cut.linear.bias is None else cut.linear.bias.detach().double()
        steps.append((cut, wanted.error(cut.weight, had), wanted.error(weight, bias)))
        changes.setdefault(cut.part, []).append(Change(cut.linear, weight.to(cut.linear.weight), bias))
    kept = keep_what_helps(vlm, changes, held, progress)
    for cut, before, after in steps:
        yield {"module": cut.path, "before": before, "after": after, "kept": cut.part in kept}


def _wanted(vlm: VLM, calibration: Calibration, plan: Plan) -> Iterator[tuple[CutLinear, Wanted]]:
    """What each Linear after a cut reads, and the output that it should give, in the order of the plan."""
    cuts = list(cut_linears(calibration.vlm, vlm, plan))
    moments = weighted_moments(calibration, [cut.path for cut in cuts if cut.kept is not None])
    for cut in cuts:
        if cut.kept is None:
            yield cut, _from_rows(*other_producers(calibration.vlm, vlm, cut, calibration))
            continue
        mean, covariance = next(moments)
        weight, outputs, read = cut.old.weight.detach().double(), cut.target(mean), cut.take(covariance)
        power = float((weight @ covariance * weight).sum() + outputs.square().sum())
        yield cut, Wanted(cut.take(mean), cut.take(read.T), outputs, weight @ read, power)


def _from_rows(x: Tensor, y: Tensor) -> Wanted:
    inputs, outputs, power = x.mean(0), y.mean(0), float(y.square().sum() / len(y))
    x, y = x - inputs, y - outputs
    return Wanted(inputs, x.T @ x / len(x), outputs, y.T @ x / len(x), power)


def least_squares(covariance: Tensor, cross: Tensor, weight: Tensor, damping: float = DAMPING) -> Tensor:
    """The weight (out, in) nearest to `weight` that maps inputs to targets, both centred, in the least-squares sense.

    covariance: X^T X / n, (in, in); cross: Y^T X / n, (out, in); float64. Minimises |X W^T - Y|^2 / n + damping * mean
    variance of X * |W - weight|^2, so directions without data keep their weights.
    """
    ridge = damping * covariance.diagonal().mean().clamp(min=torch.finfo(covariance.dtype).tiny)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    root = torch.linalg.cholesky(covariance + ridge * identity)
    return weight + torch.cholesky_solve((cross - weight @ covariance).T, root).T
