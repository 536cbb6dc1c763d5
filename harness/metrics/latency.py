"""Wall-clock time of pruned and dense model, interleaved: vision encode, language prefill, both, one decode step.

    infoprune sweep BOARD, with `metrics: [latency]` and
    `latency: {batches: [1, 8, 32], repeats: 20, images: [[224, 224], [896, 896]], modes: [eager, compile]}`

Compare the ratio dense / pruned and its interval; absolute times hold only for the machine in the record. Each call is
timed from an idle device until the device has finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.machine.timing import interleave, ratio, wait
from harness.types import VLM, Column, MetricContext, Trial, at

COLUMNS = (
    Column(
        "latency_speedup",
        "speedup",
        unit="factor",
        better="higher",
        form="{:.2f}",
        interval=("speedup_lo", "speedup_hi"),
        axis="measured speedup of the scope (factor)",
        read=at("speedup"),
    ),
    Column("speedup_lo"),
    Column("speedup_hi"),
)

ANSWER = 16  # tokens of the timed answer: the official short-answer limit
Times = dict[str, np.ndarray]  # stage -> seconds of dense and pruned, (repeats, 2)


def _milliseconds(seconds: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(seconds, q) * 1000) for q in (10, 50, 90)}


def figures(times: np.ndarray) -> dict[str, Any]:
    """p10, p50 and p90 of dense and pruned in ms, and their ratio with its interval."""
    middle, low, high = ratio(times)
    both = {"dense_ms": _milliseconds(times[:, 0]), "pruned_ms": _milliseconds(times[:, 1])}
    return {**both, "ratio": middle, "lo": low, "hi": high}


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """The `figures` per stage and batch size; `speedup` is the ratio of the scope's stage at the largest batch.

    `answer` is the time of an answer of 16 tokens: in each round, prefill plus 15 decode steps. `more` has the same
    figures for every other image size and mode of the trial; with a compiler also `graphs`, the number of pieces made
    of the dense and the pruned stage: 1 is the whole, and each further piece starts where Python must look at data.
    """
    import torch

    device = next(dense.model.parameters()).device
    batches, repeats = trial.latency.batches, trial.latency.repeats
    modes = [mode for mode in trial.latency.modes if mode != "graphs" or device.type == "cuda"]
    sizes = [None, *trial.latency.images]

    def timed(mode: str, size: tuple[int, int] | None) -> dict[str, Any]:
        result: dict[str, Any] = {"stages": {}, "answer": {}}
        for batch in batches:
            calls = [context.stages(vlm, batch, size) for vlm in (dense, pruned)]
            times = {}
            for name in calls[0]:
                context.progress(f"latency: {name}{'' if mode == 'eager' else ' ' + mode}, batch {batch}")
                with torch.no_grad():
                    (first, second), graphs = _compiled([stages[name] for stages in calls], mode)
                    times[name] = interleave(first, second, repeats, wait(device))
                pieces = {"graphs": graphs} if graphs else {}
                result["stages"].setdefault(name, {})[str(batch)] = figures(times[name]) | pieces
            result["answer"][str(batch)] = figures(times["all"] + (ANSWER - 1) * times["decode"])
        return result

    reference = timed("eager", None)
    others = [
        {"mode": mode, "image": list(size or trial.reference_input.image), **timed(mode, size)}
        for mode in modes
        for size in sizes
        if (mode, size) != ("eager", None)
    ]
    scope = reference["stages"][trial.scope][str(max(batches))]
    speedup = {"speedup": scope["ratio"], "speedup_lo": scope["lo"], "speedup_hi": scope["hi"]}
    return {**speedup, **reference, **({"more": others} if others else {})}


def _compiled(calls: list[Callable[[], Any]], mode: str) -> tuple[list[Callable[[], Any]], list[int]]:
    """The calls in this mode: unchanged, with torch.compile, or with CUDA graphs too; and how many graphs each is."""
    if mode == "eager":
        return calls, []
    import torch
    from torch._dynamo.utils import counters

    def compiled(call: Callable[[], Any]) -> Callable[[], Any]:
        return torch.compile(call, dynamic=False, mode="reduce-overhead" if mode == "graphs" else "default")

    graphs = []
    for call in calls:  # each alone, because the second call would use graphs of the first
        torch._dynamo.reset()  # with a full cache, torch would silently fall back to eager
        counters.clear()
        compiled(call)()
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    return [compiled(call) for call in calls], graphs
