"""Does a method's score order units as their loss does? Kendall's tau with the true leave-one-out damage.

    found = measure(vlm, names, asked, track, stored=None)  # {"truth": {...}, "methods": {"taylor": {...}, ...}}

The damage of a unit is the rise of the answer loss on dev questions as it alone is gated to 0: for every head (or KV
group) and a seeded draw of FFN channels. Any method is compared that gives units a score; what gives none is named with
the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from harness import registry, tasks
from harness.calibration import Calibration
from harness.types import VLM, Budget, Kind, Options, Ordinal, Ranking

CONFIDENCE = 0.95
RESAMPLES = 2000
Track = Callable[[Sequence[Any], str], Iterable[Any]]  # a loop with a progress bar
Over = Literal["within", "across"]
KINDS: tuple[Kind, ...] = ("heads", "ffn")
CALIBRATION = 256  # questions that methods are ranked on
SEED = 0


class Unit(NamedTuple):
    """One unit of a block."""

    block: str
    kind: Kind
    index: int


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b over `pairs` pairs of units with its interval; None where either side does not vary."""

    tau: float | None
    lo: float | None
    hi: float | None
    units: int
    pairs: int


def draw(vlm: VLM, channels: int, seed: int = 0) -> list[Unit]:
    """Every head (or KV group) of the model, and so many of its FFN channels (all, if there are no more)."""
    heads = [Unit(block.name, "heads", i) for block in vlm.blocks for i in range(block.heads.count)]
    every = [Unit(block.name, "ffn", i) for block in vlm.blocks for i in range(block.ffn.count)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    return heads + [every[i] for i in sorted(order[:channels])]


def asked(vlm: VLM, samples: int, channels: int) -> dict[str, Any]:
    """What decides the damages, and so whether ones that were measured before are these."""
    drawn = {"split": "dev", "samples": samples, "channels": channels, "seed": SEED}
    data = tasks.data_hash(tasks.names(), "dev", None)[:16]
    return {"model": vlm.name, "weights": vlm.weights_hash, "data": data, **drawn}


def measure(
    vlm: VLM, names: Sequence[str], wanted: Mapping[str, Any], track: Track, stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Damages (those `stored` where they are of what is `wanted`: see `asked`) and every method's agreement with them.

    A method that fails is in the outcome with its error.
    """
    units = draw(vlm, wanted["channels"])
    fits = stored is not None and all(stored.get("truth", {}).get(key) == value for key, value in wanted.items())
    truth = stored["truth"] if stored is not None and fits else {**wanted, **_damages(vlm, wanted, units, track)}
    calibration = Calibration(vlm, tasks.samples(tasks.names(), "calibration", CALIBRATION, SEED))
    damage = [row["damage"] for row in truth["units"]]
    found = {}
    for name in track(names, "methods"):
        start = time.perf_counter()
        try:
            ranking = _rank(vlm, calibration, name)
        except Exception as error:  # one contestant's failure is its own
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        seconds = time.perf_counter() - start
        own = {kind: _agreement(ranking, units, damage, kind) for kind in KINDS}
        found[name] = {"options": dict(registry.method(name).options), "ranking_s": seconds, **own}
    return {"truth": truth, "two_halves": _two_halves(truth["units"]), "calibration": CALIBRATION, "methods": found}


def _damages(vlm: VLM, wanted: Mapping[str, Any], units: Sequence[Unit], track: Track) -> dict[str, Any]:
    """The rise of the answer loss without each unit, in nats a token: on all questions, and on each half of them."""
    drawn = tasks.samples(tasks.names(), wanted["split"], wanted["samples"], wanted["seed"])
    middle = -(-len(drawn) // 2)
    halves = [Calibration(vlm, part) for part in (drawn[:middle], drawn[middle:]) if part]
    tokens = [sum(int((batch["labels"] != -100).sum()) for batch in half.batches()) for half in halves]
    dense = [half.answer_loss() for half in halves]
    rows = []
    for unit in track(units, "units left out one by one"):
        gates = torch.ones(vlm.block(unit.block).units(unit.kind).count)
        gates[unit.index] = 0
        without = [half.answer_loss({(unit.block, unit.kind): gates}) for half in halves]
        rises = [after - before for after, before in zip(without, dense, strict=True)]
        rows.append({**unit._asdict(), "damage": _mean(rises, tokens), "halves": rises})
    return {"dense_loss": _mean(dense, tokens), "units": rows}


def _mean(figures: Sequence[float], weights: Sequence[int]) -> float:
    return sum(figure * weight for figure, weight in zip(figures, weights, strict=True)) / sum(weights)


def _rank(vlm: VLM, calibration: Calibration, name: str) -> Ranking:
    """A method's ranking with its defaults; one that is made for a budget is asked for half of all FLOPs."""
    method = registry.method(name)
    units: Any = method.units
    return method.rank(vlm, calibration, seed=SEED, budget=Budget("all", 0.5, units, calibration.extents))


def _two_halves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the damages on one half of the questions agree with those on the other: near 0, they are noise."""
    found = {}
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind and len(row["halves"]) == 2]
        sides = [[row["halves"][side] for row in own] for side in (0, 1)]
        found[kind] = _both(sides[0], sides[1], [row["block"] for row in own])
    return found


def _both(x: Sequence[float], y: Sequence[float], blocks: Sequence[str]) -> dict[str, Any]:
    return {"within": asdict(kendall(x, y, blocks)), "across": asdict(kendall(x, y))}


def _agreement(ranking: Ranking, units: Sequence[Unit], damage: Sequence[float], kind: Kind) -> dict[str, Any]:
    """Tau over the units of a kind inside their blocks and, of damages, across them too; or why there is none."""
    own = values(ranking, units, kind)
    if isinstance(own, str):
        return {"reason": own}
    scores, over = own
    there = [(unit, loss) for unit, loss in zip(units, damage, strict=True) if unit.kind == kind]
    found = _both(scores, [loss for _, loss in there], [unit.block for unit, _ in there])
    if over == "within":
        found["across"] = None
    return {**found, "scores": scores}


def values(ranking: Ranking, units: Sequence[Unit], kind: Kind) -> tuple[list[float], Over] | str:
    """The scores of these units of a kind and over which pairs they can be compared; or why they cannot.

    An order holds within its block only, damages everywhere.
    """
    own = [ranking.scores.get((unit.block, unit.kind)) for unit in units if unit.kind == kind]
    if not own or any(part is None for part in own):
        return "not scored"
    if any(isinstance(part, Options) for part in own):
        return "options of a whole FFN, no score a unit"
    over: Over = "within" if any(isinstance(part, Ordinal) for part in own) else "across"
    found = []
    for unit in units:
        if unit.kind == kind:
            part: Any = ranking.scores[unit.block, unit.kind]
            found.append(float((part.order if isinstance(part, Ordinal) else part.damage)[unit.index]))
    return found, over


def kendall(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Any] | None = None, *, resamples: int = RESAMPLES
) -> Tau:
    """Kendall's tau-b of two scores of units over all pairs, or over the pairs inside a group, pooled.

    The interval is a bootstrap over units (percentiles; inside their groups, a pair counting as often as both its units
    are drawn, and no unit pairing with itself). Source: Kendall, Biometrika 33 (1945).
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(first) < 2:
        return Tau(None, None, None, len(first), 0)
    labels = np.zeros(len(first), dtype=int) if groups is None else np.unique(list(groups), return_inverse=True)[1]
    same = labels[:, None] == labels[None, :]
    signs = [np.sign(side[:, None] - side[None, :]) * same for side in (first, second)]
    tables = [signs[0] * signs[1], signs[0] ** 2, signs[1] ** 2]
    pairs = int((same.sum() - len(first)) // 2)
    tau = _tau(np.ones((1, len(first))), tables)[0]
    if np.isnan(tau):
        return Tau(None, None, None, len(first), pairs)
    random = np.random.default_rng(0)
    weights = np.zeros((resamples, len(first)))
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        weights[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    drawn = _tau(weights, tables)
    drawn = drawn[~np.isnan(drawn)]
    lo, hi = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Tau(float(tau), float(lo), float(hi), len(first), pairs)


def _tau(weights: np.ndarray, tables: Sequence[np.ndarray]) -> np.ndarray:
    """Of weighted units, (draws, units): (concordant - discordant) / sqrt(untied in x * untied in y)."""
    agree, one, other = (((weights @ table) * weights).sum(axis=1) for table in tables)
    with np.errstate(invalid="ignore"):
        return agree / np.sqrt(one * other)
