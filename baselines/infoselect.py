"""InfoSelect, inspired by InfoPrune: channels by OSSCAR's least squares, heads by J, layers by the answer loss.

    rank(vlm, calibration, seed=0, weigh="gradient")

Not the paper's method, but what we found to work better on the way. Channels are chosen by the objective of OSSCAR
(Meng et al. 2024, arXiv 2403.12983): the error of W2's output with only these channels and W2 refitted to them. OSSCAR
searches it by exchanges; here it is solved forward, by orthogonal matching pursuit. Heads: greedy removal under J, as
in `infoprune_free` (Xu et al. 2025, arXiv 2511.19518). The method gives scores only and refits nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from baselines.infoprune.heads import Layer, Loss, rising, score
from baselines.infoprune.moments import regularised_moments
from baselines.infoprune.options import Distribution
from baselines.infoprune.untrained import rounded
from harness.statistics import Calibration, Moment
from harness.types import VLM, Additive, Kind, Ranking, Score

Weigh = Annotated[
    Literal["ablation", "gradient", "one"],
    "weight of a layer: the rise of the answer loss, in nats, without it; its squared gate gradients; or 1",
]
WEIGHT_SAMPLES = 64
BLOCK = 64  # channels picked between two updates of the full covariance


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    weigh: Weigh = "ablation",
    distribution: Distribution = Loss.distribution,
) -> Ranking:
    """Damage: the layer's weight times the change of J (heads), or times the rise of the output's error (channels)."""
    loss = Loss(distribution=distribution)
    paths = [units.consumer for block in vlm.blocks for units in (block.heads, block.ffn)]
    moments, scarce = regularised_moments(calibration, paths)
    weights = layer_weights(vlm, calibration, weigh)
    scores: dict[tuple[str, Kind], Score] = {}
    log: dict[str, Any] = {}
    # In forward order, in which moments are computed: those of a large model do not fit in memory together.
    for block in vlm.blocks:
        head_damage, head_log = score(Layer.of(vlm, block, moments), loss)
        weight = vlm.model.get_parameter(f"{block.ffn.consumer}.weight").detach().double()
        damage: dict[Kind, list[float]] = {
            "heads": head_damage,
            "ffn": channel_damage(moments[block.ffn.consumer], weight),
        }
        for kind, values in damage.items():
            scores[block.name, kind] = Additive(tuple(weights[block.name, kind] * value for value in values))
        log[block.name] = {"heads": head_log, "weight": {kind: weights[block.name, kind] for kind in damage}}
    return Ranking(scores, rounded(({"regularised": scarce} if scarce else {}) | log))


def channel_damage(moment: Moment, weight: Tensor) -> list[float]:
    """The damage of each channel (h,) that a Linear with this weight (d, h) reads, from the moment of its input.

    Channels leave in the reverse order of the pursuit. The damage is the rise of the squared error of the refitted
    output when the channel leaves, as a share of the output's second moment; it rises along that order (see `rising`).
    """
    order, gains = pursuit(moment.covariance, weight)
    energy = (weight @ moment.second * weight).sum()
    shares = gains / torch.where(energy > 0, energy, 1)
    damage = dict(zip(order.flip(0).tolist(), rising(shares.flip(0).tolist()), strict=True))
    return [damage[channel] for channel in range(len(order))]


def pursuit(covariance: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """All channels (h,) in the order of picking, and by how much each pick reduces the output's squared error (h,).

    The output is weight (d, h) times the channels, whose covariance is (h, h). This is a Cholesky factorisation of the
    covariance whose pivot is the channel that reduces the output's error most. The full covariance is updated once per
    BLOCK picks; in between, only the rows and columns in use are corrected for the picks since then.
    """
    rest = covariance.clone()
    effect = weight @ rest
    largest = float(rest.diagonal().max())
    floor = largest * len(rest) * torch.finfo(rest.dtype).eps
    unpicked = torch.ones(len(rest), dtype=torch.bool, device=rest.device)
    order: list[Tensor] = []  # stays on the device: reading each pick would make the CPU wait once per channel
    gains: list[Tensor] = []
    for start in range(0, len(rest), BLOCK):
        size = min(BLOCK, len(rest) - start)
        rows, scaled = (rest.new_zeros(size, len(rest)) for _ in range(2))  # r and v r of the pending updates v r^T r
        columns = effect.new_zeros(len(effect), size)
        variance, norms = rest.diagonal().clone(), effect.square().sum(0)
        for n in range(size):
            varies = variance > floor
            gain = torch.where(varies, norms / variance.clamp(min=floor if floor > 0 else 1), 0)
            pick = torch.where(unpicked, gain, -1).argmax(0, keepdim=True)
            order.append(pick)
            gains.append(gain[pick])
            unpicked.index_fill_(0, pick, False)
            before = rows[:n, pick].squeeze(1)
            row = rest[pick].squeeze(0) - before @ scaled[:n]
            column = effect[:, pick].squeeze(1) - columns[:, :n] @ before
            scaled[n] = row * varies[pick]
            rows[n] = scaled[n] / variance[pick].clamp(min=floor if floor > 0 else 1)
            columns[:, n] = column
            projection = column @ effect - (column @ columns[:, :n]) @ rows[:n]
            norms = (norms - rows[n] * (2 * projection - rows[n] * column.square().sum())).clamp(min=0)
            variance = variance - rows[n] * scaled[n]
        effect -= columns @ rows
        rest -= rows.T @ scaled
    return torch.cat(order), torch.cat(gains)


def layer_weights(vlm: VLM, calibration: Calibration, weigh: Weigh) -> dict[tuple[str, Kind], float]:
    """The weight of each (block, kind) in the solver's trade between layers.

    ablation: the rise of the answer loss, in nats, on 64 samples when all units of one kind of a block are removed; it
    measures the I(Y; Z) that the layer carries. gradient: the same to first order, the sum of the squared gate
    derivatives, from one pass.
    """
    keys: list[tuple[str, Kind]] = [(block.name, kind) for block, kind in vlm.select("all")]
    if weigh == "one":
        return dict.fromkeys(keys, 1.0)
    if weigh == "gradient":
        gradients = calibration.gate_gradients()
        weights = {key: float(gradients[key].square().sum(1).mean()) for key in keys}
    else:
        dense, weights = calibration.answer_loss(samples=WEIGHT_SAMPLES), {}
        for name, kind in keys:
            calibration.progress(f"infoselect: weight of {name} {kind}")
            closed = torch.zeros(vlm.block(name).units(kind).count, device=next(vlm.model.parameters()).device)
            weights[name, kind] = calibration.answer_loss({(name, kind): closed}, WEIGHT_SAMPLES) - dense
    # A layer whose removal does not hurt must still cost something; otherwise its units would be cut without any order.
    floor = max(1e-3 * max(weights.values()), 1e-12)
    return {key: max(value, floor) for key, value in weights.items()}
