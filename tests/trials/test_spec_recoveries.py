"""Recoveries on a board: how they are written, and the budgets that each is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.trials import spec
from harness.types import InputError, Tuning

Read = Callable[..., spec.Board]


@pytest.fixture
def read(board: dict[str, Any]) -> Read:
    """Read a small board with changes."""
    return lambda **changes: spec.check({**board, "limit": 7, **changes}, Path("board.yaml"))


def test_a_recovery_is_a_name_a_mapping_or_a_list_of_these(read: Read) -> None:
    spellings = ["bias", {"method": "bias"}, ["bias"], [{"method": "bias"}]]
    assert len({tuple(trial.id for trial in read(tuning=how).trials()) for how in spellings}) == 1
    several = read(
        methods=["magnitude"], tuning=["none", "bias", {"method": "full", "samples": 4, "steps": 3}]
    ).trials()
    assert [str(trial.tuning) for trial in several[1:4]] == ["none", "bias", "full-kl-3 samples=4"]
    assert len({(trial.scope, trial.budget) for trial in several[1:4]}) == 1, "one cut, recovered in each way in turn"
    refit = {"method": "refit", "rounds": 2}
    own = read(methods=["random", {"method": "magnitude", "tuning": "bias"}], tuning=["none", refit]).trials()
    used = {(trial.method, str(trial.tuning)) for trial in own[1:]}
    assert used == {("random", "none"), ("random", "refit rounds=2"), ("magnitude", "bias")}


def test_a_recovery_may_be_for_some_budgets(read: Read) -> None:
    deep = {"method": "full", "samples": 4, "budgets": [0.25]}
    gentle = {"method": "full", "samples": 4, "rate": 1e-4, "budgets": [0.5]}
    trials = read(methods=["magnitude"], budgets=[0.5, 0.25], tuning=["none", gentle, deep]).trials()[1:]
    assert {(trial.budget, trial.tuning.method, trial.tuning.rate) for trial in trials} == {
        (0.5, "none", Tuning.rate),
        (0.5, "full", 1e-4),
        (0.25, "none", Tuning.rate),
        (0.25, "full", Tuning.rate),
    }
    again = [{"method": "magnitude", "budgets": [budget]} for budget in (0.5, 0.25)]
    assert len(read(methods=again, scopes=["vision"]).trials()) == 3, "the same contestant, at one budget each"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tuning": []}, "tuning: "),
        ({"tuning": "refitt"}, "tuning.method: unknown value 'refitt'; did you mean 'refit'"),
        ({"tuning": ["bias", "bias"]}, "named twice with the same options and recovery"),
        ({"tuning": ["none", {"method": "bias", "steps": 3}]}, "steps does not apply to method bias"),
        ({"tuning": 3}, "tuning: "),
        ({"tuning": {"method": "bias", "budgets": []}}, "tuning.budgets: "),
        ({"tuning": {"method": "bias", "budgets": [0.5, 0.5]}}, "tuning.budgets: 0.5 is named twice"),
        (
            {
                "budgets": [0.5, 0.25],
                "tuning": [{"method": "bias", "budgets": [0.5]}, {"method": "refit", "budgets": [0.2]}],
            },
            "tuning.budgets: no recovery is for budget 0.25 of ",
        ),
        (
            {"budgets": [0.5, 0.25], "tuning": ["bias", {"method": "bias", "budgets": [0.25]}]},
            "is named twice with the same options and recovery at budget 0.25 of vision",
        ),
        ({"tuning": ["none", {"method": "bias", "budgets": [2]}]}, "tuning.1.budgets.0: "),
        ({"tuning": {"method": "bias", "budget": [0.5]}}, "tuning: unknown key 'budget'; did you mean 'budgets'?"),
        ({"tuning": ["bias", "refitt"]}, "tuning.1.method: unknown value 'refitt'; did you mean 'refit'"),
    ],
)
def test_a_bad_recovery_is_one_line_that_names_file_and_key(read: Read, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"board.yaml: .*{words}") as error:
        read(**changes)
    assert "\n" not in str(error.value)
