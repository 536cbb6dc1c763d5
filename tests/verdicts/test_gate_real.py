"""The gate on models that are pruned for real: what the change truly costs is known from 10,000 further questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from harness import stats
from harness.pruning import solver
from harness.records import record
from harness.records.record import Record
from harness.reference import sets
from harness.trials import spec
from harness.trials.worker import Worker
from harness.types import Additive, Questions, Ranking, Trial
from harness.verdicts.gate import Gate, compare
from harness.verdicts.regressions import Limits

pytestmark = pytest.mark.slow
FURTHER = 1130  # images a task, nearly all with three questions
# Noise of the changed code on every score, a factor exp(noise * normal): next to none, and far more than they differ.
HARMLESS, HARMFUL = 0.02, 3.0

Measure = Callable[[Trial, float], tuple[Record, pyarrow.Table]]


@pytest.fixture(scope="module")
def trial() -> Trial:
    """The embedded model at 0.75 of its vision FLOPs, 1,800 questions."""
    only = {"methods": ["taylor"], "budgets": [0.75], "scopes": ["vision"], "metrics": ["flops", "accuracy"]}
    return spec.read("reference", tuning="none", **only).trials()[-1]


@pytest.fixture(scope="module")
def further(trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The same trial on questions about new images."""
    folder = tmp_path_factory.mktemp("further")
    tasks = trial.questions.tasks
    for task in tasks:
        path = folder / task / "validation.parquet"
        path.parent.mkdir()
        pyarrow.parquet.write_table(sets.table(task, "further", FURTHER), path)
    return replace(trial, questions=Questions(tuple(str(folder / task) for task in tasks)))


@pytest.fixture(scope="module")
def measure() -> Measure:
    """A trial's record and samples when the code has this much noise; each is made once."""
    worker, solve = Worker("cpu"), solver.solve
    made: dict[tuple[str, float], tuple[Record, pyarrow.Table]] = {}

    def run(trial: Trial, noise: float) -> tuple[Record, pyarrow.Table]:
        def noisy(vlm: Any, ranking: Ranking, asked: Any) -> Any:
            random = np.random.default_rng(0)
            scores = {}
            for key, score in ranking.scores.items():
                assert isinstance(score, Additive)
                factors = np.exp(noise * random.standard_normal(len(score.damage)))
                scores[key] = Additive(tuple((np.array(score.damage) * factors).tolist()))
            return solve(vlm, Ranking(scores, ranking.log), asked)

        key = (trial.id, noise)
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(solver, "solve", noisy)
                found, samples = worker.run(trial)
            assert found.status == "ok" and samples is not None, found.error
            made[key] = (found, samples)
        return made[key]

    return run


def gated(measure: Measure, trial: Trial, noise: float, folder: Path) -> Gate:
    """The gate between the trial's record before and after the change."""
    for side, own in (("old", 0.0), ("new", noise)):
        record.write(folder / side / trial.board, *measure(trial, own))
    return compare(
        str(folder / "old"), str(folder / "new"), Limits(flops=1.02)
    )  # a plan lands within 1 % of its budget


@pytest.mark.parametrize(("noise", "says", "loss"), [(HARMFUL, "fail", 0.03), (HARMLESS, "pass", 0.0)])
def test_the_gate_says_what_is_true(
    measure: Measure, trial: Trial, further: Trial, tmp_path: Path, noise: float, says: str, loss: float
) -> None:
    answers = [measure(further, own)[1] for own in (0.0, noise)]
    true = stats.difference(stats.pair(*answers))
    assert true.questions >= 10_000 and -true.estimate == pytest.approx(loss, abs=0.01), true
    found = gated(measure, trial, noise, tmp_path)
    assert (found.verdict, found.metrics) == (says, {"accuracy": says, "flops": "pass"}), (true, found)


def test_forty_questions_do_not_settle_it(measure: Measure, trial: Trial, tmp_path: Path) -> None:
    found = gated(measure, replace(trial, questions=Questions(("mini_gqa",), limit=40)), HARMFUL, tmp_path)
    cost = found.trials[0].findings["accuracy"].cost
    assert found.verdict == "inconclusive" and cost and cost.needed and cost.needed > 40
