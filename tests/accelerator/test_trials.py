"""Every method, arm, recovery and metric on the fake accelerator: plans, answers and figures are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.machine import limits
from harness.statistics import moments
from harness.trials.result import Result
from harness.trials.worker import Worker
from harness.types import Chooser, LatencySpec, Questions, Trial, Tuning
from tests.support.accelerator import aside, installed
from tests.support.accelerator.ledger import Ledger
from tests.support.trials import random_trial

# Options of methods that train, and of one that needs a layer before its own.
SHORT = {"infoprune": {"steps": 6}, "l0_gates": {"steps": 6}, "cofi": {"steps": 6}, "fastv": {"layer": 1}}
TRAINING: dict[str, Any] = {"steps": 2, "samples": 8, "batch": 4}
RECOVERIES = [
    Tuning("bias"),
    Tuning("refit"),
    Tuning("refit", rounds=2),
    Tuning("full", **TRAINING),
    Tuning("full", loss="answers", **TRAINING),
    Tuning("lora", **TRAINING),
]
ARMS = {"arm": "compose-act"}, {"arm": "compose-linear"}
QUICK = {"none", "random", "taylor", "wanda"}
TIMES = {"latency", "memory", "roofline"}  # metrics whose figures are the device's own


def some(names: list[str]) -> list[Any]:
    """The names as parameters, most of them slow."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Trial:
    questions, latency = Questions(("mini_gqa",), limit=4), LatencySpec((1,), 3)
    metrics = ("flops", "accuracy")
    # Without `align`, a GPU keeps other widths than the CPU.
    return random_trial(model=str(tiny_folder), align="off", metrics=metrics, questions=questions, latency=latency)


@pytest.fixture(scope="module")
def cpu() -> Worker:
    return Worker("cpu")


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    with installed(devices=2) as ledger:
        yield ledger


@pytest.fixture(scope="module")
def gpu(ledger: Ledger) -> Worker:
    return Worker("cuda:1")


def same(trial: Trial, cpu: Worker, gpu: Worker) -> tuple[Result, Result]:
    """Run the trial on both; plan, counts and answers must agree."""
    with aside():
        ours = cpu.run(trial)
    results = ours, gpu.run(trial)
    assert [result.record.error for result in results] == [None, None]
    ours, theirs = (result.record for result in results)
    assert theirs.hashes == ours.hashes and theirs.plan == ours.plan
    assert theirs.metrics.get("flops") == ours.metrics.get("flops")
    assert theirs.metrics.get("accuracy") == ours.metrics.get("accuracy")
    tables = [result.samples for result in results]
    assert tables[0] == tables[1]  # every answer
    return results


@pytest.mark.parametrize("name", some(registry.methods()))
def test_a_method(name: str, base: Trial, cpu: Worker, gpu: Worker) -> None:
    method = registry.method(name)
    # Visual tokens alone save little, behind a layer even less.
    budget = 1.0 if name == "none" else 0.9 if method.units == "tokens" else 0.6
    same(replace(base, method=name, budget=budget, units=method.units, options=SHORT.get(name, {})), cpu, gpu)


@pytest.mark.slow
def test_a_mixture_with_tokens(base: Trial, cpu: Worker, gpu: Worker) -> None:
    mixed: dict[str, Any] = {"units": "heads+ffn+tokens", "tokens": Chooser("visionzip"), "shares": {"tokens": 0.2}}
    same(replace(base, method="magnitude", budget=0.7, **mixed), cpu, gpu)


@pytest.mark.slow
@pytest.mark.parametrize("options", ARMS, ids=str)
def test_an_arm(options: Any, base: Trial, cpu: Worker, gpu: Worker) -> None:
    same(replace(base, method="infoprune_free", scope="vision", budget=0.67, options=options), cpu, gpu)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", RECOVERIES, ids=str)
@pytest.mark.parametrize("method", ["wanda", "svd"])  # units go; Linears become pairs
def test_a_recovery(
    tuning: Tuning, method: str, base: Trial, cpu: Worker, gpu: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A GPU sums batches in float32, and a refit shows it; here both sum in float64.
    monkeypatch.setattr(moments, "_product", lambda left, right: left.double().T @ right.double())
    if tuning.rounds > 1 and method == "svd":
        pytest.skip("what replaces Linears is cut once")
    same(replace(base, method=method, tuning=tuning, budget=0.6), cpu, gpu)


@pytest.mark.slow
def test_recovery_behind_a_recomposed_ffn(base: Trial, cpu: Worker, gpu: Worker) -> None:
    """Other producers feed W2 then, so its inputs are computed anew."""
    how: Any = {"method": "infoprune_free", "scope": "vision", "budget": 0.67, "options": ARMS[0]}
    same(replace(base, tuning=Tuning("refit"), **how), cpu, gpu)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"sequential": True}, {"control": "random-units"}, {"currency": "params"}], ids=str
)
def test_what_else_a_trial_may_ask_for(changes: Any, base: Trial, cpu: Worker, gpu: Worker) -> None:
    same(replace(base, method="wanda", **changes), cpu, gpu)


@pytest.mark.parametrize("name", registry.metrics())
def test_a_metric(name: str, base: Trial, cpu: Worker, gpu: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "machine", lambda device, dtype: limits.Machine(1e12, 1e11))
    ours, theirs = same(replace(base, metrics=(name,)), cpu, gpu)
    figures = ours.record.metrics[name], theirs.record.metrics[name]
    if name not in TIMES:
        assert figures[0] == figures[1]
    elif name == "memory":
        assert figures[1]["pruned"]["weight_bytes"] == figures[0]["pruned"]["weight_bytes"]
        assert figures[1]["pruned"]["peak_bytes"]["all"] > 0 and "peak_bytes" not in figures[0]["pruned"]


def test_a_record_names_the_gpu(base: Trial, gpu: Worker) -> None:
    made = gpu.run(replace(base, metrics=())).record
    assert made.env["device"] == "cuda:1" and made.env["gpu"] == "Fake GPU" and made.env["gpu_clock_mhz"] > 0
    assert (made.cost.peak_memory_bytes or 0) > 0
