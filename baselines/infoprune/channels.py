"""FFN arm `select`: hidden channels stay or go, and W2 is refitted by least squares for those that stay.

    options, log = select(ffn, calibration.moments([consumer])[consumer], whiten=True)

Gate and up of a gated FFN go together: a channel is what the consumer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baselines.infoprune.ffn import Ffn, points
from baselines.linalg import conditional
from harness.calibration import Moment
from harness.types import Dense, Options, Replacement

COUNTS = 64  # points of one block


def select(ffn: Ffn, moment: Moment, whiten: bool) -> tuple[Options, dict[str, Any]]:
    """Points at up to 64 numbers of channels, chosen one by one so that each takes most of what is left of the error.

    whiten: the error is that of the outputs, from the covariance of the channels (orthogonal matching pursuit);
    without, channels count as uncorrelated and the columns of W2 with the largest norm come first. W2 and its bias are
    refitted by the covariance in either case. Loss: the error of the output as a share of its second moment.
    """
    weight, covariance = ffn.consumer.weight.double(), moment.covariance
    norms = weight.square().sum(0)
    order = pursuit(covariance, weight) if whiten else norms.argsort(descending=True, stable=True)
    energy = float((weight @ moment.second * weight).sum())
    count = len(order)
    counts = torch.linspace(count - 1, 1, min(COUNTS, count - 1)).round().long().tolist()
    losses: list[float] = []

    def walk(step: int) -> Iterable[tuple[str, int, float, Callable[[], Mapping[str, Replacement]]]]:
        for kept in filter(None, dict.fromkeys(number - number % step for number in counts)):
            error = weight - _refit(weight, covariance, order[:kept])
            losses.append(max(0.0, float((error @ covariance * error).sum())) / energy if energy > 0 else 0.0)
            make = partial(_make, ffn, moment, order[:kept].sort().values)
            yield f"channels {kept}", kept * ffn.units.token_macs, losses[-1], make

    found = points(ffn, walk(1))
    log = {"channels": {"loss": losses[::8]}}
    return replace(found, aligned=lambda step: points(ffn, walk(step))), log


def pursuit(covariance: Tensor, weight: Tensor) -> Tensor:
    """All channels (h,), the one first that explains most of weight (d, h) times the channels, then the next most.

    A pivoted Cholesky factorisation of the covariance (h, h) whose pivot is the largest drop of the output's error.
    """
    rest = covariance.clone()
    effect = weight @ rest
    floor = covariance.diagonal().max() * len(covariance) * torch.finfo(covariance.dtype).eps
    left = torch.ones(len(covariance), dtype=torch.bool, device=covariance.device)
    order = []
    for _ in range(len(covariance)):
        variance = rest.diagonal()
        gain = effect.square().sum(0) / variance.clamp(min=floor if floor > 0 else 1)
        gain = torch.where(variance > floor, gain, 0)
        pick = int(torch.where(left, gain, -1).argmax())
        order.append(pick)
        left[pick] = False
        if variance[pick] > floor:
            row = rest[pick] / variance[pick]
            effect = effect - torch.outer(effect[:, pick], row)
            rest = rest - torch.outer(rest[:, pick].clone(), row)
    return torch.tensor(order, device=covariance.device)


def _refit(weight: Tensor, covariance: Tensor, kept: Tensor) -> Tensor:
    """The weight (d, h) with zero columns for the channels that went and the best columns for those kept."""
    made = torch.zeros_like(weight)
    made[:, kept] = weight @ conditional(covariance, kept)
    return made


def _make(ffn: Ffn, moment: Moment, kept: Tensor) -> dict[str, Replacement]:
    made: dict[str, Replacement] = {}
    for linear in ffn.producers:
        made[linear.path] = Dense(linear.weight[kept], None if linear.bias is None else linear.bias[kept])
    weight = ffn.consumer.weight.double()
    refitted = _refit(weight, moment.covariance, kept)
    bias = (weight - refitted) @ moment.mean
    own = ffn.consumer.bias
    made[ffn.consumer.path] = Dense(refitted[:, kept], bias if own is None else bias + own.double())
    return made
