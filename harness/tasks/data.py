"""Question sets in parquet files: their place, their validation, and the questions of a split and a limit.

    python -c "from harness.tasks import check; print(check('my.parquet'))"

A set is a folder with one file per split (`validation.parquet`, `dev.parquet`, `calibration.parquet`), or one file. A
hash divides the images of one file: a fifth for calibration, a fifth for dev, the rest for validation. The columns are
those of VQAv2 and TextVQA (question_id, image, question, answers) or of GQA (id, image, question, answer).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.tasks.columns import COLUMNS, form, image_column, parquet, rows
from harness.tasks.doubts import Doubts
from harness.tasks.truths import annotators, texts
from harness.types import InputError

REFERENCE = Path(__file__).parents[1] / "reference" / "data"
SPLITS = ("validation", "dev", "calibration")
TEXT, IMAGE = pa.string(), pa.struct({"bytes": pa.binary(), "path": pa.string()})
ANSWERS = {  # by form
    "mini_gqa": TEXT,
    "mini_textvqa": pa.list_(TEXT),
    "mini_vqav2": pa.list_(pa.struct({"answer": TEXT, "answer_id": pa.int64()})),
}


@dataclass(frozen=True)
class Source:
    """One split of one task: its scoring definition, and its rows of a parquet file as indices."""

    task: str
    form: str  # shipped definition (mini/<form>.yaml) of its prompt and scorer
    path: Path
    indices: tuple[int, ...]
    question_ids: tuple[str, ...]
    image_ids: tuple[str, ...]

    def read(self, images: bool = True) -> pa.Table:
        """The rows, with columns image (still encoded), question, answers (or answer), question_id and image_id.

        Without `images`, that column is not read, and all null.
        """
        target = "answer" if self.form == "mini_gqa" else "answers"
        ids = [{"question_id": q, "image_id": i} for q, i in zip(self.question_ids, self.image_ids, strict=True)]
        read = [*(["image"] if images else []), "question", target]
        docs = rows(parquet(self.path), self.path, read, set(self.indices))
        docs = ({**doc, **id} for id, (_, doc) in zip(ids, docs, strict=True))
        if target == "answers":
            docs = ({**doc, target: annotators(doc[target])} for doc in docs)
        types = {"image": IMAGE, "question": TEXT, target: ANSWERS[self.form], "question_id": TEXT, "image_id": TEXT}
        pieces = []
        while piece := list(islice(docs, 32)):  # one array may hold 2 GB of images
            pieces.append(pa.Table.from_pylist(piece, pa.schema(types)))
        return pa.concat_tables(pieces)


def source(task: str, path: Path, split: str, limit: int | None) -> Source:
    """The questions that `choose` picks from one split of a file or folder.

    Raises InputError if the file is unusable or the split does not exist.
    """
    file = path if path.is_file() else path / f"{split}.parquet"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in path.glob("*.parquet"))) or "none"
        raise InputError(f"task {task}: no split '{split}' ({file} does not exist; splits: {known})")
    questions, images = _ids(file, *_stamp(file))
    part = range(len(images))
    if file == path:
        ranked = sorted(set(images), key=_digest)
        split_images = _part(ranked, split)
        part = [i for i in part if images[i] in split_images]
        if not part:
            raise InputError(
                f"{file}: too few images ({len(ranked)}) for a split '{split}'; add images, or use one file per split"
            )
    chosen = [part[i] for i in choose([questions[i] for i in part], [images[i] for i in part], limit)]
    return Source(
        task=task,
        form=form(parquet(file).schema_arrow, file),
        path=file,
        indices=tuple(chosen),
        question_ids=tuple(questions[i] for i in chosen),
        image_ids=tuple(images[i] for i in chosen),
    )


def choose(question_ids: Sequence[str], image_ids: Sequence[str], limit: int | None) -> list[int]:
    """The first `limit` questions (None: all), whole images in the order of their hash, as ascending indices.

    It uses no random state, so the same data give the same questions on every machine. Only the last image may lose
    questions to meet the limit. Raises InputError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} questions asked for; use at least 1, or none for all")

    def place(i: int) -> tuple[bytes, bytes, int]:
        return _digest(image_ids[i]), _digest(question_ids[i]), i

    return sorted(sorted(range(len(image_ids)), key=place)[:limit])


def check(path: str | Path) -> dict[str, Any]:
    """Validate a parquet file, or the files of a folder and its subfolders: columns, answers and every image.

    Returns {"path", "rows", "images", "form", "warnings"} for a file, {"path", "files": [...]} for a folder; see
    `Doubts` for the warnings. Memory holds a few pages of a file. Raises InputError, which names file, row and column
    of the first fault and a correction.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern))
        if not files:
            raise InputError(f"{path}: no .parquet file in this folder")
        return {"path": str(path), "files": [check(file) for file in files]}
    return dict(_check(path, *_stamp(path)))


def content_hash(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    return _content_hash(path, *_stamp(path))


# --- one file ---------------------------------------------------------------------------------------------
# Cached per (path, time of change, size), because one process evaluates many trials on the same files.


def _stamp(path: Path) -> tuple[int, int]:
    if not os.path.isfile(path):  # unlike Path.is_file, False for an impossible path
        raise InputError(f"{path}: no such file; name a parquet file with columns {COLUMNS}")
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _content_hash(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _ids(path: Path, changed: int, size: int) -> tuple[list[str], list[str]]:
    """Question and image ids of every row. The id of an image without one is the hash of its bytes.

    Raises InputError unless every row has ids, and every question of an image another one.
    """
    file = parquet(path)
    name = "id" if form(file.schema_arrow, path) == "mini_gqa" else "question_id"
    known = image_column(file.schema_arrow)
    firsts: dict[tuple[str, str], int] = {}
    for row, doc in rows(file, path, [name, known or "image"]):
        image = doc[known] if known else sha256(doc["image"]["bytes"] or b"").hexdigest()[:16]
        if firsts.setdefault((image, doc[name]), row) != row:
            raise twice(f"{path}: row {row}: column '{name}'", doc[name], image, f"row {firsts[image, doc[name]]}")
    return [question for _, question in firsts], [image for image, _ in firsts]


def twice(where: str, question: str, image: str, first: str) -> InputError:
    """The error for a question whose image and question id are those of another one."""
    return InputError(
        f"{where}: the id '{question}' is also that of {first}, for the same image ('{image}');"
        " give each question of an image an id of its own"
    )


@lru_cache(maxsize=64)
def _check(path: Path, changed: int, size: int) -> dict[str, Any]:
    file = parquet(path)
    kind = form(file.schema_arrow, path)
    known = image_column(file.schema_arrow)
    target = "answer" if kind == "mini_gqa" else "answers"
    if known:
        _ids(path, changed, size)  # refuses bad ids before the images are decoded
    doubts = Doubts()
    for row, doc in rows(file, path, ["image", "question", target, *([known] if known else [])]):
        where = f"{path}: row {row}"
        check_words(doc, where)
        doubts.words(doc, where)
        doubts.picture(doc["image"]["bytes"], where, doc.get(known or ""))
    images = _ids(path, changed, size)[1]
    facts = {"path": str(path), "rows": len(images), "images": len(set(images)), "form": kind}
    return {**facts, "warnings": doubts.lines()}


def check_words(doc: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless a row has a question and at least one answer, all of them non-empty."""
    if not (doc["question"] or "").strip():
        raise InputError(f"{where}: column 'question' is empty; give a question")
    answers = texts(doc)
    if not answers:
        raise InputError(f"{where}: column 'answers' is an empty list; give at least one answer (official sets: ten)")
    if not all((text or "").strip() for text in answers):
        column = "answers" if "answers" in doc else "answer"
        raise InputError(f"{where}: column '{column}' holds an empty answer; give a text")


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def _part(images: list[str], split: str) -> set[str]:
    """The images of one split of a file: first validation, then dev, then calibration (a fifth, at least one)."""
    calibration_start = max(1, len(images) - max(1, len(images) // 5))
    dev_start = math.ceil(0.75 * calibration_start)
    parts = {
        "validation": images[:dev_start],
        "dev": images[dev_start:calibration_start],
        "calibration": images[calibration_start:],
    }
    if split not in parts:
        raise InputError(f"split '{split}': unknown; choose one of {', '.join(SPLITS)}")
    return set(parts[split])
