"""Which whole layers go: the order in which a method gives them up, and how many meet a budget by themselves.

    order = removal_order(layers, held={"language"})    # the first goes first

One block of every component stays: the one that the order names last, unless a fixed block stays anyway.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from harness.types import Additive, Component, Global, InputError, Options, Ordinal, Score


@dataclass(frozen=True)
class Layer:
    """A block that may go as a whole: its name, what its heads and channels cost, and the method's score for it."""

    name: str
    component: Component
    cost: float
    score: Score

    @property
    def damage(self) -> float | None:
        """The damage of removing it, in the currency of `Additive`; None for an order."""
        if isinstance(self.score, Options):
            return next(point.loss for point in self.score.points if point.token_macs == 0)
        return self.score.damage[0] if isinstance(self.score, Additive) else None


def removal_order(layers: Sequence[Layer], held: Collection[Component]) -> list[Layer]:
    """The layers in the order in which they go, without the last block of a component that holds no fixed one.

    By damage: the least per multiply-add first. By a global order: the lowest first. By an order within the component:
    every component loses the same share. Among equal layers, the later goes first. Raises InputError if the layers have
    scores of different shapes.
    """
    if len({Additive if layer.damage is not None else type(layer.score) for layer in layers}) > 1:
        raise InputError("budget: the scores of the layers must all be Ordinal, or all Global, or all of a currency")
    later_first = layers[::-1]
    if layers[0].damage is not None:
        order = sorted(later_first, key=lambda layer: (layer.damage or 0.0) / layer.cost)
    else:
        order = sorted(later_first, key=_place)
        if isinstance(layers[0].score, Ordinal):
            places = _shares_lost(order)
            order = sorted(later_first, key=lambda layer: places[layer.name])
    last = {layer.component: layer.name for layer in order}  # of each component, the one that goes last
    return [layer for layer in order if layer.component in held or layer.name != last[layer.component]]


def _place(layer: Layer) -> float:
    assert isinstance(layer.score, Ordinal | Global)
    return layer.score.order[0]


def _shares_lost(order: Sequence[Layer]) -> dict[str, float]:
    """By layer, the share of its component that is lost when half of it is, if the component's layers go in order."""
    full: dict[Component, float] = defaultdict(float)
    lost: dict[Component, float] = defaultdict(float)
    for layer in order:
        full[layer.component] += layer.cost
    places = {}
    for layer in order:
        places[layer.name] = (lost[layer.component] + layer.cost / 2) / full[layer.component]
        lost[layer.component] += layer.cost
    return places


def layers_for_budget(order: Sequence[Layer], full: float, target: float, slack: float) -> list[Layer]:
    """The layers to remove so that what stays of `full` costs `target`.

    The first of the order go. Where these do not land within `slack`, numbers per component that do and differ least
    from the order's are taken; where none do, the first whose removal leaves less than the target.
    """
    saved = [0.0, *itertools.accumulate(layer.cost for layer in order)]
    number = next((number for number, cost in enumerate(saved) if full - cost <= target + slack), len(order))
    if abs(full - saved[number] - target) <= slack:
        return list(order[:number])
    queues = [
        [layer for layer in order if layer.component == c] for c in dict.fromkeys(layer.component for layer in order)
    ]
    first = [sum(layer in order[:number] for layer in queue) for queue in queues]
    sums = [[0.0, *itertools.accumulate(layer.cost for layer in queue)] for queue in queues]
    near = [
        (sum(abs(n - m) for n, m in zip(numbers, first, strict=True)), off, numbers)
        for numbers in itertools.product(*(range(len(queue) + 1) for queue in queues))
        if (off := abs(full - sum(each[n] for each, n in zip(sums, numbers, strict=True)) - target)) <= slack
    ]
    if not near:
        return list(order[:number])
    return [layer for queue, n in zip(queues, min(near)[2], strict=True) for layer in queue[:n]]
