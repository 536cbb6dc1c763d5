"""Who gets which trial, what one may take, and what becomes of a worker that goes wrong."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import registry
from harness.machine import memory
from harness.pruning import surgery as cutting
from harness.tasks import answers
from harness.tasks.adapter import Adapter
from harness.trials import spec
from harness.trials.executors import local
from harness.trials.executors.feed import Feed
from harness.trials.executors.local import TrialLimits
from harness.trials.worker import Worker
from harness.types import InputError, Trial, Tuning
from tests.support import stubs

# --- who gets which trial -----------------------------------------------------------------------------------


def feed(trials: list[Trial], refused: tuple[int, ...] = ()) -> Feed:
    return Feed(trials, lambda trial: trials.index(trial) not in refused)


def test_a_single_worker_keeps_the_order() -> None:
    trials = stubs.board(0, 1, 2).trials()
    hand, near, given = feed(trials), None, []
    while near := hand.take(near):
        given.append(near)
    assert given == trials


def test_workers_stay_with_their_ranking_and_then_help() -> None:
    trials = stubs.board(0, 1, 2, budgets=(0.9, 0.7, 0.5, 0.3)).trials()
    hand = feed(trials)
    a, b = hand.take(), hand.take()
    assert a and b and (a.seed, b.seed) == (0, 1)
    for _ in range(3):
        a = hand.take(a)
    assert a and (a.seed, a.budget) == (0, 0.3)
    a = hand.take(a)
    assert a and a.seed == 2  # a ranking that nobody has begun
    for _ in range(3):
        a = hand.take(a)
    a, b = hand.take(a), hand.take(b)
    assert a and b and (a.seed, a.budget, b.seed, b.budget) == (1, 0.7, 1, 0.5)  # the rest of the other's


def test_refused_trials_are_left_out() -> None:
    trials = stubs.board(0, 1).trials()
    hand = feed(trials, refused=(0, 2))
    assert [hand.take(), hand.take(), hand.take()] == [trials[1], trials[3], None]


def test_workers_go_over_all_gpus_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local._places("cuda", 4) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert local._places("cuda", 1) == ["cuda"] and local._places("cuda:1", 2) == ["cuda:1"] * 2
    assert local._places("cpu", 2) == ["cpu", "cpu"]


# --- limits -------------------------------------------------------------------------------------------------


def test_trials_that_hang_die_or_swell() -> None:
    """Each leaves a record, its worker is replaced, and what runs beside it goes on: seed 0 is not waited for."""
    trials = stubs.board(97, 98, 99, 0, 1, budgets=(0.5,)).trials()
    limits = TrialLimits(seconds=6, memory=450 * 10**6)
    with local.workers(jobs=2, make=stubs.make) as begun:
        found = [made for made, _ in local.run(trials, begun, limits=limits)]
    by_seed = {made.trial.seed: made for made in found}
    assert set(by_seed) == {97, 98, 99, 0, 1} and len(found) == 5
    errors = {seed: made.error and made.error.type for seed, made in by_seed.items()}
    assert errors == {97: "TimeLimit", 98: "WorkerDied", 99: "MemoryLimit", 0: None, 1: None}
    assert "not done within 6 s" in str(by_seed[97].error)
    assert "more than 450000000" in str(by_seed[99].error)
    assert [made.trial.seed for made in found].index(97) > 0  # the others did not wait for it
    assert all(made.status == "failed" and not made.metrics for made in found if made.error)


def never(device: str, jobs: int, progress: Any) -> Any:
    time.sleep(300)


def test_a_worker_that_never_starts_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "START", 2.0)
    trials = stubs.board(0, 1, budgets=(0.5,)).trials()
    with local.workers(make=never) as begun:
        found = [made.error for made, _ in local.run(trials, begun, limits=TrialLimits(seconds=1))]
    assert [error and error.message for error in found] == ["its worker did not start within 2 s"] * 2


def test_workers_load_before_their_first_trial_and_end_without_one() -> None:
    with local.workers(jobs=2, make=stubs.make) as begun:
        processes = [worker.process for worker in begun]
        assert all(process.is_alive() for process in processes)
    assert not any(process.is_alive() for process in processes)
    start = time.monotonic()
    with pytest.raises(InputError), local.workers(make=never):
        raise InputError("the board is refused while the worker still loads")
    assert time.monotonic() - start < 5


def test_limits_that_cannot_be_watched_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    with pytest.raises(InputError, match="--memory-limit: needs /proc"):
        next(local.run(stubs.board(0).trials(), [], limits=TrialLimits(memory=1)))


@pytest.mark.parametrize("option", [("--jobs", 2), ("--time-limit", 9), ("--memory-limit", 1)])
def test_what_needs_workers_is_refused_inline(call: Any, option: tuple[str, int]) -> None:
    done = call("sweep", "demo", "--inline", *option)
    assert done.code == 2 and done.err == f"error: {option[0]}: needs worker processes; leave out --inline\n"


@pytest.mark.parametrize("option", [("--address", "auto"), ("--cpus", 2), ("--gpus", 2), ("--shards", 2)])
def test_what_is_for_a_cluster_is_refused_without(call: Any, option: tuple[str, Any]) -> None:
    done = call("sweep", "demo", *option)
    assert done.code == 2 and done.err == f"error: {option[0]}: does not go with --executor local\n"


# --- out of memory ------------------------------------------------------------------------------------------


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A method that has memory for batches of this size."""
    room, plain = {"batch": 4, "surgery": 16}, registry.method("random")
    asked = []

    def rank(vlm: Any, calibration: Any, *, seed: int) -> Any:
        asked.append(calibration.batch_size)
        if calibration.batch_size > room["batch"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain.module.rank(vlm, calibration, seed=seed)

    def apply(*given: Any) -> Any:
        if asked[-1] > room["surgery"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return surgery(*given)

    surgery = cutting.apply
    made = replace(plain, module=SimpleNamespace(rank=rank, __name__="hungry"))  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "method", lambda name: made)
    monkeypatch.setattr("harness.pruning.surgery.apply", apply)
    yield room


def trial(board: dict[str, Any]) -> Trial:
    return spec.check({**board, "metrics": ["flops"], "methods": ["random"]}, Path("b.yaml")).trials()[1]


def test_short_memory_halves_the_batch_of_calibration(board: dict[str, Any], hungry: dict[str, int]) -> None:
    worker = Worker()
    made, _ = worker.run(trial(board))
    assert made.status == "ok" and made.cost.calibration_batch == 4
    hungry["batch"] = 0
    made, _ = worker.run(replace(trial(board), seed=1))
    assert made.error and (made.error.type, made.error.phase) == ("OutOfMemoryError", "ranking")
    assert made.cost.calibration_batch == 1 and made.metrics == {}


def test_short_memory_in_surgery_ranks_again_in_smaller_batches(board: dict[str, Any], hungry: dict[str, int]) -> None:
    """Factors may be made there, from the calibration that the ranking holds on to."""
    hungry |= {"batch": 16, "surgery": 8}
    made, _ = Worker().run(trial(board))
    assert made.status == "ok" and made.cost.calibration_batch == 8


def test_enough_memory_says_nothing(board: dict[str, Any], hungry: dict[str, int]) -> None:
    hungry["batch"] = 16
    made, _ = Worker().run(trial(board))
    assert made.status == "ok" and made.cost.calibration_batch is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is of the whole life of a process")
def test_a_peak_begins_anew() -> None:
    held = b"x" * (300 << 20)
    grown = memory.peak("cpu")
    assert grown >= len(held)
    del held
    memory.begin_peak("cpu")
    assert memory.peak("cpu") < grown - (200 << 20)


# --- shared rankings ----------------------------------------------------------------------------------------


def test_a_ranking_that_was_adopted_serves_as_an_own_one(board: dict[str, Any]) -> None:
    own = trial(board)
    giving, taking = Worker(), Worker()
    shared = giving.share(own)
    assert shared is not None
    taking.adopt(shared)
    made, _ = taking.run(own)
    expected, _ = Worker().run(own)
    assert made.status == "ok" and made.plan == expected.plan
    assert made.cost.ranking_s == shared.ranked.seconds  # it was not made again


def test_questions_may_be_answered_elsewhere(board: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = answers._run
    monkeypatch.setattr(answers, "_run", lambda *of, **how: run(*of, **{**how, "batch_size": 4}))
    own = replace(trial(board), metrics=("accuracy", "floors", "fidelity"))
    whole, samples = Worker().run(own)
    shares = [Worker().answer(own, (k, 2)) for k in range(2)]
    asked: list[Any] = []
    generate = Adapter._generate
    monkeypatch.setattr(Adapter, "_generate", lambda self, *of: asked.append(self) or generate(self, *of))
    made, table = Worker().run(own, [share for share in shares if share])
    assert made.metrics == whole.metrics and made.hashes == whole.hashes and whole.status == "ok"
    assert table is not None and table.equals(samples)
    assert {(adapter.images, adapter.label == "dense") for adapter in asked} == {
        ("blank", False), ("shuffled", False), ("own", True)
    }  # fmt: skip
    asked.clear()
    another, _ = Worker().run(replace(own, budget=0.7), [share for share in shares if share])
    assert another.status == "ok" and ("own", False) in {(one.images, one.label == "dense") for one in asked}


def test_what_cannot_be_answered_elsewhere(
    board: dict[str, Any], hungry: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Figures alone, a trial that is tuned, and one that goes wrong."""
    own = replace(trial(board), metrics=("accuracy",))
    hungry["batch"] = 16
    assert Worker().answer(own, (0, 2)) is not None
    assert Worker().answer(trial(board), (0, 2)) is None
    assert Worker().answer(replace(own, tuning=Tuning("full")), (0, 2)) is None
    hungry["batch"] = 0
    assert Worker().answer(own, (0, 2)) is None
    assert re.search(rf"{own.method}: no answers to share \(.*Error: .*memory", caplog.text)


def test_a_ranking_that_cannot_be_made_is_not_shared(
    board: dict[str, Any], hungry: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    hungry["batch"] = 0
    own = trial(board)
    assert Worker().share(own) is None
    assert re.search(rf"{own.method}: no ranking to share \(.*Error: .*memory", caplog.text)
