"""The same trial gives the same record, but for time and machine: twice, in any executor, at any batch size.

Of the embedded model, on the CPU: methods that calibrate, repair and are tuned.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import families, registry, tasks
from harness.pruning.solver import solve
from harness.records.record import Code
from harness.statistics.calibration import Calibration
from harness.trials import spec
from harness.trials.sweep import Cluster, sweep
from harness.trials.worker import Worker
from harness.types import VLM, Budget, Trial
from tests.support.kills import timeless
from tests.support.question_files import asked

NAMES = ["mini_vqav2", "mini_gqa", "mini_textvqa"]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> spec.Board:
    tuned = {"method": "random", "tuning": {"method": "full", "steps": 2, "samples": 8, "batch": 4}}
    content = {
        "name": "same",
        "model": "mini-qwen2-vl",
        "methods": ["flap", "infoprune_free", tuned],
        "budgets": [0.5],
        "tasks": NAMES,
        "limit": 24,  # two batches
        "metrics": ["flops", "accuracy", "fidelity"],
        "calibration": {"samples": 8},
        "floors": False,
        "latency": {"batches": [1], "repeats": 3},
    }
    return spec.check(content, tmp_path_factory.mktemp("board") / "same.yaml")


def run(board: spec.Board, folder: Path, **how: Any) -> dict[str, Any]:
    """Records and samples of a sweep, without times, machine and the state of the checkout."""
    outcome = sweep(board, folder, **how)
    assert outcome.ran == 4 and not outcome.failed
    made = timeless(outcome.folder)
    assert len(made) == 8
    return {name: replace(one, env={}, code=Code()) if name.endswith(".json") else one for name, one in made.items()}


@pytest.fixture(scope="module")
def first(board: spec.Board, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(board, tmp_path_factory.mktemp("first"), inline=True)


def test_twice_the_same(board: spec.Board, first: dict[str, Any], tmp_path: Path) -> None:
    assert run(board, tmp_path, inline=True) == first


@pytest.mark.slow
def test_workers_beside_each_other_make_the_same(board: spec.Board, first: dict[str, Any], tmp_path: Path) -> None:
    assert run(board, tmp_path, jobs=2) == first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("shards", [1, 3])
def test_ray_makes_the_same(board: spec.Board, first: dict[str, Any], tmp_path: Path, shards: int) -> None:
    assert run(board, tmp_path, cluster=Cluster(shards=shards)) == first


# --- batch sizes --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trials(board: spec.Board) -> dict[str, Trial]:
    return {trial.method: trial for trial in board.trials()}


@pytest.fixture(scope="module")
def dense(trials: dict[str, Trial]) -> VLM:
    return Worker().pruner.load(trials["none"])


@pytest.mark.parametrize("method", ["none", "infoprune_free"])
def test_answers_do_not_depend_on_the_batch(trials: dict[str, Trial], method: str) -> None:
    vlm = Worker().prune(trials[method]).vlm
    found = [tasks.evaluate(vlm, asked(NAMES, "dev", 16), batch_size=size)[1] for size in (64, 7, 1)]
    assert len(set(found[0]["answer"].to_pylist())) > 8
    assert found[0].equals(found[1]) and found[0].equals(found[2])


@pytest.mark.parametrize("method", ["flap", pytest.param("infoprune_free", marks=pytest.mark.slow)])
def test_plans_do_not_depend_on_the_batch_of_calibration(dense: VLM, method: str) -> None:
    """Of methods that look at what Linears read; gradients are of a mini-batch's mean loss, which is another thing."""
    one, samples = registry.method(method), tasks.samples(asked(NAMES, "calibration"), 16, 0)
    batched = [Calibration(dense, samples, size) for size in (16, 5)]
    extents = families.family(dense.family).extents(dense.model, next(batched[0].batches()))
    budget = Budget("vision", 0.5, extents=extents)
    whole, parts = (solve(dense, one.rank(dense, calibration, seed=0), budget) for calibration in batched)
    assert whole == parts
