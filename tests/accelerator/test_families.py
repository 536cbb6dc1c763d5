"""Every family on the fake accelerator in half precision: rank, cut, recover, and all metrics that ask the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.trials.worker import Worker
from harness.types import CalibrationSpec, LatencySpec, Questions, Tuning
from tests.support.accelerator.ledger import Ledger
from tests.support.family_configs import TINY, build
from tests.support.trials import random_trial

METRICS = {"bfloat16": ("flops", "latency", "memory", "accuracy", "fidelity"), "float16": ("flops", "accuracy")}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", METRICS)
@pytest.mark.parametrize("name", TINY)
def test_a_family(name: str, dtype: str, gpus: Ledger, tmp_path: Path) -> None:
    trial = random_trial(
        model=str(build(name, tmp_path / "checkpoint")),
        method="infoselect",
        budget=0.6,
        dtype=dtype,
        metrics=METRICS[dtype],
        questions=Questions(("mini_gqa",), limit=2),
        calibration=CalibrationSpec(4, ("mini_gqa",)),
        latency=LatencySpec((1,), 3),
        tuning=Tuning("refit"),
        align="off",
    )
    made, samples = Worker("cuda").run(trial)
    assert made.status == "ok", made.error
    assert samples is not None and len(samples) == 2
    assert set(made.metrics) == set(METRICS[dtype])
