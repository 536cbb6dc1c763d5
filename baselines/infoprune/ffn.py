"""FFN compression without training (Algorithm 2): cost and loss points of one FFN, by one of three arms.

    options, log = factor(Ffn.found(vlm.model, block.ffn), second_moments)

What each arm replaces, and its loss as a share of the FFN's output energy on the calibration set:

- `factor`: every Linear can become a low-rank pair, the activation stays. Loss: the sum of the dropped energies.
- `compose-linear`, `compose-act`: the paper's W2 W1, see compose.py. Loss: measured on samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from baselines.infoprune.spectrum import effective_rank
from baselines.linalg import Decomposition
from baselines.low_rank import Factorable, decomposed, factorables, low_rank, thinned
from harness.types import Option, Options, Replacement, Units

Arm = Literal["factor", "compose-linear", "compose-act"]


@dataclass(frozen=True)
class Ffn:
    """A dense FFN: its producers (one, or gate and up), the activation after the first, and the consumer."""

    producers: tuple[Factorable, ...]
    consumer: Factorable
    activation: nn.Module
    units: Units

    @classmethod
    def found(cls, model: nn.Module, units: Units) -> Ffn:
        """The FFN of these units in a model."""
        *producers, consumer = factorables(model, units)
        activation = model.get_submodule(units.activation) if units.activation else nn.Identity()
        return cls(tuple(producers), consumer, activation, units)

    @property
    def linears(self) -> tuple[Factorable, ...]:
        return (*self.producers, self.consumer)

    @property
    def token_macs(self) -> int:
        return self.units.count * self.units.token_macs


def points(dense: Ffn, others: Iterable[tuple[str, int, float, Callable[[], Mapping[str, Replacement]]]]) -> Options:
    """Options of falling cost from (label, multiply-adds per token, loss, make), with the dense FFN first."""
    options = [Option("dense", dense.token_macs, 0.0)]
    for label, macs, loss, make in others:
        if macs < options[-1].token_macs:
            options.append(Option(label, macs, loss, make))
    return Options(thinned(options))


def factor(ffn: Ffn, second: Callable[[str], Tensor] | None = None) -> tuple[Options, dict[str, Any]]:
    """The points of the arm `factor`, and a log of spectra.

    Over all Linears of the FFN, the singular direction with the least energy per multiply-add is removed first, down to
    rank 1 each. A Linear stays dense above the break-even in * out / (in + out), where a pair would cost more.
    second: gives, for a Linear's path, the uncentred second moment (in, in) of its input, which whitens it; None: plain
    SVD. Loss: the energy dropped from each Linear's output as a share of that output's energy, summed.
    """
    linears = decomposed(ffn.linears, second)
    parts = [linear.part for linear in linears if isinstance(linear.part, Decomposition)]

    def dropped(place: int) -> Callable[[float], float]:
        curve, linear = parts[place].dropped.tolist(), linears[place]
        return lambda share: curve[round(share * linear.weight.numel() / linear.rank_macs)]

    options = low_rank(ffn.units, linears, [dropped(place) for place in range(len(linears))])
    log = {linear.path.rsplit(".", 1)[-1]: _summary(part) for linear, part in zip(linears, parts, strict=True)}
    return options, log


def _summary(part: Decomposition) -> dict[str, Any]:
    """Effective rank, and the share of the energy dropped at one, two and three quarters of the full rank."""
    quarters = [float(part.dropped[len(part.energy) * quarter // 4]) for quarter in (1, 2, 3)]
    return {"erank": float(effective_rank(part.energy.sqrt())), "dropped": quarters}
