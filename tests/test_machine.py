"""Rates are measured once and kept, and a roofline's figures are what they say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_latency import trial_of

from harness import machine
from harness.metrics import roofline
from harness.runner import Context
from harness.types import VLM, InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine._kept.cache_clear()
    return tmp_path / "cache" / "infoprune-bench"


def test_a_measurement_is_made_once_and_kept(own_cache: Path) -> None:
    calls = []

    def measure(device: str, dtype: str) -> dict[str, float]:
        calls.append((device, dtype))
        return {"one": 1.0}

    for _ in range(2):
        assert machine._kept("rates", "cpu", "float32", measure) == {"one": 1.0}
    machine._kept.cache_clear()  # another process
    assert machine._kept("rates", "cpu", "float32", measure) == {"one": 1.0}
    assert machine._kept("rates", "cpu", "bfloat16", measure) == {"one": 1.0}
    assert calls == [("cpu", "float32"), ("cpu", "bfloat16")]
    (first, _) = sorted(own_cache.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    first.write_text("{")
    machine._kept.cache_clear()
    with pytest.raises(InputError, match=f"{first.name}: not a measurement of this machine; delete it"):
        machine._kept("rates", "cpu", "float32", measure)


def test_the_smallest_multiple_that_is_nearly_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"1": 50.0, "8": 90.0, "16": 97.5, "32": 100.0, "64": 99.0, "128": 80.0}
    monkeypatch.setattr(machine, "table", lambda device, dtype: rates)
    assert machine.step("cuda", "bfloat16") == 16


def test_the_table_times_every_multiple_at_odd_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []

    def seconds(call: Any, device: str) -> float:
        widths.append(call.__defaults__[0].shape[1])
        return 1.0

    monkeypatch.setattr(machine, "_seconds", seconds)
    found = machine.table("cpu", "float32")
    assert list(found) == [str(multiple) for multiple in machine.STEPS] and len(widths) == 3 * len(found)
    for place, width in enumerate(widths):
        multiple = machine.STEPS[place // 3]
        assert width % multiple == 0 and (width // multiple) % 2 == 1 and abs(width - 1280) < 4 * 128


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, takes = [0.0], iter([9.0, 9.0, 5.0, 3.0, 4.0, 3.5, 6.0, 7.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(takes)

    assert machine._seconds(call, "cpu") == 3.0


def test_bytes_are_those_of_weights_inputs_and_outputs() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU(), torch.nn.Linear(4, 2, bias=False))
    moved = roofline.moved_bytes(layer, lambda: layer(torch.ones(3, 6)))
    assert moved == 4 * ((6 * 4 + 4) + 3 * (6 + 4) + 4 * 2 + 3 * (4 + 2))
    assert not any(module._forward_hooks for module in layer.modules())


def test_a_roofline_of_every_stage(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_rates", lambda device, dtype: {"matmul_flops": 1e12, "copy_bytes": 1e11})
    monkeypatch.setattr(roofline, "seconds", lambda call, device, reduce: 0.5)
    trial = trial_of()
    found = roofline.measure(tiny, tiny, trial, Context(trial, lambda text: None))
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
