"""Things, scenes and questions of the pretrained model's sets."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reference.pretrained.batches import EVEN, Mix, draw_example
from harness.reference.pretrained.questions import FORMS, ask, propose
from harness.reference.pretrained.scenes import SIDE, Item, Scene, draw
from harness.reference.pretrained.sets import SIZES_SHIPPED, items, template
from harness.reference.pretrained.things import ALSO, ASKED_KINDS, MASS, NAMES, RESERVED, THINGS, may_meet
from harness.reference.pretrained.train import Recipe
from harness.tasks import answers, catalogue, data
from harness.types import Questions
from tests.support.painters import Plain


def test_the_catalogue_is_large_and_a_fifth_is_reserved() -> None:
    assert len(NAMES) >= 150 and len({thing.emoji for thing in THINGS.values()}) == len(NAMES)
    assert len(RESERVED) == len(NAMES) // 5
    assert {thing.kind for thing in THINGS.values()} >= set(ASKED_KINDS) and all(
        thing.kind for thing in THINGS.values()
    )
    assert {THINGS[name].kind for name in ("dog", "dolphin", "whale", "zebra", "mosquito")} == {"animal"}
    assert all(thing.kind == "animal" for thing in THINGS.values() if thing.legs)
    assert THINGS["cow"].gives == "milk" and THINGS["bat"].fly and not THINGS["horse"].fly
    assert THINGS["mouse"].several == "mice" and THINGS["butterfly"].several == "butterflies"
    assert THINGS["apple"].phrase == "an apple" and THINGS["scissors"].phrase == "scissors"


@given(st.integers(0, 10**6), st.booleans())
def test_reserved_things_never_meet_the_same_company_in_training_and_validation(seed: int, training: bool) -> None:
    scene = draw(random.Random(seed), writing=seed % 2 == 0, training=training)
    assert 1 <= len(scene.items) <= 6
    for item in scene.items:
        assert item.wide - 1 <= item.x <= SIDE - item.wide + 1 and item.high - 1 <= item.y <= SIDE - item.high + 1
        if item.name in RESERVED:
            company = {other.name for other in scene.items if other.thing and other.name != item.name}
            company |= {item.colour, scene.ground} - {""}
            assert all(may_meet(item.name, name, training=training) for name in company)
            assert not any(may_meet(item.name, name, training=not training) for name in company)


def _item(name: str, x: float, y: float, colour: str = "") -> Item:
    return Item("thing", name, colour, x, y, 20, 20)


def test_questions_have_the_answers_that_the_scene_gives() -> None:
    scene = Scene((_item("cow", 30, 40, "red"), _item("plane", 120, 20), _item("apple", 80, 140, "blue")), "white", 1)
    answers = {
        question.text: question.answer
        for task in FORMS
        for form in FORMS[task]
        for question in propose(scene, task, form, random.Random(0))
    }
    for text, answer in {
        "What is furthest to the left?": "cow",
        "What is on the blue plate?": "apple",
        "What color is the plate under the cow?": "red",
        "What color is the background?": "white",
        "How many things are there, not counting plates?": "3",
        "How many animals are there?": "1",
        "Is there a plane?": "yes",
        "Is the cow on the red plate?": "yes",
        "Is the cow on the blue plate?": "no",
        "Is the cow left of the plane?": "yes",
        "What is below the cow?": "apple",
        "Is the cow at the top or at the bottom?": "top",
        "Can the thing furthest to the right fly?": "yes",
        "What kind of thing is nearest to the top?": "vehicle",
        "What does the animal give?": "milk",
        "Does the thing on the red plate have four legs?": "yes",
    }.items():
        assert answers[text] == answer, text
    assert "Which of the things can be eaten?" not in answers  # as people would argue about the cow
    sign = Item("sign", "sign", "green", 80, 80, 60, 20, text="stop", font="DejaVuSans", points=36)
    read = {q.text: q.answer for q in ask(Scene((sign,), "gray", 1), ("things_textvqa",), random.Random(0), 9)}
    assert read["What does the sign say?"] == "stop" and read["Does the green sign say stop?"] == "yes"


def test_a_name_that_also_fits_something_else_is_neither_denied_nor_asked_for() -> None:
    """A taxi is a car too, and a pizza shows cheese: whoever says so is right."""
    things = (_item("taxi", 20, 60), _item("pizza", 140, 40))
    for more in ((), (_item("car", 60, 130),)):
        scene, asked = Scene((*things, *more), "white", 1), set[str]()
        for number in range(60):
            rng = random.Random(number)
            asked |= {q.text for task in FORMS for form in FORMS[task] for q in propose(scene, task, form, rng)}
        assert not [text for text in asked if re.search(r"\bthe car\b|many cars|there .*cheese", text)]
        assert more or not [text for text in asked if re.search(r"there .*\bcar\b|furthest to the left a car", text)]
    assert {*MASS, *ALSO, *(name for names in ALSO.values() for name in names)} <= set(NAMES)


def test_a_label_beside_a_sign_leaves_no_sign_unclear() -> None:
    label = replace(_item("dog", 40, 40), text="open", font="DejaVuSans", points=30)
    for colour, clear in (("white", False), ("green", True)):
        sign = Item("sign", "sign", colour, 110, 120, 40, 20, text="stop", font="DejaVuSans", points=36)
        asked = {q.text for q in propose(Scene((label, sign), "gray", 1), "things_textvqa", "word", random.Random(0))}
        assert "What does the sign say?" not in asked and "What does the label under the dog say?" in asked
        assert (f"What does the {colour} sign say?" in asked) == clear


@pytest.mark.parametrize("task", list(FORMS))
def test_sets_are_balanced_within_a_template(task: str) -> None:
    """The most common answer to a yes-or-no template is not much more common than the other."""
    forms: Counter[str] = Counter()
    asked: dict[str, Counter[str]] = {}
    for _, _, questions in items(task, "validation", 60, Plain()):
        for question in questions:
            forms[question.form] += 1
            asked.setdefault(template(question), Counter())[question.answer] += 1
    assert max(forms.values()) <= 2.5 * min(forms.values())
    for counts in asked.values():
        if set(counts) <= {"yes", "no"} and sum(counts.values()) >= 12:
            assert max(counts.values()) <= 0.67 * sum(counts.values()), asked


@pytest.mark.parametrize("task", list(FORMS))
def test_shipped_sets_are_whole_and_share_no_picture(task: str) -> None:
    seen: dict[str, str] = {}
    for split, images in SIZES_SHIPPED.items():
        path = data.REFERENCE / "things" / task / f"{split}.parquet"
        rows = pq.read_table(path, columns=["image"]).to_pylist()
        assert len(rows) == 3 * images
        for digest in {sha256(row["image"]["bytes"]).hexdigest() for row in rows}:
            assert seen.setdefault(digest, split) == split
    assert answers.majority(Questions((task,), "validation", None)) is not None
    assert task in catalogue.describe()


def test_training_asks_more_often_what_is_learned_slowest() -> None:
    """Every set is asked; the even mix of the curve asks things_vqav2 less than training does."""

    def shares(mix: Mix) -> Counter[str]:
        drawn = [draw_example(f"m{i}", Plain(), 8, mix=mix) for i in range(200)]
        asked = Counter(q.form.partition(".")[0] for example in drawn for q in example.questions)
        return Counter({name: n / asked.total() for name, n in asked.items()})

    even, taught = shares(EVEN), shares(Recipe().mix)
    assert set(even) == set(taught) == {"things_vqav2", "things_gqa", "things_textvqa"}
    assert taught["things_vqav2"] > 1.4 * even["things_vqav2"] and min(taught.values()) > 0.15
