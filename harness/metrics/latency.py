"""Wall-clock time of pruned against dense, interleaved: vision encode, language prefill, both, one decode step.

    infoprune sweep BOARD, with `metrics: [latency]` and
    `latency: {batches: [1, 8, 32], repeats: 20, images: [[224, 224], [896, 896]], modes: [eager, compile]}`

The figure to read is the ratio dense / pruned with its interval; absolute times belong to the machine in the record.
The clock is read when the device has finished, before and after each call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.types import VLM, Trial

REPEATS = 7  # of `seconds`
ANSWER = 16  # tokens of the answer whose whole time is given: the official short-answer limit
Times = dict[str, np.ndarray]  # stage -> seconds of dense and pruned, (repeats, 2)


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


def figures(times: np.ndarray) -> dict[str, Any]:
    """p10, p50 and p90 of dense and pruned in ms, and their ratio with its interval."""
    middle, low, high = ratio(times)
    both = {"dense_ms": _milliseconds(times[:, 0]), "pruned_ms": _milliseconds(times[:, 1])}
    return {**both, "ratio": middle, "lo": low, "hi": high}


@torch.no_grad()
def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """Per stage and batch size the `figures`; `speedup` is that of the scope's stage at the largest batch.

    `answer` is a whole answer of 16 tokens, composed of prefill and 15 decode steps round by round. `more` has the same
    for every other image size and mode of the trial.
    """
    device = next(dense.model.parameters()).device
    settings = trial.latency
    batches, repeats = [int(b) for b in settings["batches"]], int(settings["repeats"])
    modes = [mode for mode in settings.get("modes", ("eager",)) if mode != "graphs" or device.type == "cuda"]
    sizes = [None, *(tuple(size) for size in settings.get("images", ()))]

    def timed(mode: str, size: tuple[int, int] | None) -> dict[str, Any]:
        found: dict[str, Any] = {"stages": {}, "answer": {}}
        for batch in batches:
            calls = [context.stages(vlm, batch, size) for vlm in (dense, pruned)]
            times = {}
            for name in calls[0]:
                context.progress(f"latency: {name}{'' if mode == 'eager' else ' ' + mode}, batch {batch}")
                first, second = (_compiled(own[name], mode) for own in calls)
                times[name] = interleave(first, second, repeats, wait(device))
                found["stages"].setdefault(name, {})[str(batch)] = figures(times[name])
            found["answer"][str(batch)] = figures(times["all"] + (ANSWER - 1) * times["decode"])
        return found

    whole = timed("eager", None)
    more = [
        {"mode": mode, "image": list(size or trial.reference_input["image"]), **timed(mode, size)}
        for mode in modes
        for size in sizes
        if (mode, size) != ("eager", None)
    ]
    own = whole["stages"][trial.scope][str(max(batches))]
    speedup = {"speedup": own["ratio"], "speedup_lo": own["lo"], "speedup_hi": own["hi"]}
    return {**speedup, **whole, **({"more": more} if more else {})}


def wait(device: torch.device) -> Callable[[], None]:
    """What returns when the device has nothing left to do."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None


def seconds(call: Callable[[], Any], device: torch.device, reduce: Callable[[list[float]], float]) -> float:
    """What `reduce` (say, the median) makes of the seconds of REPEATS calls, after a warm-up of two."""
    finish, times = wait(device), []
    for _ in range(2 + REPEATS):
        finish()
        start = time.perf_counter()
        call()
        finish()
        times.append(time.perf_counter() - start)
    return reduce(times[2:])


def _compiled(call: Callable[[], Any], mode: str) -> Callable[[], Any]:
    """The call as it is, through torch.compile, or through torch.compile with CUDA graphs; compiled at first use."""
    if mode == "eager":
        return call
    torch._dynamo.reset()  # each stage on its own: a full cache would fall back to eager without a word
    return torch.compile(call, dynamic=False, mode="reduce-overhead" if mode == "graphs" else "default")
