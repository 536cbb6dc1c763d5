"""FFN arm `factor`: every Linear of an FFN may become a low-rank pair, with ranks that adapt to its spectrum.

    options, log = factor(vlm.model, block.ffn)  # Options: cost and loss points, dense first

The activation keeps its place between the factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from baselines.infoprune.spectrum import effective_rank
from baselines.linalg import Decomposition, decompose
from harness.calibration import Moment
from harness.types import LowRank, Option, Options, Units

POINTS = 512  # about the most points of one block: ranks of a large FFN are finer than any budget needs


@dataclass(frozen=True)
class _Linear:
    """A Linear of an FFN as found, so that factors can be made whatever has become of the model since."""

    path: str
    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    second: Tensor | None = field(repr=False)

    @property
    def rank_macs(self) -> int:
        return sum(self.weight.shape)

    def decompose(self) -> Decomposition:
        return decompose(self.weight, self.second)

    def dense_at(self, rank: int) -> bool:
        """Above the break-even in * out / (in + out) the pair costs more than the Linear, which then stays."""
        return rank * self.rank_macs >= self.weight.numel()


def factor(
    model: nn.Module, units: Units, moments: Mapping[str, Moment] | None = None
) -> tuple[Options, dict[str, Any]]:
    """Cost and loss points of one FFN, whitened if moments are given; and a log of the spectra.

    From full ranks the singular direction that holds the least energy per multiply-add goes first, over all Linears of
    the FFN, down to rank 1 each. Loss: the dropped energy of each Linear's output as a share of it, added up.
    """
    paths = dict.fromkeys([*(rows.module for rows in units.producers), units.consumer])
    linears = [_found(model, path, moments) for path in paths]
    parts = [linear.decompose() for linear in linears]
    dropped = [part.dropped.tolist() for part in parts]
    ranks = [len(part.energy) for part in parts]
    steps = sorted(
        ((dropped[i][rank - 1] - dropped[i][rank]) / linear.rank_macs, -rank, i)
        for i, linear in enumerate(linears)
        for rank in range(2, ranks[i] + 1)
    )
    points = [Option("dense", units.count * units.token_macs, 0.0)]
    for _, _, i in steps:
        ranks[i] -= 1
        chosen = [None if linear.dense_at(rank) else rank for linear, rank in zip(linears, ranks, strict=True)]
        macs = sum(
            linear.weight.numel() if rank is None else rank * linear.rank_macs
            for linear, rank in zip(linears, chosen, strict=True)
        )
        if macs < points[-1].token_macs:
            loss = sum(0.0 if rank is None else curve[rank] for rank, curve in zip(chosen, dropped, strict=True))
            label = "rank " + "/".join("dense" if rank is None else str(rank) for rank in chosen)
            points.append(Option(label, macs, loss, partial(_make, linears, chosen)))
    stride = -(-len(points) // POINTS)
    points = points[:-1:stride] + points[-1:]
    log = {linear.path.rsplit(".", 1)[-1]: _summary(part) for linear, part in zip(linears, parts, strict=True)}
    return Options(tuple(points)), log


def _found(model: nn.Module, path: str, moments: Mapping[str, Moment] | None) -> _Linear:
    weight, bias = (model.get_submodule(path)._parameters[name] for name in ("weight", "bias"))
    assert weight is not None
    second = None if moments is None else moments[path].second
    return _Linear(path, weight.detach(), None if bias is None else bias.detach(), second)


def _make(linears: Sequence[_Linear], ranks: Sequence[int | None]) -> dict[str, LowRank]:
    made = {}
    for linear, rank in zip(linears, ranks, strict=True):
        if rank is not None:
            down, up = linear.decompose().factors(linear.weight, rank)
            made[linear.path] = LowRank(down, up, None if linear.bias is None else linear.bias.clone())
    return made


def _summary(part: Decomposition) -> dict[str, Any]:
    """Effective rank, and the share of the energy dropped at a quarter, half and three quarters of the full rank."""
    quarters = [float(part.dropped[len(part.energy) * quarter // 4]) for quarter in (1, 2, 3)]
    return {"erank": float(effective_rank(part.energy.sqrt())), "dropped": quarters}
