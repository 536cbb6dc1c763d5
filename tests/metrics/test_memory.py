"""Bytes by hand, and what cannot be read is absent."""

from __future__ import annotations

import pytest

from harness.bench import performance
from harness.metrics import memory
from harness.trials.context import Context
from harness.types import VLM
from tests.support.trials import latency_trial

HEADS, WIDTH, LAYERS, FLOAT = 2, 12, 2, 4  # of the tiny model's keys and values


def test_weights_and_cache_by_hand(tiny: VLM) -> None:
    context = Context(latency_trial().reference_input)
    found = memory.measure(tiny, tiny, latency_trial(), context)
    own = found["dense"]
    assert own["weight_bytes"] == FLOAT * sum(weight.numel() for weight in tiny.model.parameters())
    assert own["kv_bytes_per_token"] == 2 * LAYERS * HEADS * WIDTH * FLOAT
    assert own["kv_bytes"] == own["kv_bytes_per_token"] * context.inputs(tiny)["input_ids"].shape[1]
    assert found["pruned"] == own and found["weight_bytes_kept"] == found["kv_bytes_kept"] == 1
    # There is no GPU here whose peak or energy could be read.
    assert not {"peak_bytes", "joules_per_question"} & set(own) and "joules_per_question_kept" not in found


def test_fewer_groups_keep_less(tiny: VLM) -> None:
    pruned, context = performance.cut(tiny, "language", 0.5, 64)
    found = memory.measure(pruned, tiny, latency_trial(), context)
    assert found["kv_bytes_kept"] == 0.5
    assert found["weight_bytes_kept"] == pytest.approx(memory.weight_bytes(pruned) / memory.weight_bytes(tiny))
    assert found["weight_bytes_kept"] < 1
