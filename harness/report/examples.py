"""Questions on which a pruned model and the dense one differ, from the samples beside the records.

    python -c "from pathlib import Path; from harness.record import load; from harness.report import examples; \
               from harness.report.samples import Samples; \
               print(examples.find(Samples(Path('results/demo')), load('results/demo')[0]).flips)"

Samples hold ids and answers. Question, truth and image are looked up where the task is a local file that is still what
the record was measured on (its hash says so); otherwise the ids have to do.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from harness import tasks
from harness.record import setting
from harness.report.samples import Samples
from harness.tasks import data
from harness.text import plain, shorten
from harness.types import InputError

log = logging.getLogger(__name__)

LOST, GAINED = 4, 2  # examples of a trial
TEXT = 200  # characters of a question or an answer
SIDE, WHOLE = 128, 6 << 10  # an image of at most so many bytes is shown as it is, a larger one at so many pixels
IMAGES = 1_500_000  # characters of all images of a page together
SETS = 256 << 20  # bytes of question sets that are read for their images
COLUMNS = ("question_id", "answer", "score")
FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Flips:
    """What a trial lost and gained against dense, and examples: (question, whether lost, dense answer, answer)."""

    questions: int
    lost: int
    gained: int
    shown: list[tuple[int, bool, str, str]]


@dataclass
class Examples:
    """The flips of a board's trials by id; the questions they name; the images, as data URIs, that those name."""

    flips: dict[str, Flips] = field(default_factory=dict)
    questions: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Answers:
    """A trial's samples: whether each answer counts as right, and which of the distinct answers it is."""

    right: np.ndarray
    codes: np.ndarray
    distinct: pa.Array

    def text(self, row: int) -> str:
        return _text(self.distinct[int(self.codes[row])].as_py())


def find(samples: Samples, records: Sequence[Mapping[str, Any]]) -> Examples:
    """Compare every finished trial with the dense one of its setting and data; a question is right from score 0.5 on.

    The questions that flip in most trials are shown first, so that trials can be compared. A trial whose samples are
    missing, damaged, or about other questions has no flips.
    """
    found, groups = Examples(), {}
    for record in records:
        if record["status"] == "ok":
            key = json.dumps([setting(record["trial"]), record["hashes"].get("data")])
            groups.setdefault(key, []).append(record)
    used: list[tuple[int, Mapping[str, Any], str, str]] = []  # (trials, record, task, question id) of found.questions
    for _, group in sorted(groups.items()):
        dense = next((record for record in group if record["trial"]["method"] == "none"), None)
        if dense is None or (table := samples.read(dense, [*COLUMNS, "task"])) is None:
            continue
        names = list(zip(table["task"].to_pylist(), table["question_id"].to_pylist(), strict=True))
        trials = {}
        for record in group:
            if record is not dense and (own := samples.read(record, COLUMNS)) is not None:
                if own["question_id"].equals(table["question_id"]):
                    trials[record["id"]] = _answers(own)
                else:
                    samples.leave_out(record, "asks other questions than the dense trial")
        _compare(found, used, dense, _answers(table), names, trials)
    _illustrate(found, used)
    return found


def _compare(
    found: Examples,
    used: list[tuple[int, Mapping[str, Any], str, str]],
    dense: Mapping[str, Any],
    base: _Answers,
    names: list[tuple[str, str]],
    trials: Mapping[str, _Answers],
) -> None:
    """Add the flips of one setting's trials to what was found."""
    often = np.zeros(len(names), dtype=int)
    for own in trials.values():
        often += own.right != base.right
    order = np.array(sorted(range(len(names)), key=lambda i: (-often[i], names[i])), dtype=int)
    places: dict[int, int] = {}  # row of the samples -> place in found.questions
    for trial, own in trials.items():
        lost = order[(base.right & ~own.right)[order]]
        gained = order[(~base.right & own.right)[order]]
        shown = []
        for i in map(int, (*lost[:LOST], *gained[:GAINED])):
            if i not in places:
                places[i] = len(found.questions)
                found.questions.append({"task": plain(names[i][0]), "id": plain(names[i][1])})
                used.append((int(often[i]), dense, *names[i]))
            shown.append((places[i], bool(base.right[i]), base.text(i), own.text(i)))
        found.flips[trial] = Flips(len(names), len(lost), len(gained), shown)


def _answers(table: pa.Table) -> _Answers:
    answers = table["answer"].chunk(0)
    codes = (answers.indices.fill_null(0) if answers.null_count else answers.indices).to_numpy()
    # Narrow, since the samples of a whole board are held at once.
    codes = codes.astype(np.uint16 if len(answers.dictionary) < 1 << 16 else np.int64)
    # A chunk's to_numpy takes microseconds, the whole column's a quarter of a millisecond.
    score = table["score"].chunk(0).to_numpy(zero_copy_only=False)
    return _Answers(score >= 0.5, codes, answers.dictionary)


def _text(value: Any) -> str:
    return shorten(plain(str(value if value is not None else "")), TEXT)


# --- questions and images ---------------------------------------------------------------------------------------


def _illustrate(found: Examples, used: Sequence[tuple[int, Mapping[str, Any], str, str]]) -> None:
    """Give the questions their text, truth and image, those that flip most often first, as far as there is room."""
    wanted: dict[str, list[int]] = {}
    records: dict[str, Mapping[str, Any]] = {}
    for place, (_, record, _, _) in enumerate(used):
        wanted.setdefault(record["id"], []).append(place)
        records[record["id"]] = record
    pictures: dict[int, bytes] = {}
    for id, places in sorted(wanted.items()):
        rows = {(used[place][2], used[place][3]): place for place in places}
        for key, question, truth, picture in _rows(records[id], set(rows)):
            place = rows[key]
            found.questions[place] |= {"text": _text(question), "truth": [_text(answer) for answer in truth]}
            pictures[place] = picture
    room, known = IMAGES, {}
    for place in sorted(pictures, key=lambda place: (-used[place][0], used[place][2:])):
        digest = hashlib.sha256(pictures[place]).digest()
        if digest not in known:
            uri = _thumbnail(pictures[place])
            if uri is None or len(uri) > room:
                continue
            room -= len(uri)
            known[digest] = len(found.images)
            found.images.append(uri)
        found.questions[place]["image"] = known[digest]


def _rows(
    record: Mapping[str, Any], keys: set[tuple[str, str]]
) -> Iterable[tuple[tuple[str, str], str, list[str], bytes]]:
    """The questions of these (task, id) with their answers, the commonest first, and encoded image, where they are
    to be had from local files that are what the record was measured on."""
    trial, paths = record["trial"], {}
    for task in trial["tasks"]:
        path = data.REFERENCE / task if task in tasks.names() else Path(task)
        paths[task] = path
        file = path / f"{trial['split']}.parquet" if path.is_dir() else path
        if file.suffix != ".parquet" or not file.is_file() or file.stat().st_size > SETS:
            return
    try:
        if tasks.data_hash(trial["tasks"], trial["split"], trial["limit"])[:16] != record["hashes"].get("data"):
            return
        for task, path in paths.items():
            table = data.source(task, path, trial["split"], trial["limit"]).read()
            for row, id in enumerate(table["question_id"].to_pylist()):
                if (task, id) in keys:
                    doc = table.slice(row, 1).to_pylist()[0]
                    truth = data.texts(doc)
                    truth = sorted(set(truth), key=lambda answer: (-truth.count(answer), answer))
                    yield (task, id), doc["question"], truth[:3], doc["image"]["bytes"]
    except InputError as error:
        log.warning(f"no example questions: {error}")


def _thumbnail(content: bytes) -> str | None:
    """An image as a data URI, as it is if it is small; None if it is none."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            kind = str(image.format).lower()
            image.draft("RGB", (SIDE, SIDE))
            if len(content) > WHOLE:
                image = image.convert("RGB")
                image.thumbnail((SIDE, SIDE))
                image.save(buffer := io.BytesIO(), "JPEG", quality=80)
                kind, content = "jpeg", buffer.getvalue()
            else:
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
