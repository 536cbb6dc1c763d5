"""Question sets in parquet files: their place, their validation, and the questions of a split and a limit.

    python -c "from harness.tasks import check; print(check('my.parquet'))"

A set is a folder with one file per split (`validation.parquet`, `dev.parquet`, `calibration.parquet`), or one file. A
hash divides the images of one file: a fifth for calibration, a fifth for dev, the rest for validation. The columns are
those of VQAv2 and TextVQA (question_id, image, question, answers) or of GQA (id, image, question, answer).
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFile

from harness.types import InputError

REFERENCE = Path(__file__).parents[1] / "reference" / "data"
SPLITS = ("validation", "dev", "calibration")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # none for which PIL starts another program
COLUMNS = (
    "question_id, image {bytes, path}, question and answers (a list of strings, or of {answer, answer_id}),"
    " or GQA's id, image, question and answer"
)


@dataclass(frozen=True)
class Source:
    """One split of one task: its scoring definition, and its rows of a parquet file as indices."""

    task: str
    form: str  # shipped definition (mini/<form>.yaml) of its prompt and scorer
    path: Path
    indices: tuple[int, ...]
    question_ids: tuple[str, ...]
    image_ids: tuple[str, ...]

    def read(self) -> pa.Table:
        """The rows, with columns question_id, image_id, image (still encoded), question and answers (or answer)."""
        file = parquet(self.path)
        target = "answer" if self.form == "mini_gqa" else "answers"
        chosen, pieces, start = set(self.indices), [], 0
        for batch in _batches(file, self.path, ["image", "question", target], 256):
            batch_rows = [i for i in range(batch.num_rows) if start + i in chosen]
            pieces.append(batch.take(pa.array(batch_rows, pa.int64())))
            start += batch.num_rows
        table = pa.Table.from_batches(pieces)
        if target == "answers":
            answers = [annotators(row) for row in table["answers"].to_pylist()]
            table = table.set_column(table.schema.get_field_index("answers"), "answers", pa.array(answers))
        table = table.append_column("question_id", pa.array(self.question_ids, pa.string()))
        return table.append_column("image_id", pa.array(self.image_ids, pa.string())).replace_schema_metadata()


def annotators(answers: list[Any]) -> list[Any]:
    """The answers in the form of the soft scorers: at least four, from distinct annotators.

    Both scorers judge an annotator by the *other* annotators' answers, so a list of fewer than four never scores 1. A
    shorter list is repeated to at least ten. VQAv2 identifies annotators by their full entries, so each gets a number.
    """
    if len(answers) < 4:
        answers = answers * math.ceil(10 / len(answers))
    if isinstance(answers[0], str):
        return answers
    return [{"answer": a["answer"], "answer_id": number} for number, a in enumerate(answers, 1)]


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

    Returns {"path", "rows", "images", "form"} for a file, {"path", "files": [...]} for a folder. Memory holds only
    one batch of rows. Raises InputError, which names file, row and column of the first fault and a correction.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for pattern in ("*.parquet", "*/*.parquet") for file in path.glob(pattern))
        if not files:
            raise InputError(f"{path}: no .parquet file in this folder")
        return {"path": str(path), "files": [check(file) for file in files]}
    return dict(_check(path, *_stamp(path)))


def form(schema: pa.Schema, path: Path) -> str:
    """The shipped definition that fits these columns. Raises InputError if none fits."""
    names = schema.names
    gqa = "answers" not in names and {"id", "answer"} <= set(names)
    needed = ("id", "image", "question", "answer") if gqa else ("question_id", "image", "question", "answers")
    missing = [name for name in needed if name not in names]
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing)
        raise InputError(
            f"{path}: missing column {listed} (the file has: {', '.join(names)}); the columns must be {COLUMNS}"
        )
    image = schema.field("image").type
    place = image.get_field_index("bytes") if pa.types.is_struct(image) else -1
    if place < 0 or not (pa.types.is_binary(image[place].type) or pa.types.is_large_binary(image[place].type)):
        raise InputError(f"{path}: column 'image' is {image}; it must be a struct {{bytes, path}}")
    if gqa:
        return "mini_gqa"
    answers = schema.field("answers").type
    inner = answers.value_type if pa.types.is_list(answers) or pa.types.is_large_list(answers) else None
    if inner is not None and (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        return "mini_textvqa"
    if inner is not None and pa.types.is_struct(inner) and inner.get_field_index("answer") >= 0:
        return "mini_vqav2"
    raise InputError(f"{path}: column 'answers' is {answers}; it must be a list of strings or of {{answer, answer_id}}")


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


def parquet(path: Path) -> pq.ParquetFile:
    """The opened file. Raises InputError if it is no parquet file or has no rows."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    if file.metadata.num_rows != sum(groups) or min(groups, default=0) < 0:
        raise InputError(
            f"{path}: not a parquet file (its header counts {file.metadata.num_rows} rows, its parts {sum(groups)})"
        )
    if file.metadata.num_rows == 0:
        raise InputError(f"{path}: no rows; a question set needs at least one")
    return file


@lru_cache(maxsize=64)
def _content_hash(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _ids(path: Path, changed: int, size: int) -> tuple[list[str], list[str]]:
    """Question and image ids of every row. The id of an image without one is the hash of its bytes."""
    file = parquet(path)
    name = "id" if form(file.schema_arrow, path) == "mini_gqa" else "question_id"
    known = next((column for column in ("image_id", "imageId") if column in file.schema_arrow.names), None)
    questions: list[str] = []
    images: list[str] = []
    for batch in _batches(file, path, [name, known or "image"], 256):
        questions += map(str, batch.column(name).to_pylist())
        if known:
            images += map(str, batch.column(known).to_pylist())
        else:
            images += [sha256(image["bytes"] or b"").hexdigest()[:16] for image in batch.column("image").to_pylist()]
    return questions, images


@lru_cache(maxsize=64)
def _check(path: Path, changed: int, size: int) -> dict[str, Any]:
    file = parquet(path)
    kind = form(file.schema_arrow, path)
    target = "answer" if kind == "mini_gqa" else "answers"
    for row, doc in enumerate(rows(file, path, ["image", "question", target])):
        where = f"{path}: row {row}"
        check_words(doc, where)
        decode((doc["image"] or {}).get("bytes"), where)
    images = _ids(path, changed, size)[1]
    return {"path": str(path), "rows": len(images), "images": len(set(images)), "form": kind}


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


def texts(doc: Mapping[str, Any]) -> list[str]:
    """The texts of all answers to a question."""
    answers = (doc["answers"] or []) if "answers" in doc else [doc["answer"]]
    return [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]


def most_common(doc: Mapping[str, Any]) -> str:
    """The most common answer to a question, the first of equally common ones."""
    return Counter(texts(doc)).most_common(1)[0][0]


def rows(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows as plain values. Raises InputError for a damaged file."""
    for batch in _batches(file, path, columns, 64):
        yield from batch.to_pylist()


def _batches(file: pq.ParquetFile, path: Path, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """The rows in batches. Raises the errors of `rows`."""
    try:
        yield from file.iter_batches(batch_size=size, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: a damaged parquet file ({str(error).splitlines()[0]})") from error


def decode(data: bytes | None, where: str) -> None:
    """Raise InputError unless these bytes are a complete image in one of FORMATS."""
    if not data:
        raise InputError(f"{where}: column 'image' has no bytes; store the encoded image (PNG, JPEG) in image.bytes")
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES  # some libraries set this for the whole process
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # refuse more than about 90 megapixels
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{where}: column 'image' cannot be decoded ({error}); store a whole PNG or JPEG") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


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
