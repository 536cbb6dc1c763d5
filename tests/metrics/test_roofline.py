"""A roofline's figures are what they say."""

from __future__ import annotations

import pytest
import torch

from harness.machine import limits
from harness.metrics import roofline
from harness.trials.context import Context
from harness.types import VLM
from tests.support.trials import latency_trial

pytestmark = pytest.mark.usefixtures("own_cache")


def test_bytes_are_those_of_weights_inputs_and_outputs() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU(), torch.nn.Linear(4, 2, bias=False))
    moved = roofline.moved_bytes(layer, lambda: layer(torch.ones(3, 6)))
    assert moved == 4 * ((6 * 4 + 4) + 3 * (6 + 4) + 4 * 2 + 3 * (4 + 2))
    assert not any(module._forward_hooks for module in layer.modules())


def test_a_roofline_of_every_stage(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_rates", lambda device, dtype: {"matmul_flops": 1e12, "copy_bytes": 1e11})
    monkeypatch.setattr(roofline, "seconds", lambda call, device, reduce: 0.5)
    trial = latency_trial()
    found = roofline.measure(tiny, tiny, trial, Context(trial.reference_input))
    assert found["balance"] == 10 and set(found["batches"]) == {"1", "2"}
    for batch in found["batches"].values():
        assert batch["dense"] == batch["pruned"] and set(batch["dense"]) == {"vision", "language", "all", "decode"}
        for stage in batch["dense"].values():
            assert stage["intensity"] == stage["flops"] / stage["bytes"] > 0
            assert stage["matmul_share"] == pytest.approx(stage["flops"] / 0.5e12)
            assert stage["copy_share"] == pytest.approx(stage["bytes"] / 0.5e11)
    one, two = (found["batches"][batch]["dense"] for batch in ("1", "2"))
    assert two["vision"]["flops"] == 2 * one["vision"]["flops"]
    assert two["decode"]["intensity"] > one["decode"]["intensity"]  # the weights are read once for both rows
