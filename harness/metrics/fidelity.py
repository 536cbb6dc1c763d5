"""How far the pruned model's answers are from the dense model's, question by question, right or wrong.

result = measure(pruned, dense, trial, context)  # {"flips": 0.12, "agreement": 0.88, "kl_first_token": 0.31, ...}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from harness import tasks
from harness.metrics.accuracy import answers
from harness.types import VLM, Trial


def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """Means over tasks of what each question gives, with 95 % intervals clustered by image.

    flips: the answer's text is another than the dense model's; agreement: it is the same. lost, gained: the score
    fell or rose. kl_first_token: KL(dense || pruned) of the distribution of the answer's first token, in nats.
    Source: Dutta et al. 2024, Accuracy is Not All You Need (flips, KL).
    """
    ours = answers(pruned, trial, context)
    context.progress("fidelity")
    theirs = tasks.answer_cached(dense, trial.tasks, trial.split, trial.limit, first=True, label="dense")
    assert theirs.firsts is not None and ours.firsts is not None
    changed = np.array([a != b for a, b in zip(*(x.table["answer"].to_pylist() for x in (theirs, ours)), strict=True)])
    shift = ours.table["score"].to_numpy() - theirs.table["score"].to_numpy()
    divergence = functional.kl_div(ours.firsts, theirs.firsts, reduction="none", log_target=True).sum(-1)
    found: dict[str, Any] = {}
    for name, each in (
        ("flips", changed),
        ("lost", shift < 0),
        ("gained", shift > 0),
        ("kl_first_token", torch.clamp(divergence, min=0).numpy()),  # rounding may leave a hair below zero
    ):
        own = tasks.mean(theirs.table, each)
        found |= {name: own["mean"], f"{name}_lo": own["lo"], f"{name}_hi": own["hi"]}
    return {**found, "agreement": 1 - found["flips"]}
