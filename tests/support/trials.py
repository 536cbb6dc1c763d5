"""Single trials of the tiny model, for what takes a trial without a board."""

from __future__ import annotations

from typing import Any

from harness.types import CalibrationSpec, LatencySpec, Questions, ReferenceInput, Trial

PLAIN: dict[str, Any] = {
    "board": "b",
    "model": "tiny",
    "method": "none",
    "options": {},
    "scope": "all",
    "units": "both",
    "budget": 1.0,
    "seed": 0,
    "questions": Questions(()),
    "metrics": (),
}


def plain_trial(**changes: Any) -> Trial:
    """A trial of the dense tiny model, with these parts changed."""
    return Trial(**{**PLAIN, **changes})


def latency_trial(**latency: Any) -> Trial:
    """A dense trial that measures latency as asked."""
    return plain_trial(
        scope="vision",
        metrics=("latency",),
        latency=LatencySpec(**{"batches": (1, 2), "repeats": 3, **latency}),
        reference_input=ReferenceInput((64, 64), "How many?"),
    )


def dense_trial(*tasks: str, limit: int | None = None, metrics: tuple[str, ...] = ()) -> Trial:
    """A trial of the dense model that asks these tasks' questions."""
    return plain_trial(model="m", questions=Questions(tasks, limit=limit), metrics=metrics)


def random_trial(**changes: Any) -> Trial:
    """A trial that keeps a random half."""
    half: dict[str, Any] = {
        "board": "contracts",
        "method": "random",
        "budget": 0.5,
        "questions": Questions(("mini_gqa", "mini_textvqa"), limit=4),
        "calibration": CalibrationSpec(6, ("mini_gqa",)),
        "latency": LatencySpec((1, 2), 3),
        "reference_input": ReferenceInput((64, 64), "How many stars?"),
    }
    return plain_trial(**{**half, **changes})
