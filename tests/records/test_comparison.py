"""What makes two trials comparable: everything but what a comparison is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.records.comparison import MACHINE, differing, pairs, terms
from harness.types import CalibrationSpec, LatencySpec, Loading, Questions, ReferenceInput, Trial, Tuning
from tests.support.records import board_record

TRIAL = board_record("taylor", "vision", 0.5).trial
ASKED = TRIAL.questions


def other(**changes: Any) -> Trial:
    return replace(TRIAL, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": 0.25},
        {"seed": 1},
        {"method": "magnitude"},
        {"options": {"norm": "l1"}},
        {"board": "another"},
        {"metrics": ("flops",)},
        {"calibration": CalibrationSpec(8)},
        {"latency": LatencySpec((1,), 5)},
        {"tuning": Tuning("full")},
        {"control": "random-units"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_compared_may_differ(changes: dict[str, Any]) -> None:
    assert other(**changes) != TRIAL and other(**changes).id != TRIAL.id
    assert terms(other(**changes)) == terms(TRIAL) and hash(terms(other(**changes))) == hash(terms(TRIAL))


SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"model": "another"},
    "tasks": {"questions": replace(ASKED, tasks=ASKED.tasks[:1])},
    "split": {"questions": replace(ASKED, split="dev")},
    "limit": {"questions": replace(ASKED, limit=None)},
    "dtype": {"dtype": "bfloat16"},
    "revision": {"loading": Loading(revision="0123abc")},
    "attention": {"loading": Loading(attention="eager")},
    "random_weights": {"loading": Loading(random_weights=True)},
}
CUTS: dict[str, dict[str, Any]] = {
    "scope": {"scope": "language"},
    "units": {"units": "heads"},
    "currency": {"currency": "params"},
    "align": {"align": 16},
    "input": {"reference_input": ReferenceInput((224, 224), "?")},
}


@pytest.mark.parametrize("key", [*SETTINGS, *CUTS])
def test_everything_else_has_to_agree(key: str) -> None:
    found, own = terms(other(**{**SETTINGS, **CUTS}[key])), terms(TRIAL)
    assert found != own
    assert (found.setting == own.setting) == (key in CUTS)
    assert (found.budget == own.budget) == (key not in ("currency", "align", "input"))


def test_dense_goes_with_all_terms_of_its_setting() -> None:
    dense = board_record().trial
    for scope in ("vision", "language", "all"):
        assert terms(other(scope=scope)).setting == terms(dense).setting


def test_no_two_terms_read_alike() -> None:
    settings = [str(terms(other(**changes)).setting) for changes in SETTINGS.values()]
    assert len({str(terms(TRIAL).setting), *settings}) == 1 + len(SETTINGS)
    budgets = [terms(other(**CUTS[key])).budget for key in ("currency", "align")]
    assert list(map(str, budgets)) == ["align=null currency=params", "align=16 currency=flops"]
    assert terms(other(**CUTS["input"])).budget.asked == "image=224x224 text=?"
    trial = other(questions=Questions(("a", "b"), "dev", 5), loading=Loading(attention="eager"))
    assert str(terms(trial).setting) == ("attention=eager dtype=float32 limit=5 model=reference split=dev tasks=a+b")
    assert pairs({"samples": 128, "tasks": ["a", "b"]}) == "samples=128 tasks=a+b"


# --- records ------------------------------------------------------------------------------------------------

ENV = {
    "machine": "a", "platform": "linux", "device": "cpu", "cpu": "Example CPU", "gpu": None, "threads": 2, "load": 0.1,
}  # fmt: skip
RECORD = replace(board_record("taylor", "vision", 0.5), env=ENV, hashes={"data": "d", "code": "c"})


def test_answers_to_the_same_questions_may_be_compared_whatever_the_machine() -> None:
    elsewhere = replace(RECORD, env={"cpu": "Another CPU"}, hashes={"data": "d", "code": "other"})
    assert differing(RECORD, RECORD, "answers") == differing(RECORD, elsewhere, "answers") == ""


def test_answers_to_other_questions_are_named_by_their_hashes() -> None:
    for data in ({"data": "e"}, {}):
        said = differing(RECORD, replace(RECORD, hashes=data), "answers")
        assert said == f"data differ (hash d and {data.get('data')}): other questions"
        assert differing(RECORD, replace(RECORD, hashes=data), "times") == ""


@pytest.mark.parametrize("key", MACHINE)
def test_times_of_another_machine_are_named_by_what_differs(key: str) -> None:
    changed = replace(RECORD, env={**ENV, key: "other"})
    assert differing(RECORD, changed, "times") == f"machines differ: {key} {ENV[key]} and other"
    assert differing(RECORD, changed, "answers") == ""
    without = replace(RECORD, env={name: value for name, value in ENV.items() if name != key})
    assert (differing(RECORD, without, "times") == "") == (ENV[key] is None)


def test_times_of_one_machine_may_be_compared() -> None:
    busier = replace(RECORD, env={**ENV, "load": 3.0})
    assert differing(RECORD, busier, "times") == ""
    several = replace(RECORD, env={**ENV, "cpu": "x", "threads": 4})
    assert differing(RECORD, several, "times") == "machines differ: cpu Example CPU and x, threads 2 and 4"
