"""The question sets: answers that follow from the scene, balance, columns, splits that share no image."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness import reference, tasks
from harness.reference import sets, train
from harness.reference.packing import draw_example
from harness.reference.questions import FORMS, GAP, SLOW, ask, propose
from harness.reference.scenes import COLOURS, SHAPES, SIDE, SIZES, Scene, Thing, jpeg, objects_scene, render, text_scene

DATA = Path(reference.__file__).parent / "data"
SEEDS = st.integers(0, 2**32)

# --- every answer, worked out again from the words ------------------------------------------------------------


def singular(noun: str) -> str:
    return "cross" if noun == "crosses" else noun.removesuffix("s")


def fits(thing: Thing, words: str) -> bool:
    """Whether every word of a description is true of a thing."""
    for word in words.split():
        own = {thing.colour, thing.shape, thing.size, "object"}
        assert word in {*COLOURS, *SHAPES, *SIZES, "object", "sign"}, word
        if word not in own:
            return False
    return True


def the(scene: Scene, words: str) -> Thing:
    """The one thing a description means."""
    found = [thing for thing in scene.things if fits(thing, words)]
    assert len(found) == 1, (words, found)
    return found[0]


def stands(a: Thing, side: str, b: Thing) -> bool:
    return {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[side]


def apart(a: Thing, side: str, b: Thing) -> float:
    return abs(a.x - b.x) if side.endswith(" of") else abs(a.y - b.y)


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


SIDES = "left of|right of|above|below"


def answer(scene: Scene, text: str) -> str:
    """The answer to any question of ours, by brute force."""
    things = scene.things
    if found := re.fullmatch(r"How many (\w+) objects are there\?|How many (\w+) are there\?", text):
        words = found[1] or singular(found[2])
        return str(len([thing for thing in things if fits(thing, words)]))
    if found := re.fullmatch(r"Is there an? (\w+ \w+)\?", text):
        return yes(any(fits(thing, found[1]) for thing in things))
    if found := re.fullmatch(r"Is there an? (\w+ \w+) (and|or) an? (\w+ \w+)\?", text):
        first, second = (any(fits(thing, found[i]) for thing in things) for i in (1, 3))
        return yes((first and second) if found[2] == "and" else (first or second))
    if found := re.fullmatch(rf"Is the ([\w ]+) ({SIDES}) the ([\w ]+)\?", text):
        a, b = the(scene, found[1]), the(scene, found[3])
        assert a is not b and apart(a, found[2], b) > GAP  # far enough apart to tell
        return yes(stands(a, found[2], b))
    if found := re.fullmatch(r"Are there more (\w+)( objects)? than (\w+)( objects)?\?", text):
        counts = [
            len([t for t in things if fits(t, word if objects else singular(word))])
            for word, objects in (found.group(1, 2), found.group(3, 4))
        ]
        assert counts[0] != counts[1]
        return yes(counts[0] > counts[1])
    if found := re.fullmatch(r"Do the ([\w ]+) and the ([\w ]+) have the same (\w+)\?", text):
        a, b = the(scene, found[1]), the(scene, found[2])
        attribute = {"color": "colour"}.get(found[3], found[3])
        assert a is not b
        return yes(getattr(a, attribute) == getattr(b, attribute))
    if found := re.fullmatch(r"What (color|shape) is the (leftmost|rightmost|topmost|lowest) object\?", text):
        axis, last = {
            "leftmost": ("x", False),
            "rightmost": ("x", True),
            "topmost": ("y", False),
            "lowest": ("y", True),
        }[found[2]]
        ranked = sorted(things, key=lambda thing: getattr(thing, axis), reverse=last)
        assert abs(getattr(ranked[0], axis) - getattr(ranked[1], axis)) > GAP / 2
        return ranked[0].colour if found[1] == "color" else ranked[0].shape
    if found := re.fullmatch(rf"What color is the (\w+) ({SIDES}) the ([\w ]+)\?", text):
        anchor = the(scene, found[3])
        like = [t for t in things if t.shape == found[1] and t is not anchor]
        assert len(like) > 1  # else the first hop would not be needed
        there = [t for t in like if stands(t, found[2], anchor)]
        assert len(there) == 1 and all(apart(t, found[2], anchor) > GAP for t in like)
        return there[0].colour
    if found := re.fullmatch(r"What color is the (sign|object) with (\w+)\?", text):
        carriers = [t for t in things if t.text == found[2]]
        assert len(carriers) == 1 and (carriers[0].shape == "sign") == (found[1] == "sign")
        return carriers[0].colour
    if found := re.fullmatch(r"What (number|word) is (?:on the ([\w ]+)|written in the picture)\?", text):
        written = [t for t in things if t.text and t.text.isdigit() == (found[1] == "number")]
        written = [t for t in written if found[2] is None or fits(t, found[2])]
        assert len(written) == 1
        return written[0].text
    if text == "What does the sign say?":
        return the(scene, "sign").text
    if found := re.fullmatch(r"Is the ([\w ]+) small or large\?", text):
        return the(scene, found[1]).size
    if found := re.fullmatch(r"What (color|shape) is the ([\w ]+)\?", text):
        return getattr(the(scene, found[2]), {"color": "colour"}.get(found[1], found[1]))
    raise AssertionError(f"a question that this test does not know: {text}")


@given(SEEDS)
def test_answers_follow_from_the_scene(seed: int) -> None:
    rng = random.Random(seed)
    for scene, names in ((objects_scene(rng), ("mini_vqav2", "mini_gqa")), (text_scene(rng), ("mini_textvqa",))):
        for task in names:
            for form in FORMS[task]:
                for question in propose(scene, task, form, rng):
                    assert answer(scene, question.text) == question.answer, question


def test_the_literal_answers_can_disagree() -> None:
    """The check above is one: a picture with its things moved about no longer fits its questions."""
    rng = random.Random(1)
    wrong = 0
    for _ in range(20):
        scene = objects_scene(rng)
        other = Scene(tuple(Thing(**{**t.__dict__, "x": SIDE - t.x}) for t in scene.things), scene.backdrop)
        asked = propose(scene, "mini_gqa", "relation", rng)
        wrong += sum(answer(other, q.text) != q.answer for q in asked)
    assert wrong > 20


@given(SEEDS, st.integers(1, 40))
def test_questions_are_spread_over_the_forms(seed: int, number: int) -> None:
    rng = random.Random(seed)
    scene = objects_scene(rng)
    asked = ask(scene, "mini_vqav2", rng, number)
    counts = Counter(q.form for q in asked)
    rounds = {form: counts[form] / SLOW.get(form, 1) for form in FORMS["mini_vqav2"]}
    possible = {form: len(propose(scene, "mini_vqav2", form, rng)) for form in FORMS["mini_vqav2"]}
    assert len(asked) == min(number, sum(possible.values()))
    for form, there in possible.items():
        assert counts[form] == there or rounds[form] >= max(rounds.values()) - 1


@given(SEEDS)
def test_things_lie_inside_the_picture(seed: int) -> None:
    rng = random.Random(seed)
    for scene in (objects_scene(rng), text_scene(rng)):
        assert scene.things
        for thing in scene.things:
            assert thing.half[0] <= thing.x <= SIDE - thing.half[0]
            assert thing.half[1] <= thing.y <= SIDE - thing.half[1]
        assert len({t.colour for t in scene.things if t.text}) == sum(bool(t.text) for t in scene.things)


def test_a_scene_is_drawn_the_same_every_time() -> None:
    scenes = [make(random.Random(3)) for make in (objects_scene, text_scene) for _ in range(2)]
    pictures = [jpeg(render(scene)) for scene in scenes]
    assert pictures[0] == pictures[1] and pictures[2] == pictures[3] and pictures[0] != pictures[2]
    image = Image.open(io.BytesIO(pictures[0]))
    assert image.size == (SIDE, SIDE) and image.mode == "RGB"


# --- the shipped sets -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {
        (task, part): pq.read_table(DATA / task / f"{part}.parquet").to_pylist()
        for task in FORMS
        for part in tasks.SPLITS
    }


def test_columns_are_the_official_ones(shipped: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    for (task, part), table in shipped.items():
        checked = tasks.check(DATA / task / f"{part}.parquet")
        assert checked["form"] == task
        least = {"validation": (1000, 300), "dev": (500, 150), "calibration": (500, 150)}[part]
        assert checked["rows"] >= least[0] and checked["images"] >= least[1]
        key = "id" if task == "mini_gqa" else "question_id"
        assert len({row[key] for row in table}) == len(table)
        assert {row["question_type"] for row in table} == set(FORMS[task])
        first = table[0]
        if task == "mini_vqav2":
            assert [entry["answer_id"] for entry in first["answers"]] == list(range(1, 11))
        elif task == "mini_textvqa":
            assert len(first["answers"]) == 10 and len(set(first["answers"])) == 1


def test_splits_share_no_image(shipped: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    seen: dict[str, set[bytes]] = defaultdict(set)
    for (_, part), table in shipped.items():
        seen[part] |= {hashlib.sha256(row["image"]["bytes"]).digest() for row in table}
    for number in range(32):  # the first batch of the recipe, be it shapes or signs
        example = draw_example(f"{train.Recipe().seed}/0/{number // 2}", writing=number % 2 == 0)
        assert example.scene is not None
        seen["train"].add(hashlib.sha256(jpeg(render(example.scene))).digest())
    for part, other in itertools.combinations(seen, 2):
        assert seen[part] and not seen[part] & seen[other], (part, other)


def test_shipped_questions_cannot_be_answered_blind(shipped: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Always giving the most common answer of a question's template, learned on the very set, stays below 0.5."""
    for (task, part), table in shipped.items():
        if part != "validation":
            continue
        templates: dict[str, Counter[str]] = defaultdict(Counter)
        for row in table:
            given = row["answer"] if task == "mini_gqa" else row["answers"][0]
            asked = sets.Question(
                row["question_type"], row["question"], given if isinstance(given, str) else given["answer"]
            )
            templates[sets._template(asked)][asked.answer] += 1
        guessed = sum(counts.most_common(1)[0][1] for counts in templates.values())
        assert len(templates) > 2 and guessed / len(table) < 0.5, task


def test_shipped_sets_are_what_the_generator_makes(shipped: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    for task in FORMS:
        made = sets.table(task, "dev", 4).to_pylist()
        assert len(made) == 12 and len({row["image"]["path"] for row in made}) == 4
        for row, there in zip(made, shipped[task, "dev"], strict=False):
            picture, stored = row.pop("image"), there["image"]
            assert row == {key: value for key, value in there.items() if key != "image"}
            assert picture["path"] == stored["path"]


def test_the_generator_makes_any_number(tmp_path: Path) -> None:
    files = sets.write(tmp_path, {"validation": 3, "extra": 2})
    assert len(files) == 6
    for file in files:
        assert tasks.check(file)["images"] == (3 if file.stem == "validation" else 2)
