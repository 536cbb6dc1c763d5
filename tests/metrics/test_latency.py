"""The clock is read around each call and in turns, and the interval of a ratio holds the truth."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.machine import timing
from harness.metrics import latency
from harness.trials.context import Context
from harness.types import VLM
from tests.support.progress import Heard
from tests.support.trials import latency_trial


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def takes(self, name: str, seconds: float) -> Any:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds

        return call


def test_each_call_is_timed_alone_and_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = timing.interleave(clock.takes("a", 3.0), clock.takes("b", 1.5), repeats=4)
    assert times.tolist() == [[3.0, 1.5]] * 4
    assert "".join(clock.calls) == "abba" + "abba" * 2  # two rounds of warm-up, and who goes first alternates
    assert timing.ratio(times) == (2.0, 2.0, 2.0)


def test_waiting_for_the_device_belongs_to_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is still queued when a call returns is finished before the clock is read, and before it starts."""
    clock = Clock(monkeypatch)
    queued = [0.0]

    def launch() -> None:
        queued[0] += 5.0

    def wait() -> None:
        clock.now += queued[0]
        queued[0] = 0.0

    assert timing.interleave(launch, clock.takes("b", 1.0), 3, wait).tolist() == [[5.0, 1.0]] * 3


def test_a_sleep_is_measured() -> None:
    times = timing.interleave(lambda: time.sleep(0.1), lambda: time.sleep(0.01), repeats=5)
    assert times[:, 0].min() >= 0.1 and times[:, 1].min() >= 0.01
    assert timing.ratio(times)[0] > 1.5  # 10, less what a busy machine adds to both


@given(st.floats(0.2, 8), st.integers(0, 2**16))
def test_the_interval_holds_the_median_and_scales(truth: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    second = rng.lognormal(0, 0.1, 30)
    times = np.stack([truth * second * rng.lognormal(0, 0.1, 30), second], 1)
    middle, low, high = timing.ratio(times)
    assert low <= middle <= high
    assert middle == pytest.approx(np.median(times[:, 0] / times[:, 1]))
    assert timing.ratio(times * 1000) == pytest.approx((middle, low, high))  # units do not matter
    assert timing.ratio(times) == (middle, low, high)
    swapped = timing.ratio(times[:, ::-1])
    assert swapped[0] == pytest.approx(1 / middle, rel=0.02)


def test_the_interval_contains_the_truth_as_often_as_it_says() -> None:
    """Common swings of the machine, which hit both calls of a round, cancel in the ratio."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        machine = rng.lognormal(0, 0.5, (25, 1))
        times = machine * np.array([2.0, 1.0]) * rng.lognormal(0, 0.05, (25, 2))
        _, low, high = timing.ratio(times)
        held += low <= 2.0 <= high
        assert high - low < 0.3
    assert 0.90 <= held / 300 <= 0.995


def test_every_stage_at_every_batch(tiny: VLM) -> None:
    trial = latency_trial()
    said = Heard()
    found = latency.measure(tiny, tiny, trial, Context(trial.reference_input, said))
    assert set(found["stages"]) == {"vision", "language", "all", "decode"}
    for own in found["stages"].values():
        assert set(own) == {"1", "2"}
        for figures in own.values():
            for which in ("dense_ms", "pruned_ms"):
                assert 0 < figures[which]["p10"] <= figures[which]["p50"] <= figures[which]["p90"]
            assert 0 < figures["lo"] <= figures["ratio"] <= figures["hi"]
    assert found["speedup"] == found["stages"]["vision"]["2"]["ratio"]  # the scope's, at the largest batch
    assert len(said) == 8 and said[0] == "latency: vision, batch 1"
    assert "more" not in found and set(found["answer"]) == {"1", "2"}


def test_an_answer_is_prefill_and_its_further_steps(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"vision": 1.0, "language": 2.0, "all": 4.0, "decode": 0.5}

    class Fixed(Context):
        def stages(self, vlm: VLM, batch: int = 1, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
            return {name: clock.takes(name, own) for name, own in seconds.items()}

    clock, trial = Clock(monkeypatch), latency_trial()
    found = latency.measure(tiny, tiny, trial, Fixed(trial.reference_input))
    assert found["answer"]["1"]["dense_ms"]["p50"] == pytest.approx(1000 * (4 + 15 * 0.5))
    assert found["answer"]["1"]["ratio"] == 1


def test_further_images_and_modes_stand_beside_the_reference(tiny: VLM) -> None:
    trial = latency_trial(batches=(1,), images=((32, 32),), modes=("eager", "graphs"))
    found = latency.measure(tiny, tiny, trial, Context(trial.reference_input))
    assert [(more["mode"], more["image"]) for more in found["more"]] == [("eager", [32, 32])]  # no graphs on a CPU
    assert set(found["more"][0]["stages"]) == set(found["stages"])
    assert found["speedup"] == found["stages"]["vision"]["1"]["ratio"]


def test_other_modes_compile_both_models(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def compile_(call: Any, *, dynamic: bool, mode: str) -> Any:
        asked.append(mode)
        return call

    monkeypatch.setattr(torch, "compile", compile_)
    trial = latency_trial(batches=(1,), modes=("compile",))
    found = latency.measure(tiny, tiny, trial, Context(trial.reference_input))
    assert [more["mode"] for more in found["more"]] == ["compile"] and set(asked) == {"default"} and len(asked) == 16
    latency._compiled([lambda: None], "graphs")
    assert asked[-1] == "reduce-overhead"


@pytest.mark.slow
def test_a_compiled_stage_gives_what_the_eager_one_gives(tiny: VLM) -> None:
    context = Context(latency_trial().reference_input)
    with torch.no_grad():
        calls = [context.stages(tiny)[stage] for stage in ("vision", "language")]
        compiled, graphs = latency._compiled(calls, "compile")
        for call, faster in zip(calls, compiled, strict=True):
            torch.testing.assert_close(faster(), call(), rtol=1e-3, atol=1e-4)
        assert graphs[0] > graphs[1] == 1  # transformers reads the sizes of images in Python
        assert latency._compiled(calls[:1] * 2, "compile")[1] == graphs[:1] * 2
