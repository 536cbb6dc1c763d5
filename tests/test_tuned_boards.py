"""Tuning and the control on a board: read, run, recorded and reported; what is not tuned is as it ever was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_sweep import Run, read_board

from harness import record, spec
from harness.report.tables import board_frame
from harness.types import InputError, Tuning

SHORT: dict[str, Any] = {"samples": 4, "steps": 2, "batch": 2}
FULL = {"method": "full", **SHORT}
METHODS: list[Any] = [
    "magnitude",
    {"method": "magnitude", "tuning": FULL},
    {"method": "magnitude", "tuning": FULL, "control": "random-units"},
    {"method": "magnitude", "tuning": {**FULL, "rounds": 2}},
    {"method": "magnitude", "tuning": {"method": "refit", "samples": 4}},
]
LABEL = "full-kl-2 samples=4 batch=2"


@pytest.fixture(scope="module")
def run(tiny_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("tuned")
    metrics = ["flops", "accuracy", "floors", "fidelity"]
    board = read_board(root, tiny_folder, questions, METHODS, metrics=metrics, limit=6, scopes=["all"])
    return Run(board, root / "results", inline=True)


def found(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    records, problems = record.load(run.results / "small")
    assert not problems and not run.outcome.failed
    cut = [made for made in records if made["trial"]["method"] != "none"]
    return {(made["trial"]["variant"], made["trial"]["tuning"]): made for made in cut}


def test_every_kind_of_trial_is_run_and_recorded(run: Run) -> None:
    records = found(run)
    control = "control=random-units"
    assert set(records) == {
        ("", "none"), ("", LABEL), (control, LABEL), ("", f"{LABEL} rounds=2"), ("", "refit samples=4"),
    }  # fmt: skip
    tuned = records["", LABEL]
    assert tuned["trial"]["recovery"] == {
        "method": "full", "loss": "kl", "samples": 4, "steps": 2, "batch": 2, "rate": 3e-4, "rank": 16, "rounds": 1,
    }  # fmt: skip
    assert tuned["trial"]["regime"] == "training-free"
    assert (tuned["cost"]["tuning_steps"], tuned["cost"]["tuning_samples"]) == (2, 4) and tuned["cost"]["tuning_s"] > 0
    assert [[point["step"] for point in curve] for curve in tuned["log"]["tuning"]] == [[1, 2]]
    plain = records["", "none"]
    assert not {"recovery", "control"} & plain["trial"].keys()
    assert "tuning_s" not in plain["cost"] and "tuning" not in plain["log"]
    for made in records.values():
        assert record.identity(made) == made["id"]


def test_tuning_changes_weights_not_the_plan(run: Run) -> None:
    records = found(run)
    plan = records["", "none"]["plan"]
    assert plan == records["", LABEL]["plan"] == records["", "refit samples=4"]["plan"]
    control = records["control=random-units", LABEL]
    assert control["plan"] != plan and control["plan"]["achieved"] == plan["achieved"]
    for block, kinds in plan["blocks"].items():
        for kind, kept in kinds.items():
            assert len(control["plan"]["blocks"][block][kind]) == len(kept)
    assert control["trial"]["control"] == "random-units" and control["trial"]["role"] == "reference"


def test_rounds_reach_the_same_budget(run: Run) -> None:
    made = found(run)["", f"{LABEL} rounds=2"]
    assert made["plan"]["requested"] == 0.5
    assert made["metrics"]["flops"]["kept"] == pytest.approx(0.5, rel=0.01)
    assert made["metrics"]["flops"]["kept"] == pytest.approx(made["plan"]["achieved"], rel=1e-6)
    assert len(made["log"]["tuning"]) == 2 and made["cost"]["tuning_steps"] == 2


def test_floors_and_fidelity_are_columns(run: Run) -> None:
    records = record.load(run.results / "small")[0]
    frame = board_frame(records)
    assert list(frame.columns)[-5:] == ["status", "gain_over_blind", "flips", "kl_first_token", "collapse"]
    by_id = {made["id"]: made["metrics"] for made in records}
    for row in frame.to_dict("records"):
        own = by_id[row["trial"]]
        assert row["gain_over_blind"] == own["floors"]["gain_over_blind"]["mean"]
        assert row["flips"] == own["fidelity"]["flips"] and row["kl_first_token"] >= 0
        assert row["collapse"] == ", ".join(own["accuracy"]["collapse"])
    dense = frame[frame["method"] == "none"].iloc[0]
    assert dense["flips"] == 0 and dense["kl_first_token"] == pytest.approx(0, abs=1e-6)
    curves = set(frame["curve"])
    assert {"magnitude", f"magnitude {LABEL}", f"magnitude control=random-units {LABEL}"} <= curves


def test_a_broken_model_has_a_badge() -> None:
    from test_report import failed

    made = failed("random", "vision", 0.5)
    made["error"] = {"type": "FloatingPointError", "message": "the model's logits are NaN or Inf"}
    frame = board_frame([made, failed("taylor", "vision", 0.5)])
    assert dict(zip(frame["method"], frame["collapse"], strict=True)) == {"random": "not finite", "taylor": ""}


def test_ids_know_the_tuning_and_only_the_tuned(run: Run) -> None:
    trials = run.board.trials()
    assert len({spec.trial_id(trial) for trial in trials}) == len(trials) == 6
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
        ({"tuning": {**FULL, "loss": "mse"}}, "tuning.loss: unknown value 'mse'.*answers, kl"),
        ({"tuning": {"method": "refit", "steps": 3}}, "tuning: steps does not apply to method refit"),
        ({"tuning": {**FULL, "rank": 3}}, "tuning: rank does not apply to method full"),
        ({"tuning": "full"}, "tuning: "),
        ({"tuning": {**FULL, "samples": 500}}, "tuning.samples: 500 of 500 fall to task"),
        ({"methods": [{"method": "random", "tuning": {**FULL, "x": 1}}]}, "methods.0.tuning: unknown key 'x'"),
        ({"methods": [{"method": "random", "control": "random"}]}, "methods.0.control: unknown value 'random'"),
        ({"methods": ["random", {"method": "random", "tuning": {"method": "none"}}]}, "methods: random is named twice"),
    ],
)
def test_a_bad_tuning_is_one_line_that_names_file_and_key(read: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"board.yaml: .*{words}") as error:
        read(**changes)
    assert "\n" not in str(error.value)
