"""How well a method's scores rank units by their true damage: Kendall's tau with the leave-one-out damage.

    quality = measure(vlm, names, damage_settings(vlm, samples=256, channels=200), track)
    quality["methods"]["taylor"], quality["truth"]

The damage of a unit is the rise of the answer loss on dev questions when only this unit is gated to 0. It is measured
for every head (or KV group) and for FFN channels drawn from a seed. Every method that gives scores per unit is
compared; a method without such scores is named, and the outcome holds the reason.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from harness import registry, tasks
from harness.checks import ranking_rules
from harness.method_files import FAILURES
from harness.progress import Track
from harness.statistics.calibration import Calibration
from harness.types import VLM, WIDTHS, Additive, Budget, InputError, Kind, Options, Ordinal, Questions, Ranking

CONFIDENCE = 0.95
RESAMPLES = 2000
Over = Literal["within", "across"]
CALIBRATION = 256  # questions on which the methods rank
SEED = 0


class Unit(NamedTuple):
    """One unit of a block."""

    block: str
    kind: Kind
    index: int


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b over `pairs` pairs of units with its interval; None if the scores or the damages do not vary."""

    tau: float | None
    lo: float | None
    hi: float | None
    units: int
    pairs: int


def draw(vlm: VLM, channels: int, seed: int = 0) -> list[Unit]:
    """Every head (or KV group) of the model, and `channels` of its FFN channels (all, if there are no more)."""
    heads = [Unit(block.name, "heads", i) for block in vlm.blocks for i in range(block.heads.count)]
    every = [Unit(block.name, "ffn", i) for block in vlm.blocks for i in range(block.ffn.count)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    return heads + [every[i] for i in sorted(order[:channels])]


def damage_settings(vlm: VLM, samples: int, channels: int) -> dict[str, Any]:
    """The settings that determine the damages; stored damages are reused only with the same settings."""
    settings = {"split": "dev", "samples": samples, "channels": channels, "seed": SEED}
    data = tasks.data_hash(Questions(tuple(tasks.names()), "dev"))[:16]
    return {"model": vlm.name, "weights": vlm.weights_hash, "data": data, **settings}


def measure(
    vlm: VLM, names: Sequence[str], wanted: Mapping[str, Any], track: Track, stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The damages, and every method's agreement with them.

    wanted: from `damage_settings`. The damages in `stored` are reused if they are whole and their settings are the
    same. A method that fails, or whose ranking breaks the contract, is listed with its error. Raises InputError for a
    model whose loss is not finite.
    """
    units = draw(vlm, wanted["channels"])
    truth: Any = None if stored is None else stored.get("truth")
    if not _usable(truth, wanted, units):
        truth = {**wanted, **_damages(vlm, wanted, units, track)}
    calibration = Calibration(vlm, tasks.samples(Questions(tuple(tasks.names()), "calibration"), CALIBRATION, SEED))
    damage = [row["damage"] for row in truth["units"]]
    methods = {}
    for method in track([registry.method(name) for name in names], "methods"):
        start = time.perf_counter()
        try:
            ranking = _rank(vlm, calibration, method)
            seconds = time.perf_counter() - start
            if faults := ranking_rules.scores(method, vlm, ranking):
                raise ValueError("; ".join(faults))
            agreement = {kind: _agreement(ranking, units, damage, kind) for kind in WIDTHS}
            found = {"options": dict(method.options), "ranking_s": seconds, **agreement}
            json.dumps(found, allow_nan=False)  # fails, for example, for an option that is no plain value
        except FAILURES as error:  # one method's failure must not stop the others
            found = {"error": f"{type(error).__name__}: {error}"}
        methods[method.name] = found
    return {"truth": truth, "two_halves": _two_halves(truth["units"]), "calibration": CALIBRATION, "methods": methods}


def _usable(truth: Any, wanted: Mapping[str, Any], units: Sequence[Unit]) -> bool:
    """Whether stored damages are of these settings and units, and finite."""
    try:
        places = [(row["block"], row["kind"], row["index"]) for row in truth["units"]]
        figures = [truth["dense_loss"], *(x for row in truth["units"] for x in (row["damage"], *row["halves"]))]
        same = all(truth[key] == value for key, value in wanted.items()) and places == list(units)
    except (KeyError, TypeError):
        return False
    return same and all(isinstance(figure, float) and math.isfinite(figure) for figure in figures)


def _damages(vlm: VLM, wanted: Mapping[str, Any], units: Sequence[Unit], track: Track) -> dict[str, Any]:
    """The rise of the answer loss without each unit, in nats per token: on all questions, and on each half of them."""
    samples = tasks.samples(Questions(tuple(tasks.names()), wanted["split"]), wanted["samples"], wanted["seed"])
    middle = -(-len(samples) // 2)
    halves = [Calibration(vlm, part) for part in (samples[:middle], samples[middle:]) if part]
    tokens = [sum(int((batch["labels"] != -100).sum()) for batch in half.batches()) for half in halves]
    dense = [half.answer_loss() for half in halves]
    if not all(map(math.isfinite, dense)):
        raise InputError(f"model {vlm.name}: its answer loss is {_mean(dense, tokens)}, so no unit can do damage to it")
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


def _rank(vlm: VLM, calibration: Calibration, method: registry.Method) -> Ranking:
    """A method's ranking with its default options; a method that ranks per budget gets half of all FLOPs."""
    return method.rank(vlm, calibration, seed=SEED, budget=Budget("all", 0.5, method.units, calibration.extents))


def _two_halves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Agreement of the damages on one half of the questions with those on the other; near 0, they are noise."""
    agreement = {}
    for kind in WIDTHS:
        rows_of_kind = [row for row in rows if row["kind"] == kind and len(row["halves"]) == 2]
        sides = [[row["halves"][side] for row in rows_of_kind] for side in (0, 1)]
        agreement[kind] = _both(sides[0], sides[1], [row["block"] for row in rows_of_kind])
    return agreement


def _both(x: Sequence[float], y: Sequence[float], blocks: Sequence[str]) -> dict[str, Any]:
    return {"within": asdict(kendall(x, y, blocks)), "across": asdict(kendall(x, y))}


def _agreement(ranking: Ranking, units: Sequence[Unit], damage: Sequence[float], kind: Kind) -> dict[str, Any]:
    """Tau over the units of a kind within blocks and, for damages, across blocks too; or the reason for none."""
    scored = values(ranking, units, kind)
    if isinstance(scored, str):
        return {"reason": scored}
    scores, over = scored
    pairs = [(unit, loss) for unit, loss in zip(units, damage, strict=True) if unit.kind == kind]
    taus = _both(scores, [loss for _, loss in pairs], [unit.block for unit, _ in pairs])
    if over == "within":
        taus["across"] = None
    return {**taus, "scores": scores}


def values(ranking: Ranking, units: Sequence[Unit], kind: Kind) -> tuple[list[float], Over] | str:
    """The scores of the units of a kind and the pairs that they compare; or the reason why they cannot be compared.

    An order compares units only within its block; damages compare units across all blocks.
    """
    parts = [ranking.scores.get((unit.block, unit.kind)) for unit in units if unit.kind == kind]
    if not parts or any(part is None for part in parts):
        return "not scored"
    if any(isinstance(part, Options) for part in parts):
        return "options of its Linears, no score a unit"
    over: Over = "within" if any(isinstance(part, Ordinal) for part in parts) else "across"
    scores = []
    for unit in units:
        if unit.kind == kind:
            part: Any = ranking.scores[unit.block, unit.kind]
            scores.append(float((part.damage if isinstance(part, Additive) else part.order)[unit.index]))
    return scores, over


def kendall(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Any] | None = None, *, resamples: int = RESAMPLES
) -> Tau:
    """Kendall's tau-b of two scores of units over all pairs, or over the pairs within groups, pooled.

    The interval is a percentile bootstrap over units, drawn within their groups; a pair counts as often as both its
    units are drawn, and no unit pairs with itself. Source: Kendall, Biometrika 33 (1945).
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
    taus = _tau(weights, tables)
    taus = taus[~np.isnan(taus)]
    lo, hi = np.quantile(taus, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Tau(float(tau), float(lo), float(hi), len(first), pairs)


def _tau(weights: np.ndarray, tables: Sequence[np.ndarray]) -> np.ndarray:
    """For weighted units, (draws, units): (concordant - discordant) / sqrt(untied in x * untied in y)."""
    agree, untied_x, untied_y = (((weights @ table) * weights).sum(axis=1) for table in tables)
    with np.errstate(invalid="ignore"):
        return agree / np.sqrt(untied_x * untied_y)
