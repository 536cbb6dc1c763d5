"""The question sets of real things, written as parquet in the official columns, any size, from a seed.

    write(Path("sets"), Painter(emoji_font()), {"validation": 200})     # things_gqa/validation.parquet, 3 a picture

Splits draw from different seeds, so no picture is in two. Validation and dev show reserved things only in combinations
that training and calibration never show (things.may_meet). Within every question template the answers are balanced as
far as the scenes allow: the rarest answer so far is asked for first.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from harness.reference.pretrained.questions import FORMS, WRITING_TASK, propose
from harness.reference.pretrained.render import Painter
from harness.reference.pretrained.scenes import COLOURS, GROUNDS, WORDS, draw
from harness.reference.pretrained.things import NAMES, THINGS
from harness.reference.questions import Question
from harness.reference.scenes import jpeg
from harness.reference.sets import QUESTIONS_PER_IMAGE, row

SIZES_SHIPPED = {"validation": 200, "dev": 100, "calibration": 100}  # pictures per set
TRAINING = ("calibration", "train")  # splits with the combinations that training shows
SPARE = 3  # pictures drawn for every one that is kept: those with the forms and answers that are still rare
_ALL = [*NAMES, *(thing.several for thing in THINGS.values()), *COLOURS, *GROUNDS, *WORDS]
_NAMES = re.compile(r"\b(an? )?(" + "|".join(sorted(map(re.escape, _ALL), key=len, reverse=True)) + r"|\d+)\b")
_PLACES = re.compile(r"furthest to the (left|right)|nearest to the (top|bottom)|on the \w+ plate")


def template(question: Question) -> str:
    """The question without names, places and grammatical number: what a blind guesser could tell apart."""
    text = _PLACES.sub("@", re.sub("^Are ", "Is ", question.text))
    return f"{question.form} {_NAMES.sub('*', text)}"


def items(task: str, split: str, images: int, painter: Painter) -> Iterator[tuple[str, bytes, list[Question]]]:
    """(image id, JPEG bytes, questions) of each picture of a split."""
    asked: Counter[tuple[str, str]] = Counter()
    forms: Counter[str] = Counter()
    for number in range(images):
        name = f"{task}-{split}-{number:05d}"
        drafts = [_draft(f"{name}/{i}", task, split, forms, asked) for i in range(SPARE)]
        scene, chosen = min(drafts, key=lambda draft: _rarity(draft[1], forms, asked))
        for question in chosen:
            forms[question.form] += 1
            asked[template(question), question.answer] += 1
        yield name, jpeg(painter.render(scene)), chosen


def _draft(
    seed: str, task: str, split: str, forms: Counter[str], asked: Counter[tuple[str, str]]
) -> tuple[Any, list[Question]]:
    """A scene with the questions whose form, and then answer, was asked least so far."""
    rng = random.Random(seed)
    scene = draw(rng, writing=task == WRITING_TASK, training=split in TRAINING)
    candidates = [q for form in FORMS[task] for q in propose(scene, task, form, rng)]
    chosen: list[Question] = []
    while candidates and len(chosen) < QUESTIONS_PER_IMAGE:
        used = Counter(q.form for q in chosen)
        best = min(candidates, key=lambda q: (used[q.form], forms[q.form], *_times(q, asked)))
        candidates = [q for q in candidates if q.text != best.text]
        chosen.append(best)
    return scene, chosen


def _times(question: Question, asked: Counter[tuple[str, str]]) -> tuple[int, int]:
    """How often its template was asked so far, and its answer within that."""
    own = template(question)
    return sum(count for (other, _), count in asked.items() if other == own), asked[own, question.answer]


def _rarity(chosen: list[Question], forms: Counter[str], asked: Counter[tuple[str, str]]) -> tuple[bool, int, float]:
    """How much a picture is worth less than another: too few questions, then common forms, then common answers."""
    common = sum(asked[template(q), q.answer] for q in chosen)
    return len(chosen) < QUESTIONS_PER_IMAGE, sum(forms[q.form] for q in chosen), common


def table(task: str, split: str, images: int, painter: Painter) -> pyarrow.Table:
    """One row a question, in the columns of the official set of that name."""
    rows = [
        row(task.replace("things", "mini"), image_id, content, number, question)
        for image_id, content, questions in items(task, split, images, painter)
        for number, question in enumerate(questions)
    ]
    return pyarrow.Table.from_pylist(rows)


def write(folder: Path, painter: Painter, images: Mapping[str, int] = SIZES_SHIPPED) -> list[Path]:
    """Write every task's splits with this many pictures each; returns the files."""
    files = []
    for task in FORMS:
        for split, number in images.items():
            path = folder / task / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(table(task, split, number, painter), path, compression="zstd")
            files.append(path)
    return files
