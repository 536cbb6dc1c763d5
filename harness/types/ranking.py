"""The result of a method: a score for every removable unit, or options for the Linears of one kind in a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.types.kinds import Kind

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Additive:
    """The damage of removing each unit, comparable over blocks and kinds. The solver cuts the least damage per FLOP."""

    damage: tuple[float, ...]


@dataclass(frozen=True)
class Ordinal:
    """Only an order within the block (larger: kept longer). Every block and kind loses the same share of its FLOPs."""

    order: tuple[float, ...]


@dataclass(frozen=True)
class Global:
    """An order over all layers (larger: kept longer). The lowest units go first, whatever they cost.

    The cost of a unit counts only towards the total.
    """

    order: tuple[float, ...]
    # kind: heads and channels each have an order, and lose the same share of FLOPs.
    pool: Literal["all", "kind"] = "all"


@dataclass(frozen=True)
class LowRank:
    """Two factors that replace a Linear: y = up @ (down @ x) + bias. down: (rank, in), up: (out, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Dense:
    """A Linear that replaces another: y = weight @ x + bias. weight: (out, in), bias: (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


Replacement = LowRank | Dense | None  # None: the identity (it removes an activation)


@dataclass(frozen=True)
class Option:
    """One way to run the Linears of one kind: cost, loss (same currency as Additive), and a function that builds them.

    In attention, only the Linears count. The attention products keep their cost.
    """

    label: str  # "dense", or the kept part: "rank 12/9"
    token_macs: int  # multiply-adds per token of all Linears of this kind in the block
    loss: float
    # Gives the replacements by module path; None leaves the block unchanged.
    make: Callable[[], Mapping[str, Replacement]] | None = None


@dataclass(frozen=True)
class Options:
    """Cost and loss points for one kind in a block, dense included (loss 0, make None). Surgery builds the factors."""

    points: tuple[Option, ...]
    # The same options with all ranks and widths multiples of a step; None if the method has no such options.
    aligned: Callable[[int], Options] | None = field(default=None, compare=False, repr=False)


def hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the lower convex hull of (cost, loss) points; the points must be sorted by falling cost."""
    chain: list[int] = []
    for i, (x, y) in enumerate(points):
        while len(chain) > 1:
            (x0, y0), (x1, y1) = points[chain[-2]], points[chain[-1]]
            if (y1 - y0) * (x0 - x) < (y - y0) * (x0 - x1):
                break
            chain.pop()
        chain.append(i)
    return chain


@dataclass(frozen=True)
class TokenRule:
    """Which visual tokens go on from a layer of the language model on (0: before the first).

    keep(states, count, ...) gives the positions of `count` of a row's n visual tokens, (count,), and may add weights,
    (count, n): then each kept token is this sum of all. states: (n, width), what the layer would read. It gets, if it
    names them, `attention` (n,), what each token receives, and `grids`, height and width of each image's tokens; and
    the options. To be written into a checkpoint, it may use torch, the standard library and functions of its own file.
    """

    keep: Callable[..., Any]
    layer: int = 0
    attention: Literal["none", "text", "vision"] = "none"  # of the last token in the layer before, or in the tower
    options: Mapping[str, Any] = field(default_factory=dict)


Score = Additive | Ordinal | Global | Options


@dataclass(frozen=True)
class Ranking:
    """A method's full result: a score per (block name, kind). The record stores `log` (curves, spectra) as JSON.

    A method of the kind `tokens` gives a rule instead of scores.
    """

    scores: Mapping[tuple[str, Kind], Score]
    log: Mapping[str, Any] = field(default_factory=dict)
    tokens: TokenRule | None = None

    def numbers(self, block: str | None = None) -> dict[tuple[str, Kind], Any]:
        """The scores as plain numbers, without the functions that build options; of one block, or of all."""
        return {key: _numbers(score) for key, score in self.scores.items() if block in (None, key[0])}


def _numbers(score: Score) -> tuple[Any, ...]:
    if isinstance(score, Options):
        return tuple((point.label, point.token_macs, point.loss) for point in score.points)
    return score.damage if isinstance(score, Additive) else score.order
