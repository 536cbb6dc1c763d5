"""How strongly the answers depend on each row of a Linear's output, and moments of inputs weighted by it.

weighted_means(calibration, ["model.layers.0.mlp.down_proj"])  # {path: (in,)}
for mean, covariance in weighted_moments(calibration, ["model.layers.0.mlp.down_proj"]): ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from harness.statistics import moments
from harness.statistics.calibration import Calibration, answer_logits
from harness.statistics.gradients import watched_outputs
from harness.statistics.passes import UnpaddedRows
from harness.statistics.unit_weights import block_linears

TINY = torch.finfo(torch.float64).tiny  # where no answer depends on any row, all moments are 0


def row_weights(calibration: Calibration, modules: Iterable[str]) -> dict[str, list[Tensor]]:
    """The norm of the gradient by each output row of these Linears: (rows,) per batch, by path, without padding.

    The gradient is that of the answer tokens' logits times one draw of standard normal numbers, so the squared norm is
    an estimate of the squared norm of the logits' Jacobian by that row. Labels are not used. Raises InputError naming a
    Linear whose gradient is not finite.
    """
    vlm, paths = calibration.vlm, list(modules)
    patches = {path for block in vlm.blocks if block.component == "vision" for path in block_linears(block)}
    norms: dict[str, list[Tensor]] = {path: [] for path in paths}
    generator = torch.Generator().manual_seed(0)

    tokens: UnpaddedRows

    def see(path: str, gradient: Tensor) -> None:
        rows = gradient.flatten(0, -2) if path in patches else tokens.of(gradient)
        norms[path].append(rows.float().norm(dim=1))

    watched = watched_outputs(vlm, paths, see, "answer logits have")
    with calibration.frozen(), torch.enable_grad(), watched as check:
        for batch in calibration.batches():
            tokens = UnpaddedRows(batch["attention_mask"])
            logits = answer_logits(vlm.model, batch)[0]
            (logits * torch.randn(logits.shape, generator=generator).to(logits)).sum().backward()
            check()
    return norms


def weighted_means(calibration: Calibration, modules: Iterable[str]) -> dict[str, Tensor]:
    """The mean (in,) of each Linear's input rows, weighted by `row_weights`; float64."""
    return calibration.cached("weighted means", modules, lambda paths: _means(calibration, paths))


def _means(calibration: Calibration, paths: list[str]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def see(path: str, rows: Tensor, weights: Tensor) -> None:
        total = torch.cat([weights @ rows.double(), weights.sum()[None]])
        sums[path] = sums[path] + total if path in sums else total

    _visit(calibration, paths, see)
    return {path: total[:-1] / total[-1].clamp(min=TINY) for path, total in sums.items()}


def weighted_moments(calibration: Calibration, modules: Iterable[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """The mean (in,) and covariance (in, in) of each Linear's input rows, weighted by `row_weights`; float64.

    In the given order. The calibration keeps the moments if those of all Linears of the blocks fit into its room;
    otherwise they are computed anew, in several passes, so keep no references.
    """
    model = calibration.vlm.model
    linears = _linears(calibration)
    lasting = len(moments.ahead(model, linears, calibration.room)) == len(linears)
    left = list(modules)
    while left:
        now = left if lasting else moments.ahead(model, left, calibration.room)
        left = left[len(now) :]
        grams = (
            calibration.cached("weighted moments", now, lambda paths: _grams(calibration, paths))
            if lasting
            else _grams(calibration, now)
        )
        for path in now:
            second = grams[path] / grams[path][-1, -1].clamp(min=TINY)
            mean = second[-1, :-1]
            yield mean, second[:-1, :-1] - torch.outer(mean, mean)


def _grams(calibration: Calibration, paths: list[str]) -> dict[str, Tensor]:
    """Weighted sums of [x, 1] [x, 1]^T over the input rows x of each Linear: (in + 1, in + 1)."""
    sums: dict[str, moments.Sum] = {}

    def see(path: str, rows: Tensor, weights: Tensor) -> None:
        roots = weights.sqrt().to(rows)[:, None]
        if path not in sums:
            sums[path] = moments.Sum.empty(rows.shape[1] + 1, rows.device)
        sums[path].add(torch.cat([rows * roots, roots], 1))

    _visit(calibration, paths, see)
    return {path: sum_.moment().second for path, sum_ in sums.items()}


def _visit(calibration: Calibration, paths: list[str], see: Callable[[str, Tensor, Tensor], None]) -> None:
    """One pass: `see` gets the path, the input rows (n, in) and their weights (n,) of each Linear, batch by batch."""
    linears = _linears(calibration)
    weights = calibration.cached("row weights", linears, lambda missing: row_weights(calibration, missing))
    batch: Counter[str] = Counter()

    def weigh(path: str, rows: Tensor) -> None:
        see(path, rows, weights[path][batch[path]].double())
        batch[path] += 1

    calibration.visit(paths, weigh)


def _linears(calibration: Calibration) -> list[str]:
    return [path for block in calibration.vlm.blocks for path in block_linears(block)]
