"""LASER (reconstructed): SVD of Linears weighted by the loss's curvature (Wang et al. 2026, arXiv 2606.00573).

rank(vlm, calibration, seed=0, damping=1.0)

With A the second moment of a Linear's input and G that of the loss gradients by its output, a change D of its weight
raises the answer loss by about tr(G D A D^T) / 2. The SVD of G^1/2 W A^1/2 gives the pair of each rank with the least
rise, and the rise: half the energy of the directions that go, in nats, which the solver trades over all Linears.

Verified, by the paper's abstract: a second-order approximation of the loss, Kronecker-factored Fisher information, an
SVD weighted with it, ranks over all layers from calibration gradients. Reconstruction, because only the abstract is
public to us: the scale of G, its damping, and the rise as the measure of a rank. Departure: the paper's FFNs are partly
low rank and quantized; here they are low rank like attention. G and A: Martens & Grosse 2015, arXiv 1503.05671. The
LASER of Sharma et al. 2023 (arXiv 2312.13558) is another method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from baselines.linalg import Decomposition, decompose, inverse_whitener, whitener
from baselines.low_rank import Factorable, Loss, factorables, low_rank, read_alike
from harness.statistics import Calibration
from harness.types import VLM, InputError, Ranking

Damping = Annotated[float, "added to G in every direction, as a share of its mean; the paper's value is not public"]


@dataclass(frozen=True, kw_only=True)
class Weighted(Decomposition):
    """The SVD of G^1/2 W A^1/2 for a weight W (out, in), in float64; k = min(out, in).

    vectors, up: (k, k); at rank r, W becomes up_r vectors_r^T W if out <= in, otherwise W up_r vectors_r^T.
    """

    up: Tensor

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """`down` (rank, in) and `up` (out, rank), in the weight's dtype: the pair with the least rise of the loss."""
        down, up = (side[:, :rank].to(weight.device) for side in (self.vectors, self.up))
        exact = weight.detach().double()
        pair = (down.T @ exact, up) if weight.shape[0] <= weight.shape[1] else (down.T, exact @ up)
        return pair[0].to(weight.dtype).contiguous(), pair[1].to(weight.dtype).contiguous()


def rank(vlm: VLM, calibration: Calibration, *, seed: int, damping: Damping = 1.0) -> Ranking:
    """Loss of a rank: the second-order estimate of the rise of the answer loss, in nats per answer token.

    Raises InputError if `damping` is not above 0.
    """
    if not damping > 0:
        raise InputError(f"laser: damping: {damping} should be above 0")
    parts = vlm.select("all")
    dense = [factorables(vlm.model, block.units(kind)) for block, kind in parts]
    curvature = curvatures(calibration, [linear for linears in dense for linear in linears], damping)
    reads = [read_alike(block.units(kind)) for block, kind in parts]
    moments = calibration.moments([path for read in reads for path in read.values()])
    scores, log = {}, {}
    for (block, kind), linears, read in zip(parts, dense, reads, strict=True):
        cut = [
            replace(linear, part=weighted(linear.weight, curvature[linear.path], moments[read[linear.path]].second))
            for linear in linears
        ]
        losses = [rise(linear) for linear in cut]
        scores[block.name, kind] = low_rank(block.units(kind), cut, losses)
        for linear, loss in zip(cut, losses, strict=True):
            at_half = loss(linear.share(linear.rank(0.5)))
            log.setdefault(block.name, {})[linear.path.rsplit(".", 1)[-1]] = float(f"{at_half:.3g}")
    return Ranking(scores, {"rise_at_half": log})


def curvatures(calibration: Calibration, linears: Sequence[Factorable], damping: float) -> dict[str, Tensor]:
    """By path, the damped G (out, out) of a Linear if out <= in, otherwise W^T G W (in, in); float64.

    G sums the outer products of all output gradients and divides by the number of answer tokens. So G times the mean A
    estimates the Fisher information of a token's cross-entropy, if the gradients at different places are uncorrelated.
    """
    weights = {linear.path: linear.weight for linear in linears}
    size = {path: min(weight.shape) for path, weight in weights.items()}
    sums = {path: weight.new_zeros(size[path], size[path], dtype=torch.float64) for path, weight in weights.items()}
    traces = {path: weight.new_zeros((), dtype=torch.float64) for path, weight in weights.items()}

    def add(path: str, gradients: Tensor) -> None:
        gradients, weight = gradients.float(), weights[path]
        rows = (gradients if len(weight) == size[path] else gradients @ weight.float()).double()
        sums[path] += rows.T @ rows
        traces[path] += gradients.double().square().sum()

    calibration.visit_output_gradients(weights, add)
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in calibration.batches())
    for path, weight in weights.items():
        mean = (traces[path] / len(weight)).clamp(min=1e-30)  # a Linear that no loss depends on is treated plainly
        exact = weight.double()
        wide = len(weight) == size[path]
        everywhere = torch.eye(len(weight), dtype=exact.dtype, device=exact.device) if wide else exact.T @ exact
        sums[path] = (sums[path] + damping * mean * everywhere) / tokens
    return sums


def weighted(weight: Tensor, curvature: Tensor, second: Tensor) -> Weighted:
    """The weighted SVD of a weight (out, in), from `curvatures` and the second moment (in, in) of its input.

    If out > in, K = W^T G W stands for G: K^1/2 A^1/2 has the singular values and right vectors of G^1/2 W A^1/2.
    """
    root = whitener(curvature)
    part = decompose(root @ weight.double() if weight.shape[0] <= weight.shape[1] else root, second)
    down, up = root @ part.vectors, inverse_whitener(curvature) @ part.vectors
    length = up.norm(dim=0).clamp(min=torch.finfo(up.dtype).tiny)  # else narrow types may overflow
    return Weighted(energy=part.energy.cpu(), vectors=(down * length).cpu(), up=(up / length).cpu())


def rise(linear: Factorable) -> Loss:
    """Half the energy that the pair drops, by the share of the Linear's cost that is kept; 0 at 1."""
    assert linear.part
    halves = (linear.part.dropped * linear.part.energy.sum() / 2).tolist()
    return lambda share: halves[round(share * linear.weight.numel() / linear.rank_macs)] if share < 1 else 0.0
