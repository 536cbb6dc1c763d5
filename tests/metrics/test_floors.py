"""Floors and collapse: what a score is worth when the model does not look, and answers that are none."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from harness import tasks
from harness.metrics import accuracy, floors
from harness.tasks import adapter
from harness.tasks.adapter import Adapter
from harness.types import VLM, InputError, Trial
from tests.support.answers import TASK_NAMES, answers_of
from tests.support.contexts import Attached
from tests.support.question_files import asked, question_rows, rows_asked, write_parquet
from tests.support.trials import dense_trial


def test_majority_is_the_best_constant_here(sets: Path):
    """red, 2 and yes are equally common: any of them is right for a third of the questions."""
    table = tasks.majority(asked(TASK_NAMES, "validation", None))
    found = tasks.summary(table)
    assert found["mean"] == pytest.approx(1 / 3) and {own["n"] for own in found["tasks"].values()} == {24}
    for task in TASK_NAMES:
        own = [row for row in table.to_pylist() if row["task"] == task]
        assert len({row["answer"] for row in own}) == 1 and sum(row["score"] for row in own) == 8


def test_majority_counts_the_asked_questions_only(tmp_path: Path):
    few = [{**row, "answer": "blue" if n < 5 else "red"} for n, row in enumerate(question_rows("mini_gqa", 10))]
    path = str(write_parquet(tmp_path / "mine.parquet", few))
    table = tasks.majority(asked([path], "validation", None))
    truth = [few[i]["answer"] for i in rows_asked(path, "validation", None)]
    common = max(set(truth), key=truth.count)
    assert table["answer"].to_pylist() == [common] * len(truth)
    assert table["score"].to_pylist() == [float(answer == common) for answer in truth]


@hypothesis.given(st.lists(st.sampled_from("abcdefgh"), min_size=2).filter(lambda ids: len(set(ids)) > 1))
def test_shuffling_leaves_no_image_where_it_was(ids: list[str]):
    found = [ids[partner] for partner in adapter.partners(ids)]
    moved = dict(zip(ids, found, strict=True))
    assert found == [moved[own] for own in ids]  # all questions of an image see the same one
    assert all(own != other for own, other in moved.items())
    assert sorted(moved.values()) == sorted(moved)
    assert adapter.partners(ids) == adapter.partners(ids)


def test_one_image_cannot_be_shuffled():
    with pytest.raises(InputError, match="task t: has one image only"):
        adapter.partners(["a", "a"], "t")


def test_shuffled_shows_another_image_of_the_task(sets: Path, talker: VLM):
    """As if the data had been written with exchanged images."""
    table = tasks.evaluate(talker, asked(["mini_gqa"], "validation", None), images="shuffled")[1].to_pylist()
    ids = [row["image_id"] for row in table]
    partners = adapter.partners(ids)
    images = {row["imageId"]: row["image"] for row in question_rows("mini_gqa", 8)}
    exchanged = [
        {**row, "image": images[ids[partner]]}
        for row, partner in zip(question_rows("mini_gqa", 8), partners, strict=True)
    ]
    folder = sets.parent / "exchanged"
    write_parquet(folder / "validation.parquet", exchanged)
    assert tasks.evaluate(talker, asked([str(folder)], "validation", None))[1]["answer"].to_pylist() == [
        row["answer"] for row in table
    ]
    assert answers_of(talker) != answers_of(talker, images="shuffled") != answers_of(talker, images="blank")


def asking(*names: str, limit: int | None = None) -> Trial:
    return dense_trial(*names, limit=limit, metrics=("accuracy",))


def test_gain_over_blind_is_the_difference(sets: Path, talker: VLM):
    seeing = accuracy.measure(talker, talker, asking(*TASK_NAMES), Attached())
    found = floors.measure(talker, talker, asking(*TASK_NAMES), Attached())
    assert set(found) == {"majority", "blank", "shuffled", "gain_over_blind"}
    gain = found["gain_over_blind"]
    assert gain["mean"] == pytest.approx(seeing["mean"] - found["blank"]["mean"])
    assert gain["lo"] <= gain["mean"] <= gain["hi"]


def test_one_image_has_no_shuffled_floor(sets: Path, tiny: VLM):
    assert set(floors.measure(tiny, tiny, asking("mini_gqa", limit=2), Attached())) == {
        "majority", "blank", "gain_over_blind",
    }  # fmt: skip


def made(*texts: str, overlong: int = 0) -> tasks.Answers:
    table = pa.table({"task": ["t"] * len(texts), "answer": list(texts)})
    return tasks.Answers(table, tuple(i < overlong for i in range(len(texts))))


@pytest.mark.parametrize(
    ("found", "name", "share"),
    [
        (made("", "red", "", "blue"), "empty", 0.5),
        (made(*["yes"] * 27, "no", "no", "two"), "constant", 0.9),
        (made(*["yes"] * 19), "constant", 0.0),  # too few to say
        (made("red red red", "red, red, red", "redred red", "red red"), "repeating", 0.5),
        (made("!!!!!!!!", "abcabcabcabcabcabc", "10000", "aaa"), "repeating", 0.5),
        (made("a", "b", "c", "d", overlong=1), "overlong", 0.25),
    ],
)
def test_degenerate_answers_by_hand(found: tasks.Answers, name: str, share: float):
    assert accuracy.degenerate(found)[name] == pytest.approx(share)


@pytest.mark.parametrize(
    ("says", "signs"),
    [("red", ["constant"]), ("", ["empty", "constant"]), ("red red red red", ["constant", "repeating"])],
)
def test_collapse_is_named(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch, says: str, signs: list[str]):
    monkeypatch.setattr(Adapter, "_answer", lambda self, batch, prepared: [says for _ in batch])
    own = accuracy.measure(talker, talker, asking(*TASK_NAMES), Attached())
    assert own["collapse"] == signs


def test_answers_that_do_not_end_are_overlong(sets: Path, talker: VLM):
    found = tasks.answer(talker, asked(TASK_NAMES, "validation", 9))
    tokenizer = talker.processor.tokenizer
    assert any(found.overlong) and len(found.overlong) == 27
    for text, cut in zip(found.table["answer"].to_pylist(), found.overlong, strict=True):
        if not cut:
            assert len(tokenizer(text)["input_ids"]) < adapter.LONGEST
