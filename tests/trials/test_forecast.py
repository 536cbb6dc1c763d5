"""The estimate of a sweep: what it counts, and that it is measured on the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.records.record import Cost, MethodFacts, Record
from harness.trials import forecast, spec
from harness.trials.forecast import FEW, RECOVERY, WARM, Rates
from harness.trials.sweep import plan
from harness.types import InputError, Tuning

RATES = Rates(answer=1.0, forward=0.1, learn=10.0, timed=1000.0, count=1e5)


def seconds(board: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **changes: Any) -> float:
    """The estimate of a board with made-up rates whose digits do not mix."""
    monkeypatch.setattr(forecast, "measured_rates", lambda board, trials, device: RATES)
    checked = spec.check({**board, "methods": ["magnitude"], "floors": False, **changes}, Path("board.yaml"))
    found = forecast.estimate(checked, plan(checked, tmp_path / "none"))
    assert found is not None
    return found


def test_each_part_is_counted_once(board: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def total(**changes: Any) -> float:
        return seconds(board, monkeypatch, tmp_path, **changes)

    plain = {"metrics": ["flops"], "budgets": [0.5], "scopes": ["all"], "calibration": {"samples": 4}}
    assert total(**plain) == pytest.approx(RATES.count + 4 * RATES.learn)  # dense: nothing to count or rank
    two = {**plain, "budgets": [0.5, 0.25]}
    assert total(**two) == pytest.approx(2 * RATES.count + 4 * RATES.learn)  # one ranking for both budgets
    assert total(**two, methods=["infoprune"]) == pytest.approx(
        2 * (RATES.count + RATES.learn * (4 + FEW * spec.registry.method("infoprune").steps({})))
    )  # which trains anew for each
    timed = {**plain, "metrics": ["flops", "latency"], "latency": {"batches": [1], "repeats": 3}}
    assert total(**timed) - total(**plain) == pytest.approx((WARM + 3) * RATES.timed * (2 + 1.75))
    asked = {**plain, "metrics": ["flops", "accuracy"], "limit": 4}
    assert total(**asked) - total(**plain) == pytest.approx(4 * RATES.answer * (1 + 0.75))
    refit = {**plain, "tuning": "refit"}
    assert total(**refit) - total(**plain) == pytest.approx(RECOVERY * 4 * RATES.forward)
    tuned = {**plain, "tuning": {"method": "full", "steps": 5, "batch": 2, "samples": 4}}
    assert total(**tuned) - total(**plain) == pytest.approx(5 * 2 * (RATES.learn + RATES.forward))


def test_a_started_board_is_estimated_by_method_then_by_recovery(board: dict[str, Any], tmp_path: Path) -> None:
    """A ranking is billed to one of the trials that it serves, so means count and not medians."""
    whole = {"methods": ["magnitude", "svd"], "budgets": [0.75, 0.5, 0.25], "floors": False, "scopes": ["vision"]}
    checked = spec.check({**board, **whole}, Path("board.yaml"))
    trials = {(trial.method, trial.budget): trial for trial in checked.trials()}
    took = {("none", 1.0): 3.0, ("magnitude", 0.75): 100.0, ("magnitude", 0.5): 20.0}
    about = MethodFacts("", "", "reference", "none")
    finished = [Record(trials[key], about, cost=Cost(total_s=seconds)) for key, seconds in took.items()]
    left = [trials["magnitude", 0.25], trials["svd", 0.5]]
    assert forecast.from_records(left, finished) == pytest.approx(60.0 + 41.0)
    refitted = spec.check({**board, **whole, "tuning": "refit"}, Path("board.yaml")).trials()[-1]
    assert forecast.from_records([*left, refitted], finished) is None
    gentler, other = (replace(refitted, tuning=Tuning("full", rate=rate, steps=9)) for rate in (1e-4, 1e-3))
    trained = Record(other, about, cost=Cost(total_s=500.0))
    assert forecast.from_records([gentler], [*finished, trained]) == 500.0, "another rate takes as long"


def test_workers_share_it_and_other_machines_have_none(
    board: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forecast, "measured_rates", lambda board, trials, device: RATES)
    checked = spec.check(board, Path("board.yaml"))
    todo = plan(checked, tmp_path / "none")
    one, two = (forecast.estimate(checked, todo, jobs=jobs) for jobs in (1, 2))
    assert one and two == pytest.approx(one / 2)
    assert forecast.estimate(checked, todo, device=None) is None
    with pytest.raises(InputError, match="--device"):
        forecast.estimate(checked, todo, device="cuda:7")


def test_rates_are_those_of_the_model(board: dict[str, Any]) -> None:
    checked = spec.check({**board, "metrics": ["flops", "latency", "accuracy"]}, Path("board.yaml"))
    found = vars(forecast.measured_rates(checked, checked.trials(), "cpu"))
    assert found.pop("gpu") is False and all(0 < value < 60 for value in found.values()), found
    assert found["forward"] < found["learn"]
    no_answers = spec.check({**board, "metrics": ["flops"], "floors": False}, Path("board.yaml"))
    found = vars(forecast.measured_rates(no_answers, no_answers.trials(), "cpu"))
    assert found["answer"] == found["timed"] == 0
