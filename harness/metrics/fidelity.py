"""The distance between the answers of the pruned and the dense model, question by question, right or wrong.

result = measure(pruned, dense, trial, context)  # {"flips": 0.12, "agreement": 0.88, "kl_first_token": 0.31, ...}
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness import tasks
from harness.metrics.accuracy import answers_of, kept_answers
from harness.types import VLM, Column, MetricContext, Trial

COLUMNS = (
    Column("flips", "flips", unit="share", form="{:.3f}"),
    Column("kl_first_token", unit="nats"),
)


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """Means over tasks of per-question figures, with 95 % intervals clustered by image.

    flips: share of answers whose text differs from the dense model's; agreement: share of equal ones. lost, gained:
    shares of lower and higher scores. kl_first_token: KL(dense || pruned) of the answer's first token, in nats.
    Source: Dutta et al. 2024, Accuracy is Not All You Need (flips, KL).
    """
    import torch
    from torch.nn import functional

    ours = answers_of(pruned, trial, context)
    context.progress("fidelity")
    theirs = kept_answers(dense, trial, context, first=True, name="dense")
    assert theirs.firsts is not None and ours.firsts is not None
    changed = np.array([a != b for a, b in zip(*(x.table["answer"].to_pylist() for x in (theirs, ours)), strict=True)])
    shift = ours.table["score"].to_numpy() - theirs.table["score"].to_numpy()
    divergence = functional.kl_div(ours.firsts, theirs.firsts, reduction="none", log_target=True).sum(-1)
    figures: dict[str, Any] = {}
    for name, per_question in (
        ("flips", changed),
        ("lost", shift < 0),
        ("gained", shift > 0),
        ("kl_first_token", torch.clamp(divergence, min=0).numpy()),  # rounding can give a small negative number
    ):
        mean = tasks.mean(theirs.table, per_question)
        figures |= {name if key == "mean" else f"{name}_{key}": value for key, value in mean.items()}
    return {**figures, "agreement": 1 - figures["flips"]}
