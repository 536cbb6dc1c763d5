"""Bias recovery: the mean of what a cut took from an output is added to the bias, so that the mean output stays.

    for step in compensate(pruned, calibration, plan): print(step["module"], step["lost"], step["kept"])

Source: An et al. 2023 (FLAP, arXiv 2312.11983), which adds W_j mean(x_j) of the columns j that went. Here every method
may have it, after low-rank pairs too. A plain mean can do harm: a few tokens with large activations rule it. So
each row counts the more, the more the answers depend on it (but behind an FFN without its old channels, where all count
alike), and a change stays only if it helps held-out answers; both are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from harness.progress import Progress, silent
from harness.pruning.cut_linears import CutLinear, cut_linears, other_producers
from harness.pruning.held_out import Change, Part, keep_what_helps, split
from harness.statistics.calibration import Calibration
from harness.statistics.sensitivity import weighted_means
from harness.types import VLM, Plan


def compensate(vlm: VLM, calibration: Calibration, plan: Plan, progress: Progress = silent) -> Iterator[dict[str, Any]]:
    """Change the biases after each cut, in place, with the dense model's weighted means in `calibration`.

    plan: what was cut from the dense model to get `vlm`. Yields each Linear with the norm of the mean output that it
    lost, relative to the norm of the mean dense output, and whether the change was kept.
    """
    fitting, held = split(calibration)
    cuts = list(cut_linears(fitting.vlm, vlm, plan))
    means = weighted_means(fitting, [cut.path for cut in cuts if cut.kept is not None])
    losses: list[tuple[CutLinear, float]] = []
    changes: dict[Part, list[Change]] = {}
    for cut in cuts:
        if cut.kept is None:
            read, target = (rows.mean(0) for rows in other_producers(fitting.vlm, vlm, cut, fitting))
        else:
            read, target = cut.take(means[cut.path]), cut.target(means[cut.path])
        bias = target - cut.weight @ read
        had: Tensor | float = 0.0 if cut.linear.bias is None else cut.linear.bias.detach().double()
        losses.append((cut, float((bias - had).norm() / target.norm().clamp(min=1e-300))))
        changes.setdefault(cut.part, []).append(Change(cut.linear, cut.linear.weight, bias))
    kept = keep_what_helps(vlm, changes, held, progress)
    for cut, lost in losses:
        yield {"module": cut.path, "lost": lost, "kept": cut.part in kept}
