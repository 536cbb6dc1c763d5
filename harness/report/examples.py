"""Questions on which a pruned model and the dense model differ, from the samples beside the records.

    python -c "from pathlib import Path; from harness.records.record import load; from harness.report import examples; \
               from harness.report.samples import Samples; \
               print(examples.find(Samples(Path('results/demo')), load('results/demo')[0]).flips)"

Samples hold only ids and answers. Question, truth and image come from the task's local file if its hash is still that
of the record; otherwise the page shows the ids.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from harness import tasks
from harness.pictures import UNREADABLE, as_shown, opened, special
from harness.records.comparison import terms
from harness.records.record import Record
from harness.report.samples import Answers, Samples
from harness.tasks import truths
from harness.tasks.catalogue import ParquetSet
from harness.text import plain, shorten
from harness.types import DENSE, InputError

log = logging.getLogger(__name__)

LOST, GAINED = 4, 2  # maximal examples per trial
TEXT = 200  # maximal characters of a question or an answer
SIDE, WHOLE = 128, 6 << 10  # pixels per side of a shrunken image; bytes up to which an image stays as it is
IMAGES = 1_500_000  # maximal characters of all images of a page together
SETS = 256 << 20  # maximal bytes of a question file that is read for its images
RIGHT = 0.5  # the score from which on an answer is right
FORMATS = ("PNG", "JPEG", "WEBP")  # in which an image may stay as it is


@dataclass(frozen=True)
class Flips:
    """A trial's lost and gained questions against dense, and examples: (question, lost, dense answer, answer)."""

    questions: int
    lost: int
    gained: int
    shown: list[tuple[int, bool, str, str]]


@dataclass
class Examples:
    """The flips of a board's trials by id, the questions in them, and the images of these as data URIs."""

    flips: dict[str, Flips] = field(default_factory=dict)
    questions: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


Name = tuple[str, str, str]  # the task and the ids of a question and its image


class _Used(NamedTuple):
    """A shown question: the number of trials that flip it, the dense record, and its name."""

    trials: int
    dense: Record
    name: Name


def find(samples: Samples, records: Sequence[Record]) -> Examples:
    """Compare every finished trial with the dense trial of its setting and data; an answer is right from RIGHT on.

    Questions that flip in most trials come first, so that trials can be compared. A trial has no flips if its samples
    are missing, damaged, or about other questions.
    """
    examples, groups = Examples(), {}
    for record in records:
        if record.error is None:
            key = (str(terms(record.trial).setting), str(record.hashes.get("data")))
            groups.setdefault(key, []).append(record)
    used: list[_Used] = []  # one entry per question of the examples
    for _, group in sorted(groups.items()):
        dense = next((record for record in group if record.trial.method == DENSE), None)
        if dense is None or (base := samples.read(dense)) is None:
            continue
        trials = {}
        for record in group:
            if record is not dense and (answers := samples.read(record)) is not None:
                if answers.questions is base.questions:
                    trials[record.id] = answers
                else:
                    samples.leave_out(record, "asks other questions than the dense trial")
        _compare(examples, used, dense, base, trials)
    _illustrate(examples, used)
    return examples


def _compare(
    examples: Examples, used: list[_Used], dense: Record, base: Answers, trials: Mapping[str, Answers]
) -> None:
    """Add the flips of one setting's trials to the examples."""
    names: list[Name] = list(base.questions.rows)
    was = _right(base)
    often = np.zeros(len(names), dtype=int)
    for answers in trials.values():
        often += _right(answers) != was
    order = np.array(sorted(range(len(names)), key=lambda i: (-often[i], names[i])), dtype=int)
    places: dict[int, int] = {}  # row of the samples -> place in examples.questions
    for trial, answers in trials.items():
        right = _right(answers)
        lost, gained = order[(was & ~right)[order]], order[(~was & right)[order]]
        shown = []
        for i in map(int, (*lost[:LOST], *gained[:GAINED])):
            if i not in places:
                places[i] = len(examples.questions)
                task, question, image = map(plain, names[i])
                examples.questions.append({"task": task, "id": question, "image_id": image})
                used.append(_Used(int(often[i]), dense, names[i]))
            shown.append((places[i], bool(was[i]), _text(base.text(i)), _text(answers.text(i))))
        examples.flips[trial] = Flips(len(names), len(lost), len(gained), shown)


def _right(answers: Answers) -> np.ndarray:
    """Whether each answer is right, (questions,)."""
    return (answers.scores >= RIGHT)[answers.kinds]


@lru_cache(maxsize=1 << 12)
def _text(value: str) -> str:
    return shorten(plain(value), TEXT)


# --- questions and images ---------------------------------------------------------------------------------------


def _illustrate(examples: Examples, used: Sequence[_Used]) -> None:
    """Add text, truth and image to the questions. The questions that flip most often get images first, up to IMAGES."""
    places_of: dict[str, list[int]] = {}
    records: dict[str, Record] = {}
    for place, question in enumerate(used):
        places_of.setdefault(question.dense.id, []).append(place)
        records[question.dense.id] = question.dense
    pictures: dict[int, bytes] = {}
    for id, places in sorted(places_of.items()):
        rows = {used[place].name: place for place in places}
        for key, question, truth, picture in _rows(records[id], set(rows)):
            place = rows[key]
            examples.questions[place] |= {"text": _text(question), "truth": [_text(answer) for answer in truth]}
            pictures[place] = picture
    room, image_places = IMAGES, {}
    for place in sorted(pictures, key=lambda place: (-used[place].trials, used[place].name)):
        digest = hashlib.sha256(pictures[place]).digest()
        if digest not in image_places:
            uri = _thumbnail(pictures[place])
            if uri is None or len(uri) > room:
                continue
            room -= len(uri)
            image_places[digest] = len(examples.images)
            examples.images.append(uri)
        examples.questions[place]["image"] = image_places[digest]


def _rows(record: Record, names: set[Name]) -> Iterable[tuple[Name, str, list[str], bytes]]:
    """The questions with these names, their answers, most common first, and their encoded image.

    Yields nothing if the files are not local, too large, or changed since the record.
    """
    questions = record.trial.questions
    try:
        sets = [tasks.question_set(name) for name in questions.tasks]
        local = [question_set for question_set in sets if isinstance(question_set, ParquetSet)]
        files = [file for question_set in local for file in question_set.files(questions.split)]
        if len(local) < len(sets) or any(not file.is_file() or file.stat().st_size > SETS for file in files):
            return
        if tasks.data_hash(questions)[:16] != record.hashes.get("data"):
            return
        for question_set in local:
            table = question_set.source(questions.split, questions.limit).read()
            for row, ids in enumerate(
                zip(table["question_id"].to_pylist(), table["image_id"].to_pylist(), strict=True)
            ):
                name = (question_set.name, *ids)
                if name in names:
                    doc = table.slice(row, 1).to_pylist()[0]
                    truth = truths.ranked(truths.texts(doc), truths.normal(doc))
                    yield name, doc["question"], truth[:3], doc["image"]["bytes"]
    except InputError as error:
        log.warning(f"no example questions: {error}")


def _thumbnail(content: bytes) -> str | None:
    """An image as a viewer shows it, as a data URI, unchanged if it is small; None if it cannot be decoded."""
    try:
        with opened(content) as image:
            kind = str(image.format)
            image.draft("RGB", (SIDE, SIDE))
            shown = as_shown(image)
            if len(content) > WHOLE or kind not in FORMATS or special(image):
                shown.thumbnail((SIDE, SIDE))
                shown.save(buffer := io.BytesIO(), "JPEG", quality=80)
                kind, content = "JPEG", buffer.getvalue()
    except UNREADABLE:
        return None
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
