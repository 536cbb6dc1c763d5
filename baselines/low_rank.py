"""An FFN whose Linears become low-rank pairs: the cost and loss points that every low-rank method offers the solver.

found = decomposed(factorables(vlm.model, block.ffn), second)
low_rank(block.ffn, found, map(equal_shares, found))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from baselines.linalg import Decomposition, decompose, whitener
from harness.calibration import linears
from harness.types import LowRank, Option, Options, Units

POINTS = 512  # about the most points of one FFN; a large one has more ranks than any budget needs


@dataclass(frozen=True)
class Factorable:
    """A Linear's path and tensors as they were when found; `part` is its decomposition, if it has been made."""

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


def factorables(model: nn.Module, units: Units) -> tuple[Factorable, ...]:
    """The Linears of an FFN, producers first."""
    found = []
    for path in linears(units):
        weight, bias = (model.get_submodule(path)._parameters[name] for name in ("weight", "bias"))
        assert weight is not None
        found.append(Factorable(path, weight.detach(), None if bias is None else bias.detach()))
    return tuple(found)


def decomposed(ffn: Iterable[Factorable], second: Callable[[str], Tensor] | None = None) -> tuple[Factorable, ...]:
    """The Linears of an FFN with their decompositions, kept in main memory: those of a model do not fit on its GPU.

    second: gives, for a Linear's path, the uncentred second moment (in, in) of its input, which whitens it, or the
    moment's diagonal (in,) to treat features as uncorrelated. None: plain SVD.
    """
    made: list[Factorable] = []
    moment = root = kept = None
    for linear in ffn:
        before, moment = moment, None if second is None else second(linear.path)
        if moment is not None:
            moment = moment.diag() if moment.dim() == 1 else moment
            if linear.weight.shape[0] <= linear.weight.shape[1]:
                root = kept = None
            elif root is None or before is None or not torch.equal(before, moment):  # gate and up read the same
                root = whitener(moment)
                kept = root.cpu()
        part = decompose(linear.weight, moment, root)
        made.append(replace(linear, part=Decomposition(part.energy.cpu(), part.vectors.cpu(), kept)))
    return tuple(made)


def equal_shares(linear: Factorable) -> Callable[[float], float]:
    """A loss that makes the solver keep the same share of every Linear: its slope follows from the share alone.

    Exponential, so that differing token counts (a factor t in the slope) shift the shares by only ln(t) / 500.
    """
    return lambda share: linear.weight.numel() * math.expm1(500 * (1 - share))


def low_rank(units: Units, ffn: Sequence[Factorable], losses: Iterable[Callable[[float], float]]) -> Options:
    """Points from dense down to rank 1 everywhere, each with one rank less than the last; factors are made when used.

    The rank that saves the most multiply-adds for its loss goes first. losses: one function per Linear, from the share
    of its cost that is kept, in (0, 1], to the loss; convex, falling, 0 at 1.
    """
    losses = tuple(losses)
    return Options(_walk(units, ffn, losses, 1), partial(_stepped, units, ffn, losses))


def _stepped(units: Units, ffn: Sequence[Factorable], losses: Sequence[Callable[[float], float]], step: int) -> Options:
    return Options(_walk(units, ffn, losses, step))


def _walk(
    units: Units, ffn: Sequence[Factorable], losses: Sequence[Callable[[float], float]], step: int
) -> tuple[Option, ...]:
    """The points of `low_rank` with ranks in multiples of `step`."""
    ranks: list[int | None] = [None] * len(ffn)  # None: as found
    macs = [linear.weight.numel() for linear in ffn]
    lost = [0.0] * len(ffn)
    steps = []
    for place, linear in enumerate(ffn):
        cost, before = linear.weight.numel(), 0.0
        for rank in range(linear.limit - linear.limit % step, 0, -step):
            after = losses[place](linear.share(rank))
            steps.append(((after - before) / (cost - rank * linear.rank_macs), place, -rank))
            cost, before = rank * linear.rank_macs, after
    found = [Option("dense", units.count * units.token_macs, 0.0)]
    for _, place, _ in sorted(steps):
        last, linear = ranks[place], ffn[place]
        rank = linear.limit - linear.limit % step if last is None else last - step
        ranks[place], macs[place], lost[place] = rank, rank * linear.rank_macs, losses[place](linear.share(rank))
        label = "rank " + "/".join("dense" if rank is None else str(rank) for rank in ranks)
        found.append(Option(label, sum(macs), sum(lost), partial(_low_rank_pairs, ffn, tuple(ranks))))
    return thinned(found)


def thinned(points: Sequence[Option]) -> tuple[Option, ...]:
    """At most about POINTS of the points, evenly spaced, always with the first and the last."""
    stride = -(-len(points) // POINTS)
    return (*points[:-1:stride], points[-1])


def _low_rank_pairs(ffn: Sequence[Factorable], ranks: Sequence[int | None]) -> dict[str, LowRank]:
    made = {}
    for linear, rank in zip(ffn, ranks, strict=True):
        if rank is not None:
            down, up = (linear.part or decompose(linear.weight)).factors(linear.weight, rank)
            made[linear.path] = LowRank(down, up, None if linear.bias is None else linear.bias.clone())
    return made
