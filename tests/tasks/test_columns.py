"""Parquet files of other writers: one meaning in many Arrow types, and a line with column and row for the rest."""

from __future__ import annotations

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import tasks
from harness.tasks import columns, data
from harness.types import InputError
from tests.support.question_files import QUESTIONS, asked, question_rows, write_columns, write_parquet

BYTES = {"bytes": pa.binary(), "path": pa.string()}
WORD = pa.dictionary(pa.int8(), pa.string())
ROWS = {form: question_rows(form, 2) for form in ("mini_gqa", "mini_textvqa", "mini_vqav2")}


def entries(kind: Any) -> Any:
    return pa.struct({"answer": kind, "answer_confidence": kind, "answer_id": pa.int32()})


def as_read(path: Path) -> list[dict[str, Any]]:
    return data.source("t", path, "validation", None).read().to_pylist()


# What a column may be, by form, with what makes such values of the plain ones.
SAME: dict[str, tuple[str, str, Any, Any]] = {
    "question large": ("mini_textvqa", "question", pa.large_string(), None),
    "question view": ("mini_textvqa", "question", pa.string_view(), None),
    "question bytes": ("mini_textvqa", "question", pa.binary(), str.encode),
    "question bytes, large": ("mini_gqa", "question", pa.large_binary(), str.encode),
    "question bytes, view": ("mini_vqav2", "question", pa.binary_view(), str.encode),
    "question dictionary": ("mini_textvqa", "question", WORD, None),
    "question dictionary of bytes": ("mini_textvqa", "question", pa.dictionary(pa.int32(), pa.binary()), str.encode),
    "question JSON type": ("mini_textvqa", "question", pa.json_(), None),
    "answer large": ("mini_gqa", "answer", pa.large_string(), None),
    "answer view": ("mini_gqa", "answer", pa.string_view(), None),
    "answer bytes": ("mini_gqa", "answer", pa.binary(), str.encode),
    "answer dictionary": ("mini_gqa", "answer", WORD, None),
    "answers of a fixed number": ("mini_textvqa", "answers", pa.list_(pa.string(), 10), None),
    "answers large": ("mini_textvqa", "answers", pa.large_list(pa.large_string()), None),
    "answers view": ("mini_textvqa", "answers", pa.list_view(pa.string_view()), None),
    "answers view, large": ("mini_textvqa", "answers", pa.large_list_view(pa.string()), None),
    "answers dictionary": ("mini_textvqa", "answers", pa.list_(WORD), None),
    "answers bytes": ("mini_textvqa", "answers", pa.list_(pa.binary()), lambda given: [a.encode() for a in given]),
    "entries of a fixed number": ("mini_vqav2", "answers", pa.list_(entries(pa.string()), 10), None),
    "entries large": ("mini_vqav2", "answers", pa.large_list(entries(pa.large_string())), None),
    "entries view": ("mini_vqav2", "answers", pa.list_view(entries(pa.string())), None),
    "entries dictionary": ("mini_vqav2", "answers", pa.list_(entries(WORD)), None),
    "entries bytes": (
        "mini_vqav2",
        "answers",
        pa.list_(pa.struct({"answer": pa.binary()})),
        lambda given: [{"answer": item["answer"].encode()} for item in given],
    ),
    "image large": ("mini_textvqa", "image", pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()}), None),
    "image view": ("mini_textvqa", "image", pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()}), None),
    "image without a path": ("mini_textvqa", "image", pa.struct({"bytes": pa.binary()}), None),
    "image bare": ("mini_textvqa", "image", pa.binary(), lambda image: image["bytes"]),
    "image bare, view": ("mini_gqa", "image", pa.binary_view(), lambda image: image["bytes"]),
    "image dictionary": ("mini_textvqa", "image", pa.dictionary(pa.int32(), pa.binary()), lambda image: image["bytes"]),
    "question_id of a float": ("mini_textvqa", "question_id", pa.float64(), float),
    "question_id of a decimal": ("mini_textvqa", "question_id", pa.decimal128(9, 2), Decimal),
    "question_id of text": ("mini_textvqa", "question_id", pa.string_view(), str),
    "question_id of bytes": ("mini_textvqa", "question_id", pa.binary(), lambda number: str(number).encode()),
    "question_id short": ("mini_vqav2", "question_id", pa.uint8(), None),
    "id dictionary": ("mini_gqa", "id", WORD, None),
    "image_id of a float": ("mini_textvqa", "image_id", pa.float32(), float),
    "imageId dictionary": ("mini_gqa", "imageId", WORD, None),
}


@pytest.mark.parametrize("name", SAME)
def test_one_meaning_in_every_type(tmp_path: Path, name: str) -> None:
    form, column, kind, change = SAME[name]
    plain = write_parquet(tmp_path / "plain.parquet", ROWS[form])
    changed = [{**row, column: change(row[column]) if change else row[column]} for row in ROWS[form]]
    other = write_columns(tmp_path / "other.parquet", changed, {column: kind})
    assert pq.read_schema(other).field(column).type == kind, "the file has this type"
    facts = tasks.check(other)
    assert {**facts, "path": ""} == {**tasks.check(plain), "path": ""} and not facts["warnings"]
    rows = as_read(other)
    if "path" not in str(kind) and column == "image":
        rows = [{**row, "image": {**row["image"], "path": mine["image"]["path"]}}
                for row, mine in zip(rows, as_read(plain), strict=True)]  # fmt: skip
    assert rows == as_read(plain)


def test_whole_numbers_are_answers(tmp_path: Path) -> None:
    gqa = [{**row, "answer": number} for number, row in enumerate(ROWS["mini_gqa"])]
    ids = {row["id"]: str(row["answer"]) for row in gqa}
    read = as_read(write_parquet(tmp_path / "a.parquet", gqa))
    assert len(read) == 3 and all(row["answer"] == ids[row["question_id"]] for row in read)
    text = [{**row, "answers": [3, 3, 4, 3]} for row in ROWS["mini_textvqa"]]
    assert as_read(write_parquet(tmp_path / "b.parquet", text))[0]["answers"] == ["3", "3", "4", "3"]
    sample = tasks.samples(asked([str(tmp_path / "b.parquet")], "calibration"), 1, 0)[0]
    assert sample.answer == "3"


def test_a_question_as_bytes_is_asked_as_text(tmp_path: Path) -> None:
    """The prompt was "b'What colour is it?'"."""
    rows = [{**row, "question": row["question"].encode()} for row in ROWS["mini_textvqa"]]
    path = write_columns(tmp_path / "a.parquet", rows, {"question": pa.binary()})
    drawn = tasks.samples(asked([str(path)], "calibration"), 3, 0)
    assert {sample.question.partition("\n")[0] for sample in drawn} == {question for question, _ in QUESTIONS}


def test_ids_as_uuids(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=number + 1) for number in range(6)]
    rows = [{**row, "question_id": id.bytes} for id, row in zip(ids, ROWS["mini_textvqa"], strict=True)]
    path = write_columns(tmp_path / "a.parquet", rows, {"question_id": pa.uuid()})
    assert {row["question_id"] for row in as_read(path)} < set(map(str, ids))


LATIN = "façade".encode("latin-1")
UNCLEAR: dict[str, tuple[str, str, Any, Any, str]] = {
    "a question that is no UTF-8": ("mini_textvqa", "question", pa.binary(), LATIN, "row 3: .* no UTF-8 text"),
    "an answer that is no UTF-8": ("mini_gqa", "answer", pa.binary(), LATIN, "row 3: .* no UTF-8 text"),
    "answers that are no UTF-8": ("mini_textvqa", "answers", pa.list_(pa.binary()), [LATIN], "row 3: .* no UTF-8"),
    "an id that is no UTF-8": ("mini_textvqa", "question_id", pa.binary(), b"\xff", "row 3: .* no UTF-8 text"),
    "a null answer": ("mini_gqa", "answer", pa.int64(), None, "row 3: column 'answer' holds an empty answer"),
    "a null in answers": ("mini_textvqa", "answers", pa.list_(pa.string()), ["a", None], "row 3: .* empty answer"),
    "a null entry": ("mini_vqav2", "answers", pa.list_(entries(pa.string())), [None], "row 3: .* empty answer"),
    "a null question": ("mini_gqa", "question", WORD, None, "row 3: column 'question' is empty"),
    "a null image": ("mini_gqa", "image", pa.binary_view(), None, "row 3: column 'image' has no bytes"),
    "a question id of NaN": ("mini_textvqa", "question_id", pa.float64(), float("nan"), "row 3: .* is null"),
    "an endless question id": ("mini_textvqa", "question_id", pa.float64(), float("inf"), "row 3: .* is inf"),
    "a broken question id": ("mini_textvqa", "question_id", pa.float64(), 1.5, "row 3: .* is 1.5; an id must be"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    form, column, kind, value, words = UNCLEAR[name]
    given: list[Any] = [row[column] for row in ROWS[form]]
    if pa.types.is_binary(kind):
        given = [str(item).encode() for item in given]
    elif column == "image":
        given = [item["bytes"] for item in given]
    elif kind == pa.list_(pa.binary()):
        given = [[item.encode() for item in items] for items in given]
    elif kind == pa.int64():
        given = list(range(len(given)))
    elif pa.types.is_floating(kind):
        given = list(map(float, given))
    given[3] = value
    rows = [{**row, column: item} for row, item in zip(ROWS[form], given, strict=True)]
    path = write_columns(tmp_path / "a.parquet", rows, {column: kind})
    with pytest.raises(InputError, match=rf"a\.parquet: {words}") as caught:
        tasks.check(path)
    assert f"column '{column}'" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=words):
        tasks.require(asked([str(path)]))


def test_text_that_is_no_utf_8_is_named_with_its_row(tmp_path: Path) -> None:
    """A string column may hold any bytes: Arrow does not look."""
    wrong = pa.array([b"fine", b"fine", LATIN, b"fine"], pa.binary()).view(pa.string())
    for column in ("question", "question_id"):
        table = pa.Table.from_pylist(ROWS["mini_textvqa"][:4])
        table = table.set_column(table.schema.get_field_index(column), column, wrong)
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(InputError, match=rf"row 2: column '{column}' is no UTF-8 text|the id 'fine' is also"):
            tasks.check(tmp_path / "a.parquet")


TYPES: dict[str, tuple[str, str, Any, Any]] = {
    "question of numbers": ("mini_textvqa", "question", pa.int64(), 7),
    "question a list": ("mini_gqa", "question", pa.list_(pa.string()), ["a"]),
    "answer of truth values": ("mini_gqa", "answer", pa.bool_(), True),
    "answer of floats": ("mini_gqa", "answer", pa.float64(), 2.0),
    "answer a list": ("mini_gqa", "answer", pa.list_(pa.string()), ["a"]),
    "answers one text": ("mini_textvqa", "answers", pa.string(), "['a', 'b']"),
    "answers of floats": ("mini_textvqa", "answers", pa.list_(pa.float64()), [1.0]),
    "answers of lists": ("mini_textvqa", "answers", pa.list_(pa.list_(pa.string())), [["a"]]),
    "answers a map": ("mini_textvqa", "answers", pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    "answers of columns": ("mini_vqav2", "answers", pa.struct({"answer": pa.list_(pa.string())}), {"answer": ["a"]}),
    "entries without an answer": ("mini_vqav2", "answers", pa.list_(pa.struct({"text": pa.string()})), [{"text": "a"}]),
    "image by its path": ("mini_textvqa", "image", pa.string(), "a.png"),
    "image of numbers": ("mini_textvqa", "image", pa.list_(pa.uint8()), [1, 2]),
    "image without bytes": ("mini_textvqa", "image", pa.struct({"path": pa.string()}), {"path": "a.png"}),
    "question_id a truth value": ("mini_textvqa", "question_id", pa.bool_(), True),
    "question_id a date": ("mini_textvqa", "question_id", pa.timestamp("ns"), 1),
    "image_id a list": ("mini_textvqa", "image_id", pa.list_(pa.int64()), [1]),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_type_without_a_clear_meaning_is_named(tmp_path: Path, name: str) -> None:
    form, column, kind, value = TYPES[name]
    path = write_columns(tmp_path / "a.parquet", [{**row, column: value} for row in ROWS[form]], {column: kind})
    with pytest.raises(InputError) as caught:
        tasks.check(path)
    stored = pq.read_schema(path).field(column).type
    assert str(caught.value).startswith(f"{path}: column '{column}' is {stored}; it must be ")


@pytest.mark.parametrize("column", ["question_id", "image_id", "image", "question", "answers"])
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, column: str) -> None:
    table = pa.Table.from_pylist(ROWS["mini_textvqa"])
    pq.write_table(table.append_column(column, table[column]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"column '{column}' is there 2 times; keep one"):
        tasks.check(tmp_path / "a.parquet")
    pq.write_table(table.append_column("note", table["question"]).append_column("note", table["question"]),
                   tmp_path / "b.parquet")  # fmt: skip
    assert tasks.check(tmp_path / "b.parquet")["rows"] == 6, "columns that nobody reads do not matter"


@pytest.mark.parametrize("group", [10, 10_000])
def test_memory_holds_some_pages(tmp_path: Path, group: int) -> None:
    """It holds the pages that are read, however large the file or its row groups are."""
    rows, size = 1000, 40_000
    noise = [{"bytes": np.random.default_rng(row).bytes(size), "path": None} for row in range(rows)]
    table = pa.table({"image": pa.array(noise, pa.struct(BYTES))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group, use_dictionary=False, write_batch_size=16)
    del table, noise
    before, most = pa.total_allocated_bytes(), 0
    for _ in columns.rows(columns.parquet(tmp_path / "a.parquet"), tmp_path / "a.parquet", ["image"]):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < rows * size / 2
