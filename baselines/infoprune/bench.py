"""The method's own bars in `infoprune bench`: the speed of its singular values, and the cost of a compression."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from baselines.linalg import decompose
from harness.bench import compression
from harness.bench.bar import Bar
from harness.machine.timing import wait
from harness.progress import Progress, silent

SIZES = ((1792, 9472), (3584, 18944))
GOAL, ERROR = 8.0, 1e-3  # times as fast as torch.linalg.svd; relative error of the energy
DECAY = 0.5  # row i is scaled by i^-DECAY: trained weights decay more slowly, at about 0.25, whitened ones faster


def singular_values(quick: bool = False, device: str = "cpu", progress: Progress = silent) -> Iterator[Bar]:
    """The bars `svd`: `decompose`, which methods use, against torch.linalg.svd (`quick`: only the smaller size)."""
    progress("singular values")
    yield from decomposed(SIZES[:1] if quick else SIZES, device=device)


def compressed(quick: bool = False, device: str = "cpu", progress: Progress = silent) -> Iterator[Bar]:
    """The bars `compression`: the cost of the method's ranks and surgery; see `harness.bench.compression`."""
    yield from compression.bars("infoprune_free", {}, device=device, progress=progress)


def decomposed(sizes: Sequence[tuple[int, int]], repeats: int = 3, device: str = "cpu") -> Iterator[Bar]:
    """One bar per size (rows, columns): 8 times the speed of torch.linalg.svd, and an energy error of at most 1e-3.

    The matrices are Gaussian, float32, with rows that shrink as a power of their index, so their spectrum decays like
    that of trained weights. ratio: per round, the time of torch.linalg.svd over that of `decompose`, which gives all
    energies and left vectors in float64. detail: seconds of both; error, see `energy_error`.
    """
    finish = wait(torch.device(device))
    calls = {
        "torch.linalg.svd": lambda matrix: torch.linalg.svd(matrix, full_matrices=False)[1].double().square(),
        "decompose": lambda matrix: decompose(matrix).energy,
    }
    for call in calls.values():  # load the libraries of both before any is timed
        call(_decaying_matrix(32, 48).to(device))
    for rows, columns in sizes:
        matrix = _decaying_matrix(rows, columns).to(device)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        energies: dict[str, Tensor] = {}
        for _ in range(repeats):
            for name, call in calls.items():
                finish()
                start = time.perf_counter()
                energies[name] = call(matrix)
                finish()
                seconds[name].append(time.perf_counter() - start)
        error = energy_error(*energies.values())
        yield Bar.of(
            f"singular values {rows}x{columns}",
            GOAL,
            [plain / ours for plain, ours in zip(*seconds.values(), strict=True)],
            sound=error <= ERROR,
            detail={"seconds": {name: median(taken) for name, taken in seconds.items()}, "error": error},
        )


def energy_error(exact: Tensor, approximate: Tensor) -> float:
    """The largest gap, over r, between exact and approximate energy of the first r values, over the exact total."""
    gap = exact[: len(approximate)].cumsum(0) - approximate.to(exact).cumsum(0)
    return float(gap.abs().max() / exact.sum())


def _decaying_matrix(rows: int, columns: int) -> Tensor:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return matrix * (torch.arange(1, rows + 1) ** -DECAY).unsqueeze(1)
