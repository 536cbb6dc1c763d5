"""Clocks that wait until the device has finished: for two calls in turn, and for one call.

times = interleave(first, second, repeats=20, wait=wait(device))   # seconds, (20, 2)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

REPEATS = 7  # of `seconds`


def interleave(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int, wait: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Seconds of both calls, (repeats, 2), timed in turn after a warm-up of two rounds.

    The call that goes first alternates between rounds.
    """
    times = np.empty((repeats, 2))
    for turn in range(-2, repeats):
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            wait()
            start = time.perf_counter()
            (first if place == 0 else second)()
            wait()
            if turn >= 0:
                times[turn, place] = time.perf_counter() - start
    return times


def ratio(times: np.ndarray, confidence: float = 0.95, resamples: int = 1000) -> tuple[float, float, float]:
    """Median of the ratios first / second per round, and its percentile-bootstrap interval over rounds."""
    ratios = times[:, 0] / times[:, 1]
    picks = np.random.default_rng(0).integers(0, len(ratios), (resamples, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.median(ratios)), float(low), float(high)


def wait(device: torch.device) -> Callable[[], None]:
    """A function that returns when the device has finished all its work."""
    if device.type != "cuda":
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device, reduce: Callable[[list[float]], float]) -> float:
    """`reduce` (for example the median) of the seconds of REPEATS calls, after two warm-up calls."""
    finish, times = wait(device), []
    for _ in range(2 + REPEATS):
        finish()
        start = time.perf_counter()
        call()
        finish()
        times.append(time.perf_counter() - start)
    return reduce(times[2:])
