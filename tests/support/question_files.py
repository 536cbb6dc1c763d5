"""Rows of questions in the columns of the shipped sets, and parquet files of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.tasks import question_set
from harness.tasks.catalogue import ParquetSet
from harness.types import Questions
from tests.support.pictures import encoded_picture

QUESTIONS = (("What colour is it?", "red"), ("How many are there?", "2"), ("Is it large?", "yes"))


def question_rows(form: str, images: int, start: int = 0) -> list[dict[str, Any]]:
    """Three questions on each image, in the columns of one of the shipped sets."""
    table = []
    for image in range(start, start + images):
        for number, (question, answer) in enumerate(QUESTIONS):
            row: dict[str, Any] = {"image": encoded_picture(image), "question": question, "question_type": "made"}
            if form == "mini_gqa":
                row |= {"id": f"{image}-{number}", "imageId": f"i{image}", "answer": answer}
            else:
                given = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
                row |= {"question_id": 10 * image + number, "image_id": image}
                row["answers"] = given if form == "mini_vqav2" else [answer] * 10
            table.append(row)
    return table


def write_parquet(path: Path, table: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


def write_columns(path: Path, table: list[dict[str, Any]], kinds: dict[str, pa.DataType]) -> Path:
    """As `write_parquet`, with these types of some columns."""
    columns = {name: pa.array([row[name] for row in table], kinds.get(name)) for name in table[0]}
    pq.write_table(pa.table(columns), path)
    return path


def asked(tasks: Sequence[str], split: str = "validation", limit: int | None = None) -> Questions:
    """The questions of these tasks."""
    return Questions(tuple(tasks), split, limit)


def rows_asked(task: str, split: str, limit: int | None) -> list[int]:
    """The rows of a parquet file that are asked."""
    known = question_set(task)
    assert isinstance(known, ParquetSet)
    return list(known.source(split, limit).indices)
