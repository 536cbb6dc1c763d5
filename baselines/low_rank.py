"""Linears that become low-rank pairs: the (cost, loss) points that every low-rank method offers the solver.

linears = decomposed(factorables(vlm.model, units), second)
low_rank(units, linears, map(equal_shares, linears))

One kind of a block has one row of points: for gate, up and down together, or for q, k, v and o. A fused qkv is one
matrix. Attention products keep their cost, so a budget below their share cannot be met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from baselines.linalg import Decomposition, decompose, whitener
from harness.statistics import Calibration
from harness.statistics import linears as linears_of
from harness.types import VLM, Block, Kind, LowRank, Option, Options, Units, hull

POINTS = 512  # about the most points of one kind in a block; it can have more ranks than any budget needs
Loss = Callable[[float], float]  # of a Linear, by the share of its cost that is kept, in (0, 1]


@dataclass(frozen=True)
class Factorable:
    """A dense Linear's path and tensors, and in `part` its decomposition, if it is already computed."""

    path: str
    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    part: Decomposition | None = field(default=None, repr=False)

    @property
    def rank_macs(self) -> int:
        """Multiply-adds per token of a pair of rank 1."""
        return sum(self.weight.shape)

    @property
    def limit(self) -> int:
        """The largest rank whose pair costs less than the Linear."""
        return (self.weight.numel() - 1) // self.rank_macs

    def share(self, rank: int) -> float:
        """Cost of a pair of this rank as a share of the Linear's cost."""
        return rank * self.rank_macs / self.weight.numel()

    def rank(self, share: float) -> int:
        """The largest rank, at least 1, whose pair costs at most this share of the Linear."""
        return max(1, int(share * self.weight.numel() / self.rank_macs))


def factorables(model: nn.Module, units: Units) -> tuple[Factorable, ...]:
    """The Linears of an FFN or an attention module, producers first."""
    found = []
    for path in linears_of(units):
        weight, bias = (model.get_submodule(path)._parameters[name] for name in ("weight", "bias"))
        assert weight is not None
        found.append(Factorable(path, weight.detach(), None if bias is None else bias.detach()))
    return tuple(found)


def decomposed(linears: Iterable[Factorable], second: Callable[[str], Tensor] | None = None) -> tuple[Factorable, ...]:
    """The Linears with their decompositions, in main memory: those of a whole model do not fit on its GPU.

    second: gives, for a Linear's path, the uncentred second moment (in, in) of its input, which whitens it, or only the
    moment's diagonal (in,), which treats features as uncorrelated. None: plain SVD.
    """
    parts: list[Factorable] = []
    moment = root = stored_root = None
    for linear in linears:
        previous, moment = moment, None if second is None else second(linear.path)
        if moment is not None:
            moment = moment.diag() if moment.dim() == 1 else moment
            if linear.weight.shape[0] <= linear.weight.shape[1]:
                root = stored_root = None
            elif root is None or previous is None or not torch.equal(previous, moment):
                # Gate and up read the same input, so they share a root.
                root = whitener(moment)
                stored_root = root.cpu()
        part = decompose(linear.weight, moment, root)
        parts.append(replace(linear, part=Decomposition(part.energy.cpu(), part.vectors.cpu(), stored_root)))
    return tuple(parts)


def read_alike(units: Units) -> dict[str, str]:
    """By path, the first of these Linears that reads the same input. All producers do, so q, k and v share a moment."""
    first = units.producers[0].module
    return {path: path if path == units.consumer else first for path in linears_of(units)}


def whitened(vlm: VLM, calibration: Calibration) -> Iterator[tuple[Block, Kind, tuple[Factorable, ...]]]:
    """The Linears of each block and kind in forward order, decomposed, whitened by the moments of their inputs."""
    parts = vlm.select("all")
    reads = [read_alike(block.units(kind)) for block, kind in parts]
    moments = calibration.moments([path for read in reads for path in read.values()])
    for (block, kind), read in zip(parts, reads, strict=True):
        linears = factorables(vlm.model, block.units(kind))
        yield block, kind, decomposed(linears, lambda path, read=read: moments[read[path]].second)


def equal_shares(linear: Factorable, factor: float = 1.0) -> Loss:
    """A loss with which the solver keeps of every Linear `factor` times a common share of its cost, at most all of it.

    Its slope depends only on the common share. It is exponential, so that other token counts (a factor t in the slope)
    change the share only by ln(t) / 500.
    """
    scale = factor * linear.weight.numel()
    return lambda share: scale * (math.exp(500 * (1 - share / factor)) - math.exp(500 * (1 - 1 / factor)))


def low_rank(units: Units, linears: Sequence[Factorable], losses: Iterable[Loss]) -> Options:
    """Points from dense down to rank 1 everywhere, each with one rank less than the last; factors are computed on use.

    The rank that saves the most multiply-adds for its loss is removed first, along each Linear's lower convex hull.
    losses: one function per Linear, falling, 0 at 1.
    """
    losses = tuple(losses)
    return Options(_walk(units, linears, losses, 1), partial(_stepped, units, linears, losses))


def _stepped(units: Units, linears: Sequence[Factorable], losses: Sequence[Loss], step: int) -> Options:
    return Options(_walk(units, linears, losses, step))


def _walk(units: Units, linears: Sequence[Factorable], losses: Sequence[Loss], step: int) -> tuple[Option, ...]:
    """The points of `low_rank`, with ranks in multiples of `step`."""
    ladders: list[list[tuple[int, float]]] = []  # (multiply-adds, loss) of each Linear, dense first
    steps = []
    for place, (linear, loss) in enumerate(zip(linears, losses, strict=True)):
        ranks = range(linear.limit - linear.limit % step, 0, -step)
        ladder = [(linear.weight.numel(), 0.0), *((r * linear.rank_macs, loss(linear.share(r))) for r in ranks)]
        ladders.append(ladder)
        slope = -math.inf
        for a, b in pairwise(hull(ladder)):
            slope = max(slope, (ladder[b][1] - ladder[a][1]) / (ladder[a][0] - ladder[b][0]))  # despite rounding
            steps += [(slope, place, rung) for rung in range(a + 1, b + 1)]
    rungs = [0] * len(linears)
    points = [Option("dense", units.count * units.token_macs, 0.0)]
    for _, place, rung in sorted(steps):
        rungs[place] = rung
        here = [ladder[rung] for ladder, rung in zip(ladders, rungs, strict=True)]
        ranks = tuple(
            cost // linear.rank_macs if rung else None
            for (cost, _), linear, rung in zip(here, linears, rungs, strict=True)
        )
        label = "rank " + "/".join("dense" if rank is None else str(rank) for rank in ranks)
        macs, losses_here = zip(*here, strict=True)
        points.append(Option(label, sum(macs), sum(losses_here), partial(_low_rank_pairs, linears, ranks)))
    return thinned(points)


def thinned(points: Sequence[Option]) -> tuple[Option, ...]:
    """About POINTS of the points, evenly spaced, including the first and the last."""
    stride = -(-len(points) // POINTS)
    return (*points[:-1:stride], points[-1])


def _low_rank_pairs(linears: Sequence[Factorable], ranks: Sequence[int | None]) -> dict[str, LowRank]:
    pairs = {}
    for linear, rank in zip(linears, ranks, strict=True):
        if rank is not None:
            down, up = (linear.part or decompose(linear.weight)).factors(linear.weight, rank)
            pairs[linear.path] = LowRank(down, up, None if linear.bias is None else linear.bias.clone())
    return pairs
