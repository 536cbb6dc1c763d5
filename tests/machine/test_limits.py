"""Rates are measured once and kept, and the fastest call and the smallest multiple that is nearly best count."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from harness.machine import limits
from harness.types import InputError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_measurement_is_made_once_and_kept(own_cache: Path) -> None:
    calls = []

    def measure(device: str, dtype: str) -> dict[str, float]:
        calls.append((device, dtype))
        return {"one": 1.0}

    for _ in range(2):
        assert limits._cached("rates", "cpu", "float32", measure) == {"one": 1.0}
    limits._cached.cache_clear()  # another process
    assert limits._cached("rates", "cpu", "float32", measure) == {"one": 1.0}
    assert limits._cached("rates", "cpu", "bfloat16", measure) == {"one": 1.0}
    assert calls == [("cpu", "float32"), ("cpu", "bfloat16")]
    (first, _) = sorted(own_cache.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    first.write_text("{")
    limits._cached.cache_clear()
    with pytest.raises(InputError, match=f"{first.name}: not a measurement of this machine; delete it"):
        limits._cached("rates", "cpu", "float32", measure)


def test_the_smallest_multiple_that_is_nearly_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"1": 50.0, "8": 90.0, "16": 97.5, "32": 100.0, "64": 99.0, "128": 80.0}
    monkeypatch.setattr(limits, "table", lambda device, dtype: rates)
    assert limits.step("cuda", "bfloat16") == 16


def test_the_table_times_every_multiple_at_odd_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []

    def seconds(call: Any, device: str) -> float:
        widths.append(call.__defaults__[0].shape[1])
        return 1.0

    monkeypatch.setattr(limits, "_seconds", seconds)
    found = limits.table("cpu", "float32")
    assert list(found) == [str(multiple) for multiple in limits.STEPS] and len(widths) == 3 * len(found)
    for place, width in enumerate(widths):
        multiple = limits.STEPS[place // 3]
        assert width % multiple == 0 and (width // multiple) % 2 == 1 and abs(width - 1280) < 4 * 128


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, takes = [0.0], iter([9.0, 9.0, 5.0, 3.0, 4.0, 3.5, 6.0, 7.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(takes)

    assert limits._seconds(call, "cpu") == 3.0
