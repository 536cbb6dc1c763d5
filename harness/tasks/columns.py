"""The columns of a parquet file, whoever wrote it, as plain values: texts, ids and encoded images.

    file = parquet(path)
    for row, doc in rows(file, path, ["question_id", "image", "question", "answers"]): ...

Arrow has many types for one thing: text may be a string, a large string, a view, bytes or a dictionary, and a list may
have a fixed size. All of these are read. What has no clear meaning is refused with its column and row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from harness.types import InputError

COLUMNS = (
    "question_id, image {bytes, path}, question and answers (a list of strings, or of {answer, answer_id}),"
    " or GQA's id, image, question and answer"
)
IMAGE_IDS = ("image_id", "imageId")


def parquet(path: Path) -> pq.ParquetFile:
    """The opened file. Raises InputError if it is no parquet file or has no rows."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # pages as needed, not the file ahead
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


def form(schema: pa.Schema, path: Path) -> str:
    """The shipped definition that fits these columns. Raises InputError if none fits."""
    gqa = "answers" not in schema.names and {"id", "answer"} <= set(schema.names)
    needed = ("id", "image", "question", "answer") if gqa else ("question_id", "image", "question", "answers")
    require(schema, path, needed, f"; the columns must be {COLUMNS}")
    if gqa:
        return "mini_gqa"
    inner = _inner(schema.field("answers").type)
    return "mini_vqav2" if types.is_struct(inner) else "mini_textvqa"


def require(schema: pa.Schema, path: Path, needed: Sequence[str], remedy: str = "") -> None:
    """Raise InputError unless the needed columns are there, once and of types that `rows` can read."""
    names = schema.names
    if missing := [name for name in needed if name not in names]:
        listed = ", ".join(f"'{name}'" for name in missing)
        raise InputError(f"{path}: missing column {listed} (the file has: {', '.join(names)}){remedy}")
    for name in (*needed, *IMAGE_IDS):
        if names.count(name) > 1:
            raise InputError(f"{path}: column '{name}' is there {names.count(name)} times; keep one")
        fits, right, _ = _KINDS[name]
        if name in names and not fits(_plain(schema.field(name).type)):
            raise InputError(f"{path}: column '{name}' is {schema.field(name).type}; it must be {right}")


def image_column(schema: pa.Schema) -> str | None:
    """The column with the ids of the images, if there is one."""
    return next((name for name in IMAGE_IDS if name in schema.names), None)


def rows(
    file: pq.ParquetFile, path: Path, columns: Sequence[str], only: Collection[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the values of each row, or of `only` these rows; memory holds a few pages of the file.

    Texts and ids are str, an image is {bytes, path}, answers are a list of str or of dicts with a str `answer`; a null
    is None. Raises InputError for a damaged file, for bytes that are no text, and for an id that is null or empty.
    """
    start = 0
    for batch in _batches(file, path, columns):
        values = [(name, batch.column(place), _KINDS[name][2]) for place, name in enumerate(batch.schema.names)]
        for i in range(batch.num_rows):
            row = start + i
            if only is None or row in only:
                yield row, {name: _read(column, i, read, path, row, name) for name, column, read in values}
        start += batch.num_rows


def _batches(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=64, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: a damaged parquet file ({str(error).splitlines()[0]})") from error


# --- values ---------------------------------------------------------------------------------------------------


class _Unclear(Exception):
    """A value without a clear meaning; the text says what is wrong and what would be right."""


def _read(column: pa.Array, i: int, read: Callable[[Any], Any], path: Path, row: int, name: str) -> Any:
    try:
        return read(column[i].as_py())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: row {row}: column '{name}' is no UTF-8 text; store it as text") from error
    except _Unclear as error:
        raise InputError(f"{path}: row {row}: column '{name}' {error}") from error


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode()
    return str(value) if isinstance(value, int) else value


def _id(value: Any) -> str:
    if value is None or value != value:  # pandas' NaN stands for a null
        raise _Unclear("is null; give every row an id")
    if not isinstance(value, str | bytes | int | UUID):
        if value in (float("inf"), float("-inf")) or value != int(value):
            raise _Unclear(f"is {value}; an id must be text or a whole number")
        value = int(value)
    text = str(value) if isinstance(value, UUID) else _text(value) or ""
    if not text.strip():
        raise _Unclear("is empty; give every row an id")
    return text


def _image(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"bytes": value["bytes"], "path": value.get("path")}
    return {"bytes": value, "path": None}


def _answers(value: Any) -> list[Any]:
    return [
        {**item, "answer": _text(item["answer"])} if isinstance(item, dict) else _text(item) for item in value or ()
    ]


# --- types ----------------------------------------------------------------------------------------------------


def _plain(kind: Any) -> Any:
    """The type of the values: of a dictionary's entries, or of what an extension type stores."""
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    return _plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_bytes(kind: Any) -> bool:
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary, types.is_null)
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or _is_bytes(kind)


def _is_answer(kind: Any) -> bool:
    return _is_text(kind) or types.is_integer(kind)


def _is_id(kind: Any) -> bool:
    return _is_answer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def _is_image(kind: Any) -> bool:
    if types.is_struct(kind) and (place := kind.get_field_index("bytes")) >= 0:
        return _is_bytes(_plain(kind[place].type))
    return _is_bytes(kind)


def _is_answers(kind: Any) -> bool:
    inner = _inner(kind)
    if inner is not None and types.is_struct(inner) and (place := inner.get_field_index("answer")) >= 0:
        inner = _plain(inner[place].type)
    return inner is not None and _is_answer(inner)


def _inner(kind: Any) -> Any:
    """The type of a list's items; None for what is no list."""
    kind = _plain(kind)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if types.is_null(kind):
        return kind
    return _plain(kind.value_type) if any(test(kind) for test in lists) else None


def official(kind: Any) -> bool:
    """Whether lmms-eval, too, reads values of this type as `rows` does."""
    if types.is_list(kind) or types.is_large_list(kind):
        return official(kind.value_type)
    if types.is_struct(kind):
        return all(official(item.type) for item in kind)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)


# Column -> whether a type can be read, what it must be, and the reader of a value.
_Kind = tuple[Callable[[Any], bool], str, Callable[[Any], Any]]
_ID: _Kind = (_is_id, "text or whole numbers", _id)
_KINDS: dict[str, _Kind] = {
    "question_id": _ID,
    "id": _ID,
    **dict.fromkeys(IMAGE_IDS, _ID),
    "question": (_is_text, "text", _text),
    "answer": (_is_answer, "text", _text),
    "answers": (_is_answers, "a list of strings or of {answer, answer_id}", _answers),
    "image": (_is_image, "a struct {bytes, path}, or the bytes of an encoded image", _image),
}
