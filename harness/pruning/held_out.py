"""Whether changes of weights help: tried on calibration questions that were held out when they were made.

    fitting, held = split(calibration)
    kept = keep_what_helps(vlm, {("vision.0", "ffn"): [Change(linear, weight, bias)]}, held)

A change that looks good Linear by Linear can still do harm to the answers. So it stays only if the answers come closer
to the dense model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.progress import Progress, silent
from harness.statistics.calibration import Calibration, answer_logits
from harness.types import VLM, Kind

HELD = 4  # every fourth question is held out

Part = tuple[str, Kind]  # a block's name, and a kind of units


@dataclass(frozen=True)
class Change:
    """A Linear, and a new weight (out, in) and bias (out,) for it."""

    linear: Any
    weight: Tensor
    bias: Tensor


def split(calibration: Calibration) -> tuple[Calibration, Calibration]:
    """The questions to fit on, and those held out; all for both where there are too few. The calibration keeps both."""

    def make(_: object) -> dict[str, tuple[Calibration, Calibration]]:
        samples, size = calibration.samples, calibration.batch_size
        if len(samples) < HELD:
            return {"": (calibration, calibration)}
        rest = [sample for place, sample in enumerate(samples) if place % HELD]
        return {"": (Calibration(calibration.vlm, rest, size), Calibration(calibration.vlm, samples[::HELD], size))}

    return calibration.cached("held out", [""], make)[""]


def keep_what_helps(
    vlm: VLM, changes: Mapping[Part, Sequence[Change]], held: Calibration, progress: Progress = silent
) -> set[Part]:
    """Make the changes, in place, that lower the KL divergence from the dense model's answers. Returns their parts.

    The changes of one component are tried together; where that does not help, its halves are, and their halves. The
    tower comes first.
    """
    teacher = held.cached("answers", [""], lambda _: {"": [_logs(held.vlm, batch) for batch in held.batches()]})[""]

    def divergence() -> float:
        progress("recovery: held-out questions")
        pairs = [(_logs(vlm, batch), logs) for batch, logs in zip(held.batches(), teacher, strict=True)]
        total = sum(float(functional.kl_div(own, logs, reduction="sum", log_target=True)) for own, logs in pairs)
        return total if math.isfinite(total) else math.inf

    best, kept = divergence(), set[Part]()
    waiting = [[part for part in changes if vlm.block(part[0]).component == where] for where in ("language", "vision")]
    while waiting:
        if not (parts := waiting.pop()):
            continue
        tried = [change for part in parts for change in changes[part]]
        old = [(change.linear.weight, change.linear.bias) for change in tried]
        for change in tried:
            _put(change.linear, change.weight, change.bias)
        if (now := divergence()) < best:
            best = now
            kept.update(parts)
            continue
        for change, (weight, bias) in zip(tried, old, strict=True):
            _put(change.linear, weight, bias)
        if len(parts) > 1:
            middle = len(parts) // 2
            waiting += [parts[middle:], parts[:middle]]
    return kept


@torch.no_grad()
def _logs(vlm: VLM, batch: Mapping[str, Any]) -> Tensor:
    return answer_logits(vlm.model, batch)[0].log_softmax(-1)


def _put(linear: Any, weight: Tensor, bias: Tensor | None) -> None:
    like = linear.weight
    linear.weight = nn.Parameter(weight.to(like), requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias.to(like), requires_grad=False)
