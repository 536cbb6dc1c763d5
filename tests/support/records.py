"""Records as a sweep would write them, with figures that fall as the budget does; not on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.records.record import Code, Cost, Failure, MethodFacts, Record
from harness.records.schema import DESCRIBED
from harness.report import details
from harness.report.board import Board
from harness.report.examples import Examples
from harness.types import Trial, Tuning, regime

TASKS = ("mini_gqa", "mini_textvqa", "mini_vqav2")
LOSSES = {"random": 20.0, "magnitude": 14.0, "taylor": 9.0, "flap": 7.5, "infoprune": 6.0}  # of a method, in points


def board_record(
    method: str = "none", scope: Any = "all", budget: float = 1.0, seed: int = 0, **changes: Any
) -> Record:
    """A record as a sweep would write it, with figures that fall as the budget does.

    `changes` replace keys of the trial's content or of the contestant, or the metrics.
    """
    content: dict[str, Any] = {
        "board": "made", "model": "reference", "method": method, "options": {}, "tuning": "none", "units": "both",
        "scope": scope, "budget": budget, "seed": seed, "tasks": list(TASKS), "split": "validation", "limit": 600,
        "metrics": ["flops", "latency", "accuracy"],
        "calibration": {"samples": 128, "tasks": list(TASKS), "split": "calibration"},
        "latency": {"batches": [1, 8], "repeats": 20}, "reference_input": {"image": [96, 96], "text": "?"},
        "dtype": "float32",
    }  # fmt: skip
    about: dict[str, Any] = {
        "title": "InfoPrune (reconstructed)" if method == "infoprune" else method,
        "variant": "",
        "role": {"infoprune": "studied", "random": "floor"}.get(method, "reference"),
        "regime": regime("none", Tuning(**changes.get("recovery", {}))),
    }
    metrics = changes.pop("metrics", None)
    about |= {key: changes.pop(key) for key in list(changes) if key in DESCRIBED}
    content |= changes
    trial = Trial.of(content)
    id = trial.id
    noise = random.Random(id)
    if metrics is None:
        depth = (1 - budget) ** 2 * {"vision": 1.6, "language": 1.2}.get(scope, 2.1)
        loss = LOSSES.get(method, 0) * depth + (noise.uniform(-3, 3) * depth if method == "random" else 0)
        mean = max(0.92 - loss / 100 * 1.3, 0.41)
        kept = budget * (1 + noise.uniform(-0.004, 0.004)) if method != "none" else 1.0
        speedup = 1 + (1 / budget - 1) * (0.35 if method == "infoprune" else 0.45) + noise.uniform(-0.02, 0.02)
        tasks = {
            task: {
                "accuracy": mean + shift,
                "lo": mean + shift - 0.03,
                "hi": mean + shift + 0.03,
                "n": 600,
                "images": 300,
            }
            for task, shift in zip(TASKS, (-0.02, 0.0, 0.02), strict=True)
        }
        metrics = {
            "flops": {
                "kept": kept,
                "reduction": 1 / kept,
                "total": {"kept": 0.2 + 0.8 * kept},
                "params": {"kept": kept},
            },
            "latency": {"speedup": speedup, "speedup_lo": speedup - 0.03, "speedup_hi": speedup + 0.03},
            "accuracy": {"mean": mean, "lo": mean - 0.018, "hi": mean + 0.018, "tasks": tasks},
        }
        if method == "none":
            metrics["flops"] |= {"kept": 1.0, "reduction": 1.0}
            metrics["latency"] = {"speedup": 1.0, "speedup_lo": 0.99, "speedup_hi": 1.01}
            metrics["floors"] = {"blank": {"mean": 0.42}}
    return Record(
        trial=trial,
        contestant=MethodFacts(**about),
        metrics=metrics,
        cost=Cost(ranking_s=1.5),
        env={"cpu": "Example CPU"},
        code=Code("0.1.0", "abc", False),
    )


def failed_record(*args: Any, **kwargs: Any) -> Record:
    # The metrics are left-overs that must not be counted.
    return replace(board_record(*args, **kwargs), error=Failure("OutOfMemory", "no room\nfor | this", "metrics"))


def accuracy_of(mean: float) -> dict[str, Any]:
    """Metrics of a trial that measured little else."""
    return {"flops": {"kept": 0.5}, "accuracy": {"mean": mean}}


def packed(records: Sequence[Record], examples: Examples | None = None) -> dict[str, Any]:
    """The details of trials as the page's script unpacks them."""
    parts = details.Parts()
    for record in records:
        parts.keep(record.to_json())
    return json.loads(details.trials(Board.of("made", records), records, parts, examples or Examples()))
