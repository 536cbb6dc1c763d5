"""The method's own bars in `infoprune bench`: speed and error of SVD routes, and the cost of a compression.

    python -m baselines.infoprune.bench --size 1792x9472 --size 3584x18944

The matrices are Gaussian, float32, with rows that shrink as a power of their index, so their spectrum decays like that
of trained weights. One run times all routes in turn, round by round. Methods use only the route `gram`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from baselines.infoprune.svd_routes import randomized_svd, truncated_svd
from baselines.linalg import decompose
from harness.bench import compression
from harness.bench.bar import Bar
from harness.machine.timing import wait
from harness.progress import Progress, silent

SIZES = ((1792, 9472), (3584, 18944))
GOAL, ERROR = 8.0, 1e-3  # times as fast as torch.linalg.svd; relative error of the energy
DECAY = 0.5  # row i is scaled by i^-DECAY: trained weights decay more slowly, at about 0.25, whitened ones faster
ITERATIONS = 8  # with fewer, the energy error at this slow decay is above ERROR


def routes(quick: bool = False, device: str = "cpu", progress: Progress = silent) -> Iterator[Bar]:
    """The bars `svd` of `infoprune bench`: the deterministic SVD routes (`quick`: only the smaller size)."""
    progress("singular values")
    measured = svd_routes(SIZES[:1] if quick else SIZES, device=device)
    yield from (bar for bar in measured if "randomised" not in bar.name)


def compressed(quick: bool = False, device: str = "cpu", progress: Progress = silent) -> Iterator[Bar]:
    """The bars `compression`: the cost of the method's ranks and surgery; see `harness.bench.compression`."""
    yield from compression.bars("infoprune_free", {}, device=device, progress=progress)


def svd_routes(
    sizes: Sequence[tuple[int, int]] = SIZES,
    rank: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    device: str = "cpu",
) -> list[Bar]:
    """One bar per size and route: 8 times the speed of torch.linalg.svd, and an energy error of at most 1e-3.

    Routes: `gram`, all energies and left vectors (`decompose`, float64), which methods use; `truncated`, the first
    `rank` singular values and both vectors from Gram and eigh; `randomised`, the same from a random sketch. No method
    uses the last two. rank: default an eighth of the full rank. ratio: per round, the time of torch.linalg.svd over the
    route's. detail: seconds; held, the share of the energy in the values of the route; error, `energy_error`.
    """
    bars: list[Bar] = []
    finish = wait(torch.device(device))
    for rows, columns in sizes:
        matrix = _decaying_matrix(rows, columns, seed).to(device)
        kept_rank = rank or max(1, min(rows, columns) // 8)
        calls: dict[str, Callable[[], Tensor]] = {
            "torch.linalg.svd": lambda m=matrix: torch.linalg.svd(m, full_matrices=False)[1].double().square(),
            "gram": lambda m=matrix: decompose(m).energy,
            "truncated": lambda m=matrix, r=kept_rank: truncated_svd(m, r).singular.double().square(),
            "randomised": lambda m=matrix, r=kept_rank: (
                randomized_svd(m, r, iterations=ITERATIONS).singular.double().square()
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        energies: dict[str, Tensor] = {}
        _warm(device)
        for _ in range(repeats):
            for name, route in calls.items():
                finish()
                start = time.perf_counter()
                energies[name] = route()
                finish()
                seconds[name].append(time.perf_counter() - start)
        exact = energies["torch.linalg.svd"]
        for name in list(calls)[1:]:
            ratios = [plain / other for plain, other in zip(seconds["torch.linalg.svd"], seconds[name], strict=True)]
            error = energy_error(exact, energies[name])
            known = len(energies[name])
            bars.append(
                Bar.of(
                    f"svd {name} {rows}x{columns} rank {known}",
                    GOAL,
                    ratios,
                    sound=error <= ERROR,
                    detail={
                        "seconds": {key: median(seconds[key]) for key in (name, "torch.linalg.svd")},
                        "held": float(exact[:known].sum() / exact.sum()),
                        "error": error,
                    },
                )
            )
    return bars


def energy_error(exact: Tensor, approximate: Tensor) -> float:
    """The largest gap, over r, between exact and approximate energy of the first r values, over the exact total."""
    gap = exact[: len(approximate)].cumsum(0) - approximate.to(exact).cumsum(0)
    return float(gap.abs().max() / exact.sum())


def _decaying_matrix(rows: int, columns: int, seed: int) -> Tensor:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return matrix * (torch.arange(1, rows + 1) ** -DECAY).unsqueeze(1)


def _warm(device: str) -> None:
    """Load the libraries behind the routes before any route is timed."""
    small = _decaying_matrix(32, 48, 0).to(device)
    torch.linalg.svd(small, full_matrices=False)
    decompose(small)
    randomized_svd(small, 4)


def _size(text: str) -> tuple[int, int]:
    rows, columns = (int(part) for part in text.split("x"))
    return rows, columns


def main() -> None:
    """Print the bars as one JSON value on stdout."""
    parser = argparse.ArgumentParser(description="SVD routes against torch.linalg.svd.")
    parser.add_argument("--size", type=_size, action="append", help="ROWSxCOLUMNS, repeatable")
    parser.add_argument("--rank", type=int, help="of the truncated and randomised routes (default: an eighth)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    bars = svd_routes(arguments.size or SIZES, arguments.rank, arguments.repeats, device=arguments.device)
    print(json.dumps({"bars": [bar.to_json() for bar in bars]}, indent=1))


if __name__ == "__main__":
    main()
