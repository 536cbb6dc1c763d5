"""Parquet files and model folders that cannot be used, as `malformed` has boards and records; and all together."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.malformed import NASTY, Case, board_file, boards, png, records
from tests.support.question_files import question_rows


def cases(model: Path, board: dict[str, Any]) -> Iterator[Case]:
    """Of all kinds; model: a sound folder, board: a sound board of it."""
    yield from boards(board)
    yield from records()
    yield from parquets()
    yield from models(model, board)


# --- parquet files ------------------------------------------------------------------------------------------


def parquets() -> Iterator[Case]:
    good = [dict(row) for row in question_rows("mini_textvqa", 3)]

    def table(change: Callable[[list[dict[str, Any]]], object]) -> bytes:
        made = [dict(row) for row in good]
        change(made)
        return _parquet(pa.Table.from_pylist(made))

    def image(content: bytes | None) -> bytes:
        return table(lambda made: made[1].update(image={"bytes": content, "path": "x"}))

    whole = table(lambda made: None)
    content: dict[str, bytes] = {f"cut at {i}": whole[: len(whole) * i // 12] for i in range(12)}
    content |= {f"cut front {i}": whole[i:] for i in (1, 4, 100)}
    content |= {
        f"without {key}": table(lambda made, key=key: [row.pop(key) for row in made])
        for key in ("image", "question", "answers", "question_id")
    }
    content |= {
        f"{key} null": table(lambda made, key=key: made[1].update({key: None}))
        for key in ("image", "question", "answers")
    }
    content |= {
        f"answers {value!r:.12}": table(lambda made, value=value: [row.update(answers=value) for row in made])
        for value in (3, 1.5, "x", True, [1.5], [True], [[]], [""], [" "], {"a": "b"}, {"answer": ["b"]})
    }
    content |= {
        f"image {value!r:.12}": table(lambda made, value=value: [row.update(image=value) for row in made])
        for value in (3, "x", b"x", [1], {"path": "/etc/passwd"}, {"bytes": "x"})
    }
    content |= {
        "rows claimed": _claim(whole, len(good), 2**31),
        "rows claimed most": _claim(whole, len(good), 2**62),
        "rows claimed fewer than none": _claim(whole, len(good), -1),
        "footer longer than the file": whole[:-8] + struct.pack("<I", 2**31) + b"PAR1",
        "footer of nothing": whole[:-8] + struct.pack("<I", 0) + b"PAR1",
        "footer noise": b"PAR1" + b"\xff" * 500 + struct.pack("<I", 400) + b"PAR1",
        "encrypted": whole[:-4] + b"PARE",
        "no rows": _parquet(pa.Table.from_pylist(good)[:0]),
        "pages noise": whole[:200] + bytes(255 - b for b in whole[200:1500]) + whole[1500:],
        "csv": b"question,answer\n",
        "nothing": b"",
        "bomb": image(png(30_000, 30_000)),
        "bomb within PIL's own limit": image(png(12_000, 12_000)),
        "claims to be huge": image(png(2, 2, claim=(2**31 - 1, 2**31 - 1))),
        "text bomb": image(png(2, 2, text=50_000_000)),
        "half a picture": image(png(400, 400, noise=True)[:2000]),
        "postscript": image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(owned) run\n"),
        "pdf": image(b"%PDF-1.4\n%%EOF"),
        "svg": image(b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'),
        "html": image(b"<html></html>"),
        "zip": image(b"PK\x03\x04" + b"\x00" * 100),
        "gif without end": image(b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00"),
        "tiff loop": image(b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00"),
        "no bytes": image(b""),
        "null bytes": image(None),
        "noise": image(os.urandom(500)),
    }
    for name, data in (content | dict(_writers(good))).items():
        yield Case(f"parquet {name}", partial(_data, data))
    for label in ("escape", "html", "newline", "override", "markup"):
        made = [{f"question{NASTY[label]}" if key == "question" else key: row[key] for key in row} for row in good]
        yield Case(f"parquet column {label}", partial(_data, _parquet(pa.Table.from_pylist(made))))
    for target in ("/dev/zero", "/etc/passwd", "/", "loop"):
        yield Case(f"parquet linked to {target}", partial(_linked, target))


def _writers(good: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """What other writers make of a column: values and types without a meaning, ids that identify nothing."""
    whole = pa.Table.from_pylist(good)

    def column(name: str, values: Any, kind: Any = None) -> bytes:
        values = values if isinstance(values, pa.Array) else pa.array(values, kind)
        return _parquet(whole.set_column(whole.schema.get_field_index(name), name, values))

    for name in ("question_id", "image_id", "image", "question", "answers"):
        yield f"{name} twice", _parquet(whole.append_column(name, whole[name]))
        yield f"{name} of nulls", column(name, [None] * len(good))
    for name in ("question_id", "image_id"):
        text = [str(row[name]) for row in good]
        yield f"{name} null", column(name, [*text[:-1], None])
        yield f"{name} NaN", column(name, [*map(float, text[:-1]), float("nan")])
        yield f"{name} endless", column(name, [*map(float, text[:-1]), float("inf")])
        yield f"{name} broken", column(name, [*map(float, text[:-1]), 0.5])
        yield f"{name} empty", column(name, [*text[:-1], ""])
        yield f"{name} blank", column(name, [*text[:-1], " \t"])
        yield f"{name} no text", column(name, [*(t.encode() for t in text[:-1]), b"\xff\xfe"])
        yield f"{name} of lists", column(name, [[t] for t in text])
        yield f"{name} of truth values", column(name, [True] * len(good))
        yield f"{name} of times", column(name, range(len(good)), pa.timestamp("ns"))
    yield "question_id again", column("question_id", [1] * len(good))
    yield (
        "question_id in words again",
        column("question_id", ["one"] * len(good), pa.dictionary(pa.int8(), pa.string())),
    )
    yield "a row again", _parquet(pa.concat_tables([whole, whole[2:3]]))
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        yield f"question as {kind}, no text", column("question", [b"?"] * 4 + [b"\xe9t\xe9"] * (len(good) - 4), kind)
    for broken in (b"\xff", b"\xed\xa0\x80", b"\xc3("):
        words = pa.array([broken] * len(good), pa.binary()).view(pa.string())
        yield f"question as string, no text {broken!r}", column("question", words)
    answers = [[b"red"]] * (len(good) - 1) + [[b"\xff"]]
    yield "answers no text", column("answers", answers)
    yield "answers with a null", column("answers", [["red", None]] * len(good))
    yield "answers of a fixed number, a null", column("answers", [None] * len(good), pa.list_(pa.string(), 2))
    yield "answers a map", column("answers", [[("a", 1)]] * len(good), pa.map_(pa.string(), pa.int64()))
    yield "answers of entries without an answer", column("answers", [[{"text": "a"}]] * len(good))
    yield "answers of null entries", column("answers", [[None, {"answer": "a"}]] * len(good))
    yield "image bare, no image", column("image", [b"x"] * len(good), pa.binary_view())
    yield "image of a fixed size, no image", column("image", [b"12345678"] * len(good), pa.binary(8))
    yield "image of numbers", column("image", [[137, 80]] * len(good), pa.list_(pa.uint8()))
    gqa = pa.Table.from_pylist([dict(row) for row in question_rows("mini_gqa", 3)])
    for values, why in (
        ([2.0] * 9, "floats"),
        ([True] * 9, "truth values"),
        ([["a"]] * 9, "lists"),
        ([None] * 9, "nulls"),
    ):
        place = gqa.schema.get_field_index("answer")
        yield f"answer of {why}", _parquet(gqa.set_column(place, "answer", pa.array(values)))
    for kind in ("TIFF", "PPM", "TGA", "ICO"):  # of which PIL reads more than it shows
        sink = io.BytesIO()
        Image.new("RGB", (16, 16)).save(sink, kind)
        yield f"a picture as {kind}", column("image", [{"bytes": sink.getvalue(), "path": "a.png"}] * len(good))


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _data(content: bytes, folder: Path) -> list[str]:
    (folder / "mine.parquet").write_bytes(content)
    return ["data", "check", str(folder / "mine.parquet")]


def _linked(target: str, folder: Path) -> list[str]:
    (folder / "mine.parquet").symlink_to(folder / "mine.parquet" if target == "loop" else target)
    return ["data", "check", str(folder / "mine.parquet")]


def _claim(whole: bytes, there: int, said: int) -> bytes:
    """The file with another number of rows in its footer (thrift's compact form: field 3, an i64)."""

    def varint(number: int) -> bytes:
        zigzag, out = (number << 1) ^ (number >> 63), bytearray()
        while zigzag > 0x7F:
            out.append(zigzag & 0x7F | 0x80)
            zigzag >>= 7
        return bytes([*out, zigzag])

    size = struct.unpack("<I", whole[-8:-4])[0]
    footer = whole[-8 - size : -8]
    old = b"\x16" + varint(there) + b"\x19"
    assert old in footer
    footer = footer.replace(old, b"\x16" + varint(said) + b"\x19", 1)
    return whole[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1"


# --- model folders ------------------------------------------------------------------------------------------


def models(good: Path, board: dict[str, Any]) -> Iterator[Case]:
    def case(name: str, file: str, content: Any) -> Case:
        return Case(f"model {name}", partial(_model, good, board, file, content))

    config = json.loads((good / "config.json").read_text())
    for label, text in NASTY.items():
        yield case(f"model_type {label}", "config.json", json.dumps({**config, "model_type": text}))
    for value in (None, True, 7, [], {}, ["qwen2_vl"], "qwen2_vl ", "gpt2", "QWEN2_VL"):
        yield case(f"model_type {value!r}", "config.json", json.dumps({**config, "model_type": value}))
    for name, content in {
        "deep": b'{"a":' * 100_000,
        "list": b"[]",
        "text": b'"qwen2_vl"',
        "null": b"null",
        "empty": b"",
        "invalid utf-8": b'{"model_type": "\xff"}',
        "utf-16": json.dumps(config).encode("utf-16"),
        "huge number": b'{"model_type": ' + b"9" * 10_000 + b"}",
        "half": json.dumps(config).encode()[:30],
        "link": Path("/etc/passwd"),
        "endless": Path("/dev/zero"),
        "loop": Path("config.json"),
        "gone": None,
    }.items():
        yield case(f"config {name}", "config.json", content)

    def header(tensors: Any, size: int | None = None, body: bytes = b"\x00" * 64) -> bytes:
        text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
        return struct.pack("<Q", len(text) if size is None else size) + text + body

    def tensor(dtype: Any = "F32", shape: Any = (4, 4), offsets: Any = (0, 64), name: str = "w") -> dict[str, Any]:
        return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}

    for name, content in {
        "header longer than the file": header(tensor(), 2**20),
        "header of 2^63": header(tensor(), 2**63),
        "header of 2^64-1": header(tensor(), 2**64 - 1),
        "header of nothing": header(tensor(), 0),
        "header no JSON": header(b"not json at all"),
        "header deep": header(b'{"a":' * 50_000),
        "header a list": header([]),
        "dtype unknown": header(tensor(dtype="F33")),
        "dtype a number": header(tensor(dtype=7)),
        "shape negative": header(tensor(shape=(-4, -4))),
        "shape of 2^62": header(tensor(shape=(2**62, 4))),
        "shape overflows": header(tensor(shape=(2**33, 2**33, 2**33))),
        "shape too large": header(tensor(shape=(1000, 1000))),
        "shape too small": header(tensor(shape=(1,))),
        "offsets beyond the end": header(tensor(offsets=(0, 6400))),
        "offsets backwards": header(tensor(offsets=(64, 0))),
        "offsets negative": header(tensor(offsets=(-64, 0))),
        "offsets with a hole": header(tensor() | tensor(offsets=(128, 192), name="v"), body=b"\x00" * 192),
        "offsets that overlap": header(tensor() | tensor(offsets=(32, 96), name="v"), body=b"\x00" * 96),
        "body too long": header(tensor(), body=b"\x00" * 4096),
        "body too short": header(tensor(), body=b"\x00" * 60),
        "a pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
        "a zip": b"PK\x03\x04" + b"\x00" * 100,
        "empty": b"",
        "eight bytes": b"\x00" * 8,
        "link": Path("/etc/passwd"),
        "dangling": Path("/nowhere/model.safetensors"),
        "loop": Path("model.safetensors"),
        "gone": None,
    }.items():  # fmt: skip
        yield case(f"weights {name}", "model.safetensors", content)
    for file in ("processor_config.json", "tokenizer.json"):
        yield case(f"{file} gone", file, None)


def _model(good: Path, board: dict[str, Any], file: str, content: Any, folder: Path) -> list[str]:
    """The sound folder with one file of other content, linked elsewhere (a Path), or not there (None)."""
    model = folder / "model"
    model.mkdir()
    for one in good.iterdir():
        if one.name != file:
            (model / one.name).symlink_to(one)
    if isinstance(content, Path):
        (model / file).symlink_to(content)
    elif content is not None:
        (model / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return board_file({**board, "model": str(model)}, folder)
