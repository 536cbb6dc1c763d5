"""Both kinds scored without training: heads by the information loss J, FFNs by Algorithm 2.

    ranking = untrained(vlm, calibration, Loss(), output="layer", search="greedy", arm="factor", whiten=True)

The studied methods share it: `infoprune_free` is this ranking, `infoprune` then trains gates for the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baselines.infoprune.compose import compose
from baselines.infoprune.ffn import Arm, Ffn, factor
from baselines.infoprune.heads import Layer, Loss, Output, Search, score
from baselines.infoprune.moments import regularised_moments
from harness.statistics import Calibration, Moment, linears
from harness.types import VLM, Additive, Block, Kind, Options, Ranking, Score


def untrained(
    vlm: VLM, calibration: Calibration, loss: Loss, *, output: Output, search: Search, arm: Arm, whiten: bool
) -> Ranking:
    """Damage of a head: the change of J; loss of an FFN's point: its lost energy. Both are shares of a layer's output.

    An FFN with a gate has no product W2 W1; there, the compose arms become `factor`.
    """
    inner = [path for block in vlm.blocks for path in linears(block.ffn)] if whiten else []
    moments, scarce = regularised_moments(calibration, [block.heads.consumer for block in vlm.blocks] + inner)
    scores: dict[tuple[str, Kind], Score] = {}
    log: dict[str, Any] = {}
    # In forward order, in which moments are computed: those of a large model do not fit in memory together.
    for block in vlm.blocks:
        damage, head_log = score(Layer.of(vlm, block, moments, output), loss, search)
        points, ffn_log = compress(vlm, block, calibration, moments, arm, whiten)
        scores[block.name, "heads"], scores[block.name, "ffn"] = Additive(tuple(damage)), points
        log[block.name] = {"heads": head_log, "ffn": ffn_log}
    return Ranking(scores, rounded(({"regularised": scarce} if scarce else {}) | log))


def compress(
    vlm: VLM, block: Block, calibration: Calibration, moments: Mapping[str, Moment], arm: Arm, whiten: bool
) -> tuple[Options, dict[str, Any]]:
    """The points of an arm for a block's FFN, and a log."""
    ffn = Ffn.found(vlm.model, block.ffn)
    if arm == "factor" or block.ffn.gated:
        return factor(ffn, (lambda path: moments[path].second) if whiten else None)
    (first,) = ffn.producers
    reads = [b.ffn.producers[0].module for b in vlm.blocks if not b.ffn.gated]  # the rows of all blocks, in one pass
    return compose(ffn, arm, calibration.rows(reads)[first.path], moments[first.path].second if whiten else None)


def rounded(value: Any) -> Any:
    """The log with three significant digits, because it is copied into every record."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value
