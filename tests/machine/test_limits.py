"""Rates are measured once and kept, and the fastest call counts; widths are not measured."""

from __future__ import annotations

import time
from pathlib import Path

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


@pytest.mark.parametrize(("dtype", "step"), [("float32", 16), ("bfloat16", 32), ("float16", 32), ("float64", 8)])
def test_widths_of_a_processor_fill_its_cache_lines(dtype: str, step: int) -> None:
    """Nothing is measured, so that a trial gives the same plan on every machine."""
    assert limits.step("cpu", dtype) == step
    assert not limits.folder().exists()


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, takes = [0.0], iter([9.0, 9.0, 5.0, 3.0, 4.0, 3.5, 6.0, 7.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(takes)

    assert limits._seconds(call, "cpu") == 3.0
