"""Wall-clock time of pruned against dense, interleaved: vision encode, language prefill, both, one decode step.

    infoprune sweep BOARD, with `metrics: [latency]` and `latency: {batches: [1, 8], repeats: 20}`

The figure to read is the ratio dense / pruned with its interval; absolute times belong to the machine in the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.types import VLM, Trial

STAGE_OF_SCOPE = {"vision": "vision", "language": "language", "all": "all"}


def interleave(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int, wait: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Seconds of both calls, (repeats, 2), taken in turn (who goes first alternates) after a warm-up of two rounds."""
    times = np.empty((repeats, 2))
    for turn in range(-2, repeats):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            wait()
            start = time.perf_counter()
            (first if which == 0 else second)()
            wait()
            if turn >= 0:
                times[turn, which] = time.perf_counter() - start
    return times


def ratio(times: np.ndarray, confidence: float = 0.95, resamples: int = 1000) -> tuple[float, float, float]:
    """Median of the per-round ratios first / second, with a percentile-bootstrap interval over rounds."""
    each = times[:, 0] / times[:, 1]
    draws = np.random.default_rng(0).integers(0, len(each), (resamples, len(each)))
    medians = np.median(each[draws], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.median(each)), float(low), float(high)


def _milliseconds(seconds: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(seconds, q) * 1000) for q in (10, 50, 90)}


@torch.no_grad()
def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """Per stage and batch size: p10, p50, p90 of dense and pruned in ms, and their ratio; `speedup` is the scope's."""
    device = next(dense.model.parameters()).device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    batches, repeats = [int(b) for b in trial.latency["batches"]], int(trial.latency["repeats"])
    stages: dict[str, dict[str, Any]] = {}
    for batch in batches:
        before, after = context.stages(dense, batch), context.stages(pruned, batch)
        for name in before:
            context.progress(f"latency: {name}, batch {batch}")
            times = interleave(before[name], after[name], repeats, wait)
            middle, low, high = ratio(times)
            stages.setdefault(name, {})[str(batch)] = {
                "dense_ms": _milliseconds(times[:, 0]),
                "pruned_ms": _milliseconds(times[:, 1]),
                "ratio": middle,
                "lo": low,
                "hi": high,
            }
    own = stages[STAGE_OF_SCOPE[trial.scope]][str(max(batches))]
    return {"speedup": own["ratio"], "speedup_lo": own["lo"], "speedup_hi": own["hi"], "stages": stages}
