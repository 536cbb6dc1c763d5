"""Tuning and the control on a board: read, run, recorded and reported; what is not tuned is as it ever was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.records import record
from harness.records.record import Failure, Record
from harness.report.frame import board_frame
from harness.trials import spec
from harness.types import InputError, Keep, Tuning
from tests.support.boards import FinishedSweep, read_board
from tests.support.records import failed_record

SHORT: dict[str, Any] = {"samples": 4, "steps": 2, "batch": 2}
FULL = {"method": "full", **SHORT}
METHODS: list[Any] = [
    "magnitude",
    {"method": "magnitude", "tuning": FULL},
    {"method": "magnitude", "tuning": FULL, "control": "random-units"},
    {"method": "magnitude", "tuning": {**FULL, "rounds": 2}},
    {"method": "magnitude", "tuning": "refit"},
]
LABEL = "full-kl-2 samples=4 batch=2"


@pytest.fixture(scope="module")
def run(tiny_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    root = tmp_path_factory.mktemp("tuned")
    metrics = ["flops", "accuracy", "floors", "fidelity"]
    board = read_board(root, tiny_folder, questions, METHODS, metrics=metrics, limit=6, scopes=["all"])
    return FinishedSweep(board, root / "results", inline=True)


def found(run: FinishedSweep) -> dict[tuple[str, str], Record]:
    records, problems = record.load(run.results / "small")
    assert not problems and not run.outcome.failed
    cut = [made for made in records if made.trial.method != "none"]
    return {(made.contestant.variant, str(made.trial.tuning)): made for made in cut}


def test_every_kind_of_trial_is_run_and_recorded(run: FinishedSweep) -> None:
    records = found(run)
    control = "control=random-units"
    assert set(records) == {
        ("", "none"), ("", LABEL), (control, LABEL), ("", f"{LABEL} rounds=2"), ("", "refit"),
    }  # fmt: skip
    tuned = records["", LABEL]
    assert tuned.to_json()["trial"]["recovery"] == {
        "method": "full", "loss": "kl", "samples": 4, "steps": 2, "batch": 2, "rate": 3e-4, "rank": 16, "rounds": 1,
    }  # fmt: skip
    regimes = {key: made.contestant.regime for key, made in records.items()}
    assert (regimes["", "none"], regimes["", "refit"]) == ("none", "refit")
    assert {regimes[key] for key in records if LABEL in key[1]} == {"tuned"}
    assert (tuned.cost.tuning_steps, tuned.cost.tuning_samples) == (2, 4) and (tuned.cost.tuning_s or 0) > 0
    assert [[point["step"] for point in curve] for curve in tuned.log["tuning"]] == [[1, 2]]
    plain = records["", "none"]
    assert not {"recovery", "control"} & plain.to_json()["trial"].keys()
    assert plain.cost.tuning_s is None and "tuning" not in plain.log
    for made in records.values():
        assert made.trial.id == made.id


def test_tuning_changes_weights_not_the_plan(run: FinishedSweep) -> None:
    records = found(run)
    plan = records["", "none"].plan
    assert plan is not None
    assert plan == records["", LABEL].plan == records["", "refit"].plan
    control = records["control=random-units", LABEL]
    assert control.plan is not None and control.plan != plan and control.plan.achieved == plan.achieved
    for key, part in plan.parts.items():
        other = control.plan.parts[key]
        assert isinstance(part, Keep) and isinstance(other, Keep) and len(other.indices) == len(part.indices)
    assert control.trial.control == "random-units" and control.contestant.role == "reference"


def test_rounds_reach_the_same_budget(run: FinishedSweep) -> None:
    made = found(run)["", f"{LABEL} rounds=2"]
    assert made.plan is not None and made.plan.requested == 0.5
    assert made.metrics["flops"]["kept"] == pytest.approx(0.5, rel=0.01)
    assert made.metrics["flops"]["kept"] == pytest.approx(made.plan.achieved, rel=1e-6)
    assert len(made.log["tuning"]) == 2 and made.cost.tuning_steps == 2


def test_floors_and_fidelity_are_columns(run: FinishedSweep) -> None:
    records = record.load(run.results / "small")[0]
    frame = board_frame(records)
    assert list(frame.columns)[-5:] == ["status", "gain_over_blind", "flips", "kl_first_token", "collapse"]
    by_id = {made.id: made.metrics for made in records}
    for row in frame.to_dict("records"):
        own = by_id[row["trial"]]
        assert row["gain_over_blind"] == own["floors"]["gain_over_blind"]["mean"]
        assert row["flips"] == own["fidelity"]["flips"] and row["kl_first_token"] >= 0
        assert row["collapse"] == ", ".join(own["accuracy"]["collapse"])
    dense = frame[frame["method"] == "none"].iloc[0]
    assert dense["flips"] == 0 and dense["kl_first_token"] == pytest.approx(0, abs=1e-6)
    curves = set(zip(frame["curve"], frame["regime"], strict=True))
    tuned = {("magnitude", f"tuned {LABEL}"), ("magnitude control=random-units", f"tuned {LABEL}")}
    assert {("magnitude", "none"), ("magnitude", "refit"), *tuned} <= curves


def test_a_broken_model_has_a_badge() -> None:
    error = Failure("FloatingPointError", "the model's logits are NaN or Inf")
    made = replace(failed_record("random", "vision", 0.5), error=error)
    frame = board_frame([made, failed_record("taylor", "vision", 0.5)])
    assert dict(zip(frame["method"], frame["collapse"], strict=True)) == {"random": "not finite", "taylor": ""}


def test_ids_know_the_tuning_and_only_the_tuned(run: FinishedSweep) -> None:
    trials = run.board.trials()
    assert len({trial.id for trial in trials}) == len(trials) == 6
    assert [str(trial.tuning) for trial in trials[:3]] == ["none", "none", LABEL]
    assert trials[1].content()["tuning"] == "none" and "recovery" not in trials[1].content()


@pytest.fixture
def read(board: dict[str, Any], tmp_path: Path) -> Any:
    def run(**changes: Any) -> spec.Board:
        path = tmp_path / "board.yaml"
        path.write_text(yaml.safe_dump({**board, **changes}))
        return spec.read(str(path))

    return run


def test_an_entrys_tuning_comes_before_the_boards(read: Any) -> None:
    methods = ["random", {"method": "magnitude", "tuning": {"method": "none"}}]
    dense, first, second = read(methods=methods, tuning=FULL).trials()
    assert (dense.tuning, second.tuning) == (Tuning(), Tuning())
    assert first.tuning == Tuning("full", samples=4, steps=2, batch=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tuning": {"method": "ful"}}, "tuning.method: unknown value 'ful'; did you mean 'full'"),
        ({"tuning": {"method": "full", "stepz": 3}}, "tuning: unknown key 'stepz'; did you mean 'steps'"),
        ({"tuning": {**FULL, "steps": 0}}, "tuning.steps: .*greater than or equal to 1"),
        ({"tuning": {**FULL, "rate": float("nan")}}, "tuning.rate: .*(finite|greater)"),
        ({"tuning": {**FULL, "loss": "mse"}}, "tuning.loss: unknown value 'mse'.*answers, answers\\+kl\\+hidden, kl"),
        ({"tuning": {"method": "refit", "steps": 3}}, "tuning: steps does not apply to method refit"),
        ({"tuning": {**FULL, "rank": 3}}, "tuning: rank does not apply to method full"),
        ({"tuning": "ful"}, "tuning.method: unknown value 'ful'"),
        ({"tuning": {**FULL, "samples": 500}}, "tuning.samples: task .* must supply 500 of the 500 samples"),
        ({"methods": ["cofi"], "tuning": FULL}, "methods: tuning.batch: cofi trains by itself.*steps of 16 questions"),
        ({"methods": [{"method": "random", "tuning": {**FULL, "x": 1}}]}, "methods.0.tuning: unknown key 'x'"),
        ({"methods": [{"method": "random", "control": "random"}]}, "methods.0.control: unknown value 'random'"),
        ({"methods": ["random", {"method": "random", "tuning": {"method": "none"}}]}, "methods: random is named twice"),
    ],
)
def test_a_bad_tuning_is_one_line_that_names_file_and_key(read: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"board.yaml: .*{words}") as error:
        read(**changes)
    assert "\n" not in str(error.value)


def test_a_contestant_may_have_other_budgets_than_the_rest(tmp_path: Path, tiny_folder: Path, questions: Path) -> None:
    methods: list[Any] = ["random", {"method": "magnitude", "budgets": [0.5, 0.9]}]
    board = read_board(tmp_path, tiny_folder, questions, methods, scopes=["all"], budgets=[0.75, 0.5])
    budgets = [(trial.method, trial.budget) for trial in board.trials()]
    assert budgets == [("none", 1.0), ("random", 0.75), ("random", 0.5), ("magnitude", 0.5), ("magnitude", 0.9)]
