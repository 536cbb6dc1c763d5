"""What a machine with two GPUs is for: models spread over both, workers on each, exports and gates across them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.infoprune import bench
from harness import families, registry
from harness.bench import compression
from harness.checkpoints import export
from harness.checks import score_quality
from harness.machine import facts as machine_facts
from harness.machine import limits
from harness.records import record
from harness.trials.pruner import BATCH, Pruner
from harness.trials.result import failure
from harness.trials.sweep import sweep
from harness.trials.worker import Worker
from harness.types import CalibrationSpec, Loading, Questions, Trial, Tuning
from harness.verdicts.gate import compare
from harness.verdicts.regressions import Limits
from tests.support.accelerator import aside, workers
from tests.support.accelerator.ledger import Ledger
from tests.support.boards import read_board
from tests.support.commands import Call
from tests.support.trials import random_trial

TRAINING: dict[str, Any] = {"steps": 2, "samples": 8, "batch": 4}


@pytest.fixture
def trial(tiny_folder: Path) -> Trial:
    few = Questions(("mini_gqa",), limit=4)
    return random_trial(model=str(tiny_folder), align="off", questions=few, metrics=("flops", "accuracy"))


@pytest.fixture(params=["balanced", "within the language model"])
def spread(request: pytest.FixtureRequest, gpus: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The model over both GPUs: as accelerate divides it, or with a border inside the language model."""
    if request.param != "balanced":
        inner = {"embed_tokens": 0, "layers.0": 0, "layers.1": 1, "norm": 1, "rotary_emb": 0}
        parts = {"model.visual": 0, "lm_head": 0} | {f"model.language_model.{name}": at for name, at in inner.items()}
        load = families.load
        monkeypatch.setattr(families, "load", lambda *a, **k: load(*a, **{**k, "device_map": parts}))
    yield request.param


SPREAD = [
    pytest.param({"method": "wanda"}, id="features"),
    pytest.param({"method": "osscar"}, id="moments", marks=pytest.mark.slow),
    pytest.param({"method": "taylor"}, id="gates"),
    pytest.param({"method": "llm_pruner"}, id="weights", marks=pytest.mark.slow),
    pytest.param({"method": "laser"}, id="outputs", marks=pytest.mark.slow),
    pytest.param({"method": "hies"}, id="entropies", marks=pytest.mark.slow),
    pytest.param({"method": "michel", "options": {"absolute": "token"}}, id="tokens", marks=pytest.mark.slow),
    pytest.param({"method": "infoprune", "options": {"steps": 4}}, id="trained gates", marks=pytest.mark.slow),
    pytest.param({"method": "cofi", "options": {"steps": 4}}, id="gates of channels", marks=pytest.mark.slow),
    pytest.param({"method": "svd_llm", "tuning": Tuning("refit")}, id="refit", marks=pytest.mark.slow),
    pytest.param({"method": "wanda", "tuning": Tuning("bias")}, id="bias", marks=pytest.mark.slow),
    pytest.param({"method": "wanda", "tuning": Tuning("lora", **TRAINING)}, id="lora", marks=pytest.mark.slow),
    pytest.param({"method": "wanda", "tuning": Tuning("full", **TRAINING)}, id="full", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("changes", SPREAD)
def test_a_model_over_two_gpus(changes: dict[str, Any], spread: str, trial: Trial, gpus: Ledger) -> None:
    trial = replace(trial, budget=0.6, units=registry.method(changes["method"]).units, **changes)
    with aside(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "load", lambda *a, **k: _plain_load(*a, **k))
        ours, _ = Worker("cpu").run(trial)
    theirs, _ = Worker("cuda").run(replace(trial, loading=Loading(device_map="balanced")))
    assert [each.error for each in (ours, theirs)] == [None, None]
    assert min(gpus.peaks) > 0  # both had a part
    assert theirs.hashes["plan"] == ours.hashes["plan"]
    assert theirs.metrics["accuracy"]["mean"] == ours.metrics["accuracy"]["mean"]


def _plain_load(*args: Any, **kwargs: Any) -> Any:
    from harness.families import _loading

    return _loading.load(*args, **{**kwargs, "device_map": None})


# --- memory -----------------------------------------------------------------------------------------------


def test_batches_are_halved_until_they_fit(trial: Trial, gpus: Ledger) -> None:
    trial = replace(trial, method="taylor", metrics=("flops",), calibration=CalibrationSpec(16, ("mini_gqa",)))
    whole, _ = Worker("cuda").run(trial)
    assert whole.cost.calibration_batch is None
    gpus.limit = int(0.6 * max(gpus.peaks))
    short, _ = Worker("cuda").run(trial)
    assert short.status == "ok" and short.cost.calibration_batch in (1, 2, 4, 8) and max(gpus.peaks) <= 2 * gpus.limit
    assert BATCH == 16
    gpus.limit = 300_000  # not even the weights
    failed, _ = Worker("cuda").run(trial)
    assert failed.error is not None and failed.error.type == "OutOfMemoryError"


# --- several GPUs and several machines --------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_take_a_gpu_each_and_a_gate_compares_them(
    tiny_folder: Path, questions: Path, tmp_path: Path, gpus: Ledger
) -> None:
    """A trial that ran on the first GPU before runs on the second now, and times of both are comparable."""
    metrics = {"metrics": ["flops", "latency", "accuracy"], "scopes": ["vision"]}
    board = read_board(tmp_path, tiny_folder, questions, ["random", "magnitude"], **metrics)
    folders = []
    for number in range(2):
        folders.append(tmp_path / str(number))
        outcome = sweep(board, folders[-1], device="cuda", jobs=2, make=workers.make)
        assert not outcome.failed
    for folder, device in zip(folders, ("cuda:0", "cuda:1"), strict=True):  # whoever came first
        for made in record.load(folder / "small")[0]:
            record.write(folder / "small", replace(made, env={**made.env, "device": device}), *_samples(folder, made))
    verdict = compare(str(folders[0]), str(folders[1]), Limits(latency=1000.0, margin=0.9))
    assert verdict.metrics["latency"] != "refused", verdict.to_json()
    devices = {made.env["gpu"] for folder in folders for made in record.load(folder / "small")[0]}
    assert devices == {"Fake GPU"}


def _samples(folder: Path, made: record.Record) -> list[Any]:
    import pyarrow.parquet

    return [pyarrow.parquet.read_table(folder / "small" / f"{made.id}.parquet")]


@pytest.mark.parametrize(
    ("changes", "same"), [({"device": "cuda:1"}, True), ({"gpu": "B"}, False), ({"device": "cpu"}, False)], ids=str
)
def test_gpus_of_one_model_are_one_machine(changes: dict[str, Any], same: bool) -> None:
    from harness.records.comparison import other_machine

    env = {"device": "cuda:0", "gpu": "A", "cpu": "C", "threads": 1}
    assert (other_machine(env, {**env, **changes}) == []) is same


def test_a_node_without_a_gpu_records_the_failure_of_a_gpus_trial(trial: Trial) -> None:
    machine_facts.facts.cache_clear()
    made = failure(trial, "cuda", "WorkerDied", "on the cluster").record
    assert made.error is not None and made.env["device"] == "cuda" and "gpu" not in made.env


@pytest.mark.parametrize("kind", ["NVMLError_NotSupported", "NVMLError_NoPermission", "RuntimeError"])
def test_a_clock_that_cannot_be_read_is_left_out(
    kind: str, trial: Trial, gpus: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    def refused(device: Any = None) -> int:
        raise getattr(pynvml, kind, RuntimeError)()

    monkeypatch.setattr(torch.cuda, "clock_rate", refused)
    machine_facts.facts.cache_clear()
    made, _ = Worker("cuda").run(replace(trial, metrics=()))
    machine_facts.facts.cache_clear()
    assert made.status == "ok" and made.env["gpu"] == "Fake GPU" and "gpu_clock_mhz" not in made.env


# --- widths and exports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "dtype", "step"),
    [((9, 0), "bfloat16", 64), ((8, 0), "float32", 32), ((7, 5), "float16", 8), ((7, 0), "float32", 4)],
)
def test_widths_follow_the_type_and_the_gpu(
    capability: Any, dtype: str, step: int, gpus: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert limits.step("cuda", dtype) == limits.step("cuda:1", dtype) == step


@pytest.mark.parametrize("align", [None, "auto", 8])
def test_a_gpus_record_exports_anywhere(
    align: Any, tiny_folder: Path, questions: Path, tmp_path: Path, gpus: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's own step of widths is used, whatever the device here would choose."""
    monkeypatch.setattr(limits, "AMPERE", 32)  # 8 in float32, which the tiny model's widths allow
    board = read_board(tmp_path, tiny_folder, questions, ["random"], align=align, metrics=["flops"], budgets=[0.6])
    sweep(board, tmp_path / "results", device="cuda", inline=True)
    made = next(made for made in record.load(tmp_path / "results" / "small")[0] if made.trial.method == "random")
    assert made.plan is not None and made.plan.align == 8
    export.export(tmp_path / "results", made.id, tmp_path / "gpu", device="cuda:1")
    with aside():
        export.export(tmp_path / "results", made.id, tmp_path / "cpu", device="cpu")
    first, second = (families.load(tmp_path / name).model.state_dict() for name in ("gpu", "cpu"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_spread_model_is_loaded_again_over_the_same_gpus(
    trial: Trial, tmp_path: Path, gpus: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that is compared with what was written may be too large for one of them."""
    load, maps = families.load, []

    def noted(*args: Any, **settings: Any) -> Any:
        maps.append(settings.get("device_map"))
        return load(*args, **settings)

    monkeypatch.setattr(families, "load", noted)
    spread = replace(trial, method="magnitude", budget=0.6, loading=Loading(device_map="balanced"))
    done = export.prune(spread, tmp_path / "out", device="cuda")
    assert done.form == "custom code" and maps == ["balanced", "balanced"] and min(gpus.peaks) > 0


def test_the_command_sweeps_on_a_gpu(
    tiny_folder: Path, questions: Path, tmp_path: Path, gpus: Ledger, call: Call
) -> None:
    read_board(tmp_path, tiny_folder, questions, ["random"], metrics=["flops"])
    done = call("sweep", tmp_path / "small.yaml", "--results", tmp_path / "r", "--device", "cuda", "--inline")
    assert done.code == 0, done.err
    made, problems = record.load(tmp_path / "r" / "small")
    assert not problems and [each.status for each in made] == ["ok", "ok"]
    assert {each.env["gpu"] for each in made} == {"Fake GPU"}


# --- score quality and bars -------------------------------------------------------------------------------


@pytest.mark.slow
def test_score_quality(tiny_folder: Path, gpus: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_quality, "CALIBRATION", 4)
    measured = []
    for device in ("cpu", "cuda:1"):
        vlm = families.load(tiny_folder, device=device)
        asked = score_quality.damage_settings(vlm, 4, 3)
        measured.append(score_quality.measure(vlm, ["taylor", "svd"], asked, lambda items, text: items))
    ours, theirs = (each["truth"]["units"] for each in measured)
    assert [row["damage"] for row in theirs] == pytest.approx([row["damage"] for row in ours], abs=1e-6)
    assert not any("error" in each for each in measured[1]["methods"].values())


@pytest.mark.slow
def test_bars_of_compression(gpus: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding is no ranking, the baseline is warm, and singular values are timed where the bars say."""
    monkeypatch.setattr(compression, "SAMPLES", {"cuda": 2})
    folder, calls, svd = compression.reduced(tmp_path), [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda x, **k: calls.append(x.shape) or svd(x, **k))
    spent = compression.compress(folder, "random", {}, "float32", "cuda")
    assert min(dataclasses.astuple(spent)[:1]) > 0 and spent.peak_over_weights > 1
    assert calls[0][0] <= 64 < calls[1][0]  # the first is not timed
    places = set()
    monkeypatch.setattr(torch.linalg, "svd", lambda x, **k: places.add(str(x.device)) or svd(x, **k))
    bars = list(bench.decomposed([(48, 96)], repeats=1, device="cuda:1"))
    assert places == {"cuda:1"} and all(bar.sound for bar in bars)


# --- tuning -----------------------------------------------------------------------------------------------


def test_full_tuning_that_cannot_fit_is_refused_with_the_arithmetic(trial: Trial, gpus: Ledger) -> None:
    trial = replace(trial, method="magnitude", tuning=Tuning("full", **TRAINING), metrics=("flops",))
    gpus.total = 1_500_000
    refused, _ = Worker("cuda").run(trial)
    assert refused.error is not None and refused.error.type == "InputError" and refused.error.phase == "load"
    assert "16 bytes each" in refused.error.message and "use lora" in refused.error.message
    assert not refused.cost.ranking_s  # before the work, not after it
    gpus.total = 1 << 30
    fits, _ = Worker("cuda").run(trial)
    assert fits.status == "ok", fits.error


def test_a_worker_keeps_nothing_of_a_trial(trial: Trial, gpus: Ledger) -> None:
    """Beside the dense model and what later trials share, the device is as before."""
    worker, held = Worker("cuda"), []
    for seed in range(3):
        made, _ = worker.run(replace(trial, seed=seed, method="magnitude", metrics=("flops",)))
        assert made.status == "ok"
        held.append(gpus.held[0])
    assert held[1] == held[2]
    assert isinstance(worker.pruner, Pruner)
