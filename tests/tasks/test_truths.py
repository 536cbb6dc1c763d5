"""One answer in several spellings is one answer: for the label, for the floor, on the page; and what cannot score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import tasks
from harness.tasks import data, truths
from tests.support.flips import examples_of
from tests.support.question_files import asked, question_rows, write_parquet

SPELLINGS = ["Yes", "yes", "YES.", "no", "no"]
WORDS = [
    "yes",
    "Yes",
    "no",
    "the",
    "a",
    "An",
    "two",
    "2",
    "dont",
    "don't",
    "1,000",
    "U.S.",
    "naïve",
    "ﬁ",
    "é",
    "ten",
    "10",
]
PIECES = st.sampled_from([*WORDS, "-", ".", ",", "'s", "red/blue", "  ", "\n", "\t", "?", "3.5"])
ANSWERS = st.lists(PIECES, min_size=1, max_size=4).map(" ".join)


def doc_of(form: str, answers: list[str]) -> dict[str, Any]:
    """A question in the columns of a form, with an annotator for each answer, at least ten."""
    if form == "mini_gqa":
        return {"question_id": "1", "question": "?", "answer": answers[0]}
    given: list[Any] = answers
    if form == "mini_vqav2":
        given = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]
    return {"question_id": "1", "question": "?", "answers": truths.annotators(given)}


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """lmms-eval's task of each form."""
    from harness.tasks import suite

    made = {}
    for form in ("mini_gqa", "mini_textvqa", "mini_vqav2"):
        path = write_parquet(tmp_path_factory.mktemp("forms") / "a.parquet", question_rows(form, 1))
        made[form] = suite.local(data.source("t", path, "validation", None), "validation")
    return made


@pytest.mark.parametrize("form", ["mini_gqa", "mini_textvqa", "mini_vqav2"])
@given(ANSWERS, ANSWERS)
def test_normal_forms_are_the_scorers_own(scorers: dict[str, Any], form: str, truth: str, answer: str) -> None:
    """Two answers have one normal form exactly where the scorer gives one full marks for the other, stripped."""
    doc = doc_of(form, [truth])
    normal = truths.normal(doc)
    score = scorers[form].process_results(doc_of(form, [truth]), [answer])["exact_match"]
    assert (float(score) == 1.0) == (normal(truth) == normal(answer.strip()))


@given(st.lists(ANSWERS, min_size=1, max_size=12))
def test_no_answer_is_more_common_than_the_most_common_one(answers: list[str]) -> None:
    for form in ("mini_textvqa", "mini_vqav2"):
        doc = doc_of(form, answers)
        forms = [truths.normal(doc)(text) for text in truths.texts(doc)]
        best = truths.most_common(doc)
        assert best in answers and forms.count(truths.normal(doc)(best)) == max(map(forms.count, forms))
        ranked = truths.ranked(truths.texts(doc), truths.normal(doc))
        assert len({truths.normal(doc)(text) for text in ranked}) == len(ranked) == len(set(forms))


SAME: dict[str, tuple[str, list[str], str]] = {
    "the reported one": ("mini_textvqa", SPELLINGS, "Yes"),
    "of VQAv2": ("mini_vqav2", SPELLINGS, "Yes"),
    "numbers in words": ("mini_vqav2", ["two", "2", "2", "three", "three"], "2"),
    "articles": ("mini_textvqa", ["a dog", "dog", "the dog.", "cat", "cat"], "a dog"),
    "contractions": ("mini_vqav2", ["dont", "don't", "don't", "do", "do"], "don't"),
    "marks": ("mini_textvqa", ["t-shirt", "t shirt", "shirt", "shirt", "t shirt"], "t shirt"),
    "spaces": ("mini_textvqa", ["stop  sign", "stop sign", "Stop\nsign", "stop", "stop"], "stop  sign"),
    "a tie goes to the first": ("mini_textvqa", ["no", "Yes", "yes", "No"], "no"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_label_for_calibration_is_the_most_common_answer(tmp_path: Path, name: str) -> None:
    form, answers, label = SAME[name]
    given: list[Any] = answers
    if form == "mini_vqav2":
        given = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]
    path = write_parquet(tmp_path / "a.parquet", [{**row, "answers": given} for row in question_rows(form, 5)])
    drawn = tasks.samples(asked([str(path)], "calibration"), 3, 0)
    assert [sample.answer for sample in drawn] == [label] * 3


@pytest.mark.parametrize("images", [True, False])
def test_the_floor_counts_spellings_as_one(tmp_path: Path, images: bool) -> None:
    """Over questions too: the constant is "yes" in whatever spelling, not "no", which is as often written so."""
    truth = [["Yes"] * 10, ["yes"] * 10, ["YES."] * 10, ["no"] * 10, ["no"] * 10, ["maybe"] * 10]
    rows = question_rows("mini_textvqa", 2)
    rows = [{**row, "answers": answers} for row, answers in zip(rows, truth, strict=True)]
    folder = write_parquet(tmp_path / "set" / "validation.parquet", rows).parent
    floor = tasks.majority(asked([str(folder)]), images=images)
    assert tasks.summary(floor)["mean"] == 0.5 and set(floor["answer"].to_pylist()) == {"Yes"}
    gqa = [{**row, "answer": answers[0]} for row, answers in zip(question_rows("mini_gqa", 2), truth, strict=True)]
    folder = write_parquet(tmp_path / "gqa" / "validation.parquet", gqa).parent
    assert tasks.summary(tasks.majority(asked([str(folder)]), images=images))["mean"] == 0.5


def test_the_page_shows_spellings_as_one_truth(tmp_path: Path) -> None:
    rows = [{**row, "answers": [*SPELLINGS, "perhaps"]} for row in question_rows("mini_textvqa", 2)]
    shown = examples_of(tmp_path, rows, range(6)).questions
    assert len(shown) == 4 and all(question["truth"] == ["Yes", "no", "perhaps"] for question in shown)
