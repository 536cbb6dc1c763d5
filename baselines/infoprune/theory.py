"""The paper's three theorems, measured: all points behind `infoprune theory`.

    points = measure(vlm, samples)
    points["theorem1"][0]  # {"block": "vision.0", "heads": 8, "kept": 3, "mask": "01001001", "noise": 0.01, ...}

Theorem 1 says that I(X; Z_S) - I(X; Z) follows the difference of effective rank; theorem 2, that a small KS distance
keeps I(Y; Z_S); theorem 3, that the energy an SVD drops is the error of the FFN's output. Z_S is the layer's output
(A * m) W_o under a mask m of its heads, with dense layers before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from baselines.infoprune.compose import Composition, compose
from baselines.infoprune.ffn import Ffn, factor
from baselines.infoprune.heads import Loss
from baselines.infoprune.moments import regularised_moments
from baselines.infoprune.probe import Reading
from baselines.infoprune.spectrum import effective_rank, masked_spectrum
from baselines.linalg import decompose
from harness.progress import Track, untracked
from harness.statistics import Calibration, Moment
from harness.types import VLM, Block, Dense, InputError, LowRank, Option, Replacement, Sample

Points = list[dict[str, Any]]

MASKS = 32  # head masks per layer
DECODED = 96  # questions that the model itself answers under each mask
NOISES = (0.1, 0.01, 0.001)
RANKS = 12  # ranks per Linear, and points per FFN


def measure(vlm: VLM, samples: Sequence[Sample], track: Track = untracked) -> dict[str, Points]:
    """All points of the three theorems, by theorem, with numbers rounded to 6 digits.

    Raises InputError if fewer than two answers occur often enough in the samples to train a probe.
    """
    reading = Reading.of(vlm, samples)
    calibration = Calibration(vlm, samples)
    moments, _ = regularised_moments(calibration, [block.heads.consumer for block in vlm.blocks])
    masks = {block.name: head_masks(block.heads.count, MASKS, seed=place) for place, block in enumerate(vlm.blocks)}
    points = {
        "theorem1": theorem1(vlm, moments, masks),
        "theorem2": theorem2(vlm, samples, reading, moments, masks, track),
        "theorem3": theorem3(vlm, calibration, track),
    }
    return {name: [{key: _rounded(value) for key, value in point.items()} for point in points[name]] for name in points}


def head_masks(heads: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """Up to `number` distinct masks, one 0 or 1 per head, sorted; none is full or empty.

    The number of kept heads is drawn first, and every number is equally likely.
    """
    draw = random.Random(seed)
    masks: set[tuple[int, ...]] = set()
    while len(masks) < min(number, 2**heads - 2):
        kept = draw.sample(range(heads), draw.randint(1, heads - 1))
        masks.add(tuple(int(head in kept) for head in range(heads)))
    return sorted(masks)


# --- theorem 1 --------------------------------------------------------------------------------------------


def information(singular: Tensor, noise: Tensor | float) -> Tensor:
    """I(X; Z + noise) in nats, 1/2 log det(I + C / noise), of a Gaussian Z that X determines, (..., n) to (...).

    singular: square roots of the eigenvalues of Z's covariance C. noise: its variance in every direction.
    """
    return (singular.square() / noise).log1p().sum(-1) / 2


def theorem1(vlm: VLM, moments: Mapping[str, Moment], masks: Mapping[str, Sequence[tuple[int, ...]]]) -> Points:
    """One point per mask and noise: I(X; Z + noise) and both effective ranks, each minus its value for all heads.

    Without noise, the information of a deterministic layer has no bound; if Z is not Gaussian, it is less than the log
    det. noise: its variance as a share of the dense output's mean variance per direction.
    """
    points: Points = []
    for block, mask, full, pruned in _spectra(vlm, moments, masks):
        ranks = {
            f"erank_{distribution}": effective_rank(pruned, distribution) - effective_rank(full, distribution)
            for distribution in ("amplitude", "energy")
        }
        mean = full.square().mean()
        for noise in NOISES:
            variance = noise * mean if mean > 0 else torch.ones_like(mean)
            change = information(pruned, variance) - information(full, variance)
            for place, kept in enumerate(mask):
                values = {name: float(value[place]) for name, value in ranks.items()}
                points.append(_masked(block, kept) | {"noise": noise, "information": float(change[place])} | values)
    return points


def _spectra(
    vlm: VLM, moments: Mapping[str, Moment], masks: Mapping[str, Sequence[tuple[int, ...]]]
) -> Iterable[tuple[Block, Sequence[tuple[int, ...]], Tensor, Tensor]]:
    """For each block with masks: the block, its masks, the spectrum of its full output, and those under the masks."""
    for block in vlm.blocks:
        if masks[block.name]:
            covariance = moments[block.heads.consumer].covariance
            weight = vlm.model.get_parameter(f"{block.heads.consumer}.weight")
            all_masks = torch.tensor([(1,) * block.heads.count, *masks[block.name]], device=covariance.device)
            full, *pruned = masked_spectrum(covariance, weight, all_masks)
            yield block, masks[block.name], full, torch.stack(pruned)


def _masked(block: Block, mask: tuple[int, ...]) -> dict[str, Any]:
    return {"block": block.name, "heads": len(mask), "kept": sum(mask), "mask": "".join(map(str, mask))}


# --- theorem 2 --------------------------------------------------------------------------------------------


def theorem2(
    vlm: VLM,
    samples: Sequence[Sample],
    reading: Reading,
    moments: Mapping[str, Moment],
    masks: Mapping[str, Sequence[tuple[int, ...]]],
    track: Track = untracked,
) -> Points:
    """One point per mask: the KS distance, and the loss of I(Y; Z) in nats for two readers of the answer Y.

    probe: the rise of the held-out cross-entropy of a linear probe on Z_S; `there` is what the probe reads from the
    full Z. model: the rise of the model's own cross-entropy per token on the first 96 samples; its later layers are the
    reader.
    """
    loss = Loss()
    decoded = Calibration(vlm, samples[:DECODED])
    dense = decoded.answer_loss()
    work: list[tuple[Block, tuple[int, ...], float]] = []
    for block, mask, full, pruned in _spectra(vlm, moments, masks):
        distances = loss.distance(full, pruned).tolist()
        work += [(block, kept, distance) for kept, distance in zip(mask, distances, strict=True)]
    readable: dict[str, float] = {}
    points: Points = []
    for block, kept, distance in track(work, "theorem 2: head masks"):
        weight = vlm.model.get_parameter(f"{block.heads.consumer}.weight").double()
        heads = reading.inputs[block.name]
        if block.name not in readable:
            readable[block.name] = reading.information(heads @ weight.T)
        gates = torch.tensor(kept, dtype=torch.float64, device=heads.device)
        remaining = reading.information(heads * gates.repeat_interleave(block.heads.width) @ weight.T)
        rise = decoded.answer_loss({(block.name, "heads"): gates}) - dense
        figures = {
            "ks": distance,
            "there": readable[block.name],
            "probe": readable[block.name] - remaining,
            "model": rise,
        }
        points.append(_masked(block, kept) | figures)
    return points


# --- theorem 3 --------------------------------------------------------------------------------------------


def theorem3(vlm: VLM, calibration: Calibration, track: Track = untracked) -> Points:
    """One point per rank: the predicted and the measured loss, as shares of the output's energy.

    through: "linear" for W1 alone, predicted by its dropped energy, plain or whitened; otherwise the arm of Algorithm 2
    for the whole FFN. For arms of the product W2 W1, the prediction is the product's dropped energy.
    Whiteners come from the first half of the rows (`seen`); the second half is from other samples (`unseen`).
    Raises InputError if there are fewer than two rows.
    """
    points: Points = []
    for block in track(vlm.blocks, "theorem 3: FFNs"):
        ffn = Ffn.found(vlm.model, block.ffn)
        rows = calibration.rows([ffn.producers[0].path])[ffn.producers[0].path].double()
        if len(rows) < 2:
            raise InputError(f"theory: {block.name}: {len(rows)} calibration rows; at least 2 are needed")
        seen, unseen = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        inner = hidden(ffn, seen)
        seconds = {linear.path: seen.T @ seen / len(seen) for linear in ffn.producers}
        seconds[ffn.consumer.path] = inner.T @ inner / len(inner)
        for whiten in (False, True):
            second = seconds if whiten else None
            measured = _linear(ffn, seen, unseen, second) + _arms(ffn, seen, unseen, second)
            points += [{"block": block.name, "whiten": int(whiten)} | point for point in measured]
    return points


def _linear(ffn: Ffn, seen: Tensor, unseen: Tensor, second: Mapping[str, Tensor] | None) -> Points:
    first = ffn.producers[0]
    weight = first.weight.double()
    part = decompose(weight, second[first.path] if second else None)
    points: Points = []
    for rank_ in _spread(range(1, len(part.energy))):
        down, up = part.factors(weight, rank_)
        errors = [share(rows @ (weight - up @ down).T, rows @ weight.T) for rows in (seen, unseen)]
        points.append(_predicted("linear", rank_, float(part.dropped[rank_]), errors))
    return points


def _arms(ffn: Ffn, seen: Tensor, unseen: Tensor, second: Mapping[str, Tensor] | None) -> Points:
    """Points of the arms, from the options that the solver gets."""
    targets = [output(ffn, rows, {}) for rows in (seen, unseen)]

    def measured(arm: str, option: Option, predicted: float) -> dict[str, Any]:
        assert option.make is not None
        replacements = option.make()
        pairs = zip((seen, unseen), targets, strict=True)
        errors = [share(output(ffn, rows, replacements) - target, target) for rows, target in pairs]
        return _predicted(arm, option.label.split(" ", 1)[1], predicted, errors)

    points = [
        measured("factor", option, option.loss)
        for option in _spread(factor(ffn, second.__getitem__ if second else None)[0].points[1:])
    ]
    if ffn.units.gated:
        return points
    (first,) = ffn.producers
    dropped = decompose(
        ffn.consumer.weight.double() @ first.weight.double(), second[first.path] if second else None
    ).dropped
    for arm in get_args(Composition):
        options = compose(ffn, arm, seen, second[first.path] if second else None)[0].points[1:]
        for option in _spread(options):
            points.append(measured(arm, option, float(dropped[int(option.label.split()[1])])))
    return points


def _predicted(through: str, rank_: int | str, predicted: float, errors: Sequence[float]) -> dict[str, Any]:
    return {"through": through, "rank": str(rank_), "predicted": predicted, "seen": errors[0], "unseen": errors[1]}


def _spread(items: Sequence[Any]) -> list[Any]:
    """About RANKS of the items, evenly spaced, including the first and the last."""
    places = torch.linspace(0, len(items) - 1, min(RANKS, len(items))).round().long().tolist()
    return [items[place] for place in dict.fromkeys(places)]


def share(error: Tensor, target: Tensor) -> float:
    """Squared error as a share of the target's energy; 0 for a zero target."""
    energy = float(target.square().sum())
    return float(error.square().sum()) / energy if energy > 0 else 0.0


def hidden(ffn: Ffn, rows: Tensor, replacements: Mapping[str, Replacement] | None = None) -> Tensor:
    """The input of an FFN's consumer for input rows (n, d), with replacements by module path: (n, h)."""
    replacements = replacements or {}
    gate, *up = (_apply(linear.weight, linear.bias, replacements.get(linear.path), rows) for linear in ffn.producers)
    active = gate if ffn.units.activation in replacements else ffn.activation(gate)
    return active * up[0] if up else active


def output(ffn: Ffn, rows: Tensor, replacements: Mapping[str, Replacement]) -> Tensor:
    """The output of an FFN for input rows (n, d) without the consumer's bias, with replacements by module path."""
    consumer = ffn.consumer
    out = _apply(consumer.weight, consumer.bias, replacements.get(consumer.path), hidden(ffn, rows, replacements))
    return out if consumer.bias is None else out - consumer.bias.to(out)


def _apply(weight: Tensor, bias: Tensor | None, new: Replacement, rows: Tensor) -> Tensor:
    if isinstance(new, LowRank):
        weight, bias = new.up.double() @ new.down.double(), new.bias
    elif isinstance(new, Dense):
        weight, bias = new.weight, new.bias
    outputs = rows @ weight.to(rows).T
    return outputs if bias is None else outputs + bias.to(outputs)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
