"""The best choice of a budget: of everything that fits, at equal cost, and only what was measured."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest

from harness.records.record import Record
from harness.report import choices
from harness.report.frame import board_frame
from harness.types import InputError
from tests.support.records import board_record, failed_record

TUNED: dict[str, Any] = {"recovery": {"method": "full"}}


def trial(
    method: str,
    mean: float,
    speedup: float = 1.5,
    budget: float = 0.5,
    kept: float = 0.0,
    **changes: Any,
) -> Record:
    accuracy = {"mean": mean, "lo": mean - 0.02, "hi": mean + 0.02, "tasks": {}}
    metrics = {"flops": {"kept": kept or budget}, "latency": {"speedup": speedup}, "accuracy": accuracy}
    return board_record(method, budget=budget, metrics=metrics, **changes)


def frame(*records: Record) -> pd.DataFrame:
    return board_frame([board_record(), *records])


def name(choice: choices.Choice | None) -> str | None:
    return choice and choice.name


def test_the_most_accurate_wins_and_what_has_no_recovery_among_equals() -> None:
    rows = frame(trial("taylor", 0.8, **TUNED), trial("wanda", 0.8), trial("flap", 0.7, speedup=2.0))
    assert name(choices.best(rows, 0.5)) == "wanda"


def test_training_is_a_choice_only_if_it_is_wanted() -> None:
    rows = frame(trial("taylor", 0.8), trial("wanda", 0.9, **TUNED), trial("flap", 0.85, recovery={"method": "refit"}))
    tuned, plain = choices.best(rows, 0.5), choices.best(rows, 0.5, training=False)
    assert (name(tuned), tuned and tuned.trains) == ("wanda", True)
    assert (name(plain), plain and plain.trains) == ("flap", False)
    alone = choices.best(frame(trial("wanda", 0.9, **TUNED)), 0.5, training=False)
    assert alone is None
    trained = choices.best(frame(trial("l0_gates", 0.9, regime="trained, refit")), 0.5)
    assert trained and trained.trains  # the method's own training, refitted or not


def test_costs_are_equal() -> None:
    """A model of 0.9 does not fit into 0.5, and one of 0.2 does not compete with one of 0.5 that fits."""
    rows = frame(trial("taylor", 0.9, budget=0.9), trial("wanda", 0.5, budget=0.5), trial("flap", 0.6, budget=0.2))
    assert [name(choices.best(rows, budget)) for budget in (1.0, 0.6, 0.497, 0.3, 0.1)] == [
        "taylor", "wanda", "wanda", "flap", None,
    ]  # fmt: skip


def test_what_failed_or_is_of_another_scope_is_no_choice() -> None:
    rows = frame(failed_record("flap", budget=0.5), trial("wanda", 0.9, scope="vision"), trial("taylor", 0.4))
    assert name(choices.best(rows, 0.5)) == "taylor"
    assert name(choices.best(rows, 0.5, scope="vision")) == "wanda"


def test_seeds_count_as_one_choice_by_their_mean() -> None:
    lucky = [trial("random", mean, seed=seed) for seed, mean in enumerate((0.9, 0.5, 0.5))]
    assert name(choices.best(frame(*lucky, trial("taylor", 0.7)), 0.5)) == "taylor"
    choice = choices.best(frame(*lucky), 0.5)
    assert choice and choice.accuracy == pytest.approx(1.9 / 3) and choice.trial == lucky[0].id


def test_the_table_is_of_boards_that_compare_kinds() -> None:
    heads = [trial("wanda", 0.8, units="layers"), trial("wanda", 0.9, units="layers", **TUNED)]
    assert choices.table(frame(*heads)) == []
    both = trial("wanda", 0.7), trial("wanda", 0.3, budget=0.2)
    shown = choices.table(frame(*heads, *both))
    assert [(choice.units, choice.trains, choice.budget) for choice in shown] == [
        ("layers", False, 0.5), ("layers", True, 0.5), ("both", False, 0.2),
    ]  # fmt: skip
    text = choices.text(shown)
    assert text.count("\n") == 4 and f"`infoprune export {shown[0].trial} my-model`" in text


def test_unknown_figures_are_dashes() -> None:
    choice = choices.Choice(0.5, "taylor", "none", "both", 0.8, math.nan, math.nan, math.nan, math.nan, "abc")
    assert choice.cells[3:7] == ["none", "80.0 (too few images)", "–", "–"]
    assert json.loads(json.dumps(choice.to_json(), allow_nan=False))["speedup"] is None


def test_a_budget_in_time_counts_by_the_flops_that_it_keeps() -> None:
    slow = trial("taylor", 0.9, kept=0.7)
    assert name(choices.best(frame(slow, trial("wanda", 0.5)), 0.5)) == "wanda"


def test_a_share_of_the_heads_alone_is_no_share_of_the_scope() -> None:
    rows = frame(trial("michel", 0.95, units="heads"), trial("dgmr", 0.9, units="ffn"), trial("taylor", 0.5))
    assert name(choices.best(rows, 0.5)) == "taylor"


def test_records_of_older_forms_of_a_method_are_no_choice() -> None:
    assert name(choices.best(frame(trial("infoprune", 0.9, regime="repaired"), trial("taylor", 0.5)), 0.5)) == "taylor"


def test_fewer_bits_save_no_flops() -> None:
    rows = frame(trial("wanda", 0.9, recovery={"method": "refit", "weights": "int8"}), trial("taylor", 0.5))
    assert name(choices.best(rows, 0.5)) == "taylor"


def test_recommend_leaves_the_boards_that_chose_options_out() -> None:
    boards = {
        "choosing": [trial("magnitude", 0.95, board="choosing", split="dev")],
        "many": [trial("taylor", 0.8, board="many")],
        "other": [trial("wanda", 0.7, board="other")],
    }
    rows = pd.concat([board_frame([board_record(board=key), *records]) for key, records in boards.items()])
    board, choice = choices.recommend(rows, "reference", 0.5)
    assert (board, choice.name) == ("many", "taylor")
    assert choices.recommend(rows.loc[rows.board == "choosing", :], "reference", 0.5)[0] == "choosing"


@pytest.mark.parametrize(
    ("model", "budget", "says"),
    [("referense", 0.5, "did you mean 'reference'"), ("reference", 0.3, "no board has a trial in scope all")],
)
def test_what_no_record_answers_is_refused(model: str, budget: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choices.recommend(frame(trial("taylor", 0.8)), model, budget)
