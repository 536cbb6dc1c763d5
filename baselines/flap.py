"""FLAP: how much what a unit sends fluctuates (An et al. 2023, arXiv 2312.11983).

rank(vlm, calibration, seed=0, structure="AL-AM")

Column j of the consumer scores Var(X_j) * ||W_:j||^2 (the paper's WIFV), z-scored over the layer's columns; a unit
scores the mean over its columns. The lowest z go first, whatever they cost: in one order over layers and kinds (AL-AM,
the released default), in one per kind (AL-MM), or within each layer and kind (UL-UM).

UL-UM is the default here, chosen on the dev split; the board `reference` has all three. In the embedded language model
AL-AM collapses: cut to 0.9 of the FLOPs, it takes four KV groups of layers 1 and 2, whose z is -0.58 to -0.46, where no
channel of any layer is below -0.42. It keeps 66.8 there, UL-UM 95.6, random 94.1.

Departures: the variance is that of all calibration tokens, while the released code measures each sample around a
running mean and leaves out the first one. In AL-MM the authors set the number of heads to remove by hand; here heads
and channels lose the same share. The paper's bias, the mean output of what was removed, is the recovery `bias`, which
every method may use; it is kept only where answers to held-out calibration questions gain, so its published form, kept
everywhere, is on no board.
"""

from __future__ import annotations

from typing import Annotated, Literal

from harness.statistics import Calibration
from harness.types import VLM, Global, Kind, Ordinal, Ranking, Score

Structure = Annotated[
    Literal["AL-AM", "AL-MM", "UL-UM"],
    "what competes (2312.11983): units of all layers and kinds, as released; units of a kind in all layers; or units "
    "of a layer and kind, of which each loses the same share",
]
Heads = Annotated[
    Literal["squared", "plain"], "the metric of attention columns before the z-score; squared is the released code's"
]


def rank(
    vlm: VLM, calibration: Calibration, *, seed: int, structure: Structure = "UL-UM", heads: Heads = "squared"
) -> Ranking:
    """Order: the mean z-score of a unit's columns."""
    features = calibration.features(block.units(kind).consumer for block, kind in vlm.select("all"))
    scores: dict[tuple[str, Kind], Score] = {}
    for block, kind in vlm.select("all"):
        units = block.units(kind)
        weight = vlm.model.get_parameter(f"{units.consumer}.weight").detach().double()
        metric = features[units.consumer].variance * weight.square().sum(0)
        if kind == "heads" and heads == "squared":
            metric = metric.square()
        z = (metric - metric.mean()) / (float(metric.std()) or 1.0)
        order = tuple(z.unflatten(0, (units.count, -1)).mean(1).tolist())
        if structure == "UL-UM":
            scores[block.name, kind] = Ordinal(order)
        else:
            scores[block.name, kind] = Global(order, "all" if structure == "AL-AM" else "kind")
    return Ranking(scores)
