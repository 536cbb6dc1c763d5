"""FFN arm `select`: hidden channels stay or go, and W2 is refitted by least squares for those that stay.

    options, log = select(ffn, calibration.moments([ffn.consumer.path]), whiten=True)

A channel is what the consumer reads; in a gated FFN it takes its rows of gate and up along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baselines.infoprune.ffn import Ffn, points
from baselines.linalg import conditional
from harness.calibration import Moment
from harness.types import Dense, Options, Replacement

COUNTS = 64  # points per block
BLOCK = 64  # channels picked between two updates of the whole covariance


def select(ffn: Ffn, moments: Mapping[str, Moment], whiten: bool) -> tuple[Options, dict[str, Any]]:
    """Points at up to 64 numbers of channels, picked one by one, always the one that reduces the error most; and a log.

    whiten: the error is that of the outputs, from the covariance of the channels (orthogonal matching pursuit).
    Otherwise channels count as uncorrelated, and those with the largest column norm in W2 come first. In both cases W2
    and its bias are refitted by the covariance. Loss: the output's squared error as a share of its second moment.
    """
    weight, moment = ffn.consumer.weight.double(), moments[ffn.consumer.path]
    energy = float((weight @ moment.second * weight).sum())
    if whiten:
        order, errors = pursuit(moment.covariance, weight)
    else:
        order, errors = weight.square().sum(0).argsort(descending=True, stable=True), None
    found, losses = _channels(ffn, moments, order, errors, energy, 1)
    log = {"channels": {"loss": losses[::8]}}
    return replace(found, aligned=lambda step: _channels(ffn, moments, order, errors, energy, step)[0]), log


def _channels(
    ffn: Ffn, moments: Mapping[str, Moment], order: Tensor, errors: Sequence[float] | None, energy: float, step: int
) -> tuple[Options, list[float]]:
    """The points at multiples of `step` channels, and the losses at all numbers of channels that were tried.

    The points' `make` holds no moment: those of all blocks of a large model would not fit in memory.
    """
    count = len(order)
    counts = torch.linspace(count - 1, 1, min(COUNTS, count - 1)).round().long().tolist()
    losses: list[float] = []

    def walk() -> Iterable[tuple[str, int, float, Callable[[], Mapping[str, Replacement]]]]:
        covariance = moments[ffn.consumer.path].covariance if errors is None else torch.empty(0)
        for kept in filter(None, dict.fromkeys(number - number % step for number in counts)):
            error = errors[kept] if errors is not None else _error(ffn.consumer.weight, covariance, order[:kept])
            losses.append(max(0.0, error) / energy if energy > 0 else 0.0)
            yield f"channels {kept}", kept * ffn.units.token_macs, losses[-1], partial(_make, ffn, moments, order, kept)

    return points(ffn, walk()), losses


def pursuit(covariance: Tensor, weight: Tensor) -> tuple[Tensor, list[float]]:
    """All channels (h,) in the order of picking, and the output's squared error after 0 .. h picks.

    The output is weight (d, h) times the channels, whose covariance is (h, h). A Cholesky factorisation of it, in which
    the pivot is the channel that reduces the output's error most. The whole covariance is updated once per BLOCK picks;
    in between, only the rows and columns that are read are corrected for the picks since.
    """
    rest = covariance.clone()
    effect = weight @ rest
    largest = float(rest.diagonal().max())
    floor = largest * len(rest) * torch.finfo(rest.dtype).eps
    left = torch.ones(len(rest), dtype=torch.bool, device=rest.device)
    order: list[int] = []
    drops: list[Tensor] = []
    whole = (effect * weight).sum()
    for start in range(0, len(rest), BLOCK):
        size = min(BLOCK, len(rest) - start)
        rows, scaled = (rest.new_zeros(size, len(rest)) for _ in range(2))  # of pending updates v r^T r: r and v r
        columns = effect.new_zeros(len(effect), size)
        variance, norms = rest.diagonal().clone(), effect.square().sum(0)
        for n in range(size):
            there = variance > floor
            gain = torch.where(there, norms / variance.clamp(min=floor if floor > 0 else 1), 0)
            pick = int(torch.where(left, gain, -1).argmax())
            order.append(pick)
            drops.append(gain[pick])
            left[pick] = False
            row = rest[pick] - rows[:n, pick] @ scaled[:n]
            column = effect[:, pick] - columns[:, :n] @ rows[:n, pick]
            scaled[n] = row * there[pick]
            rows[n] = scaled[n] / variance[pick].clamp(min=floor if floor > 0 else 1)
            columns[:, n] = column
            along = column @ effect - (column @ columns[:, :n]) @ rows[:n]
            norms = (norms - rows[n] * (2 * along - rows[n] * column.square().sum())).clamp(min=0)
            variance = variance - rows[n] * scaled[n]
        effect -= columns @ rows
        rest -= rows.T @ scaled
    errors = whole - torch.stack([torch.zeros_like(whole), *drops]).cumsum(0)
    return torch.tensor(order, device=rest.device), errors.tolist()


def _error(weight: Tensor, covariance: Tensor, kept: Tensor) -> float:
    """The output's squared error with these channels alone, and the weight (d, h) refitted to them."""
    weight = weight.double()
    error = weight - _refit(weight, covariance, kept)
    return float((error @ covariance * error).sum())


def _refit(weight: Tensor, covariance: Tensor, kept: Tensor) -> Tensor:
    """The weight (d, h) with zero columns for removed channels and refitted columns for those kept."""
    made = torch.zeros_like(weight)
    made[:, kept] = weight @ conditional(covariance, kept)
    return made


def _make(ffn: Ffn, moments: Mapping[str, Moment], order: Tensor, count: int) -> dict[str, Replacement]:
    kept = order[:count].sort().values
    made: dict[str, Replacement] = {}
    for linear in ffn.producers:
        made[linear.path] = Dense(linear.weight[kept], None if linear.bias is None else linear.bias[kept])
    weight, moment = ffn.consumer.weight.double(), moments[ffn.consumer.path]  # of a large model: made anew here
    refitted = _refit(weight, moment.covariance, kept)
    bias = (weight - refitted) @ moment.mean
    own = ffn.consumer.bias
    made[ffn.consumer.path] = Dense(refitted[:, kept], bias if own is None else bias + own.double())
    return made
