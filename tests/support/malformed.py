"""Hundreds of boards and records that cannot be used, each with a command to meet it.

    for case in boards(good): words = case.make(folder)      # infoprune *words has to end in one line, exit 2

Every one is a change of something sound, so that nothing else is wrong with it.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from harness.records import record
from harness.records.schema import SCHEMA
from tests.support import stored

NASTY = {  # what a name must not do to a terminal, a page, a file system or a reader
    "escape": "\x1b[2J\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "html": "<script>alert(1)</script>",
    "markup": "[red]red[/red][link=file:///etc]x[/link]",
    "bell": "a\x07\x08b",
    "newline": "a\nerror: forged",
    "return": "a\rb",
    "null": "a\x00b",
    "override": "a\u202egnp.b",
    "separator": "a\u2028b",
    "wide": "\U0001f600" * 50,
    "combining": "a" + "\u0301" * 500,
    "full": "／etc／passwd",
    "long": "a" * 100_000,
    "up": "../../outside",
    "root": "/etc/passwd",
    "home": "~/.ssh/id",
    "windows": "..\\..\\outside",
    "device": "/dev/zero",
    "percent": "%2e%2e%2f",
    "shell": "$(touch owned); `id`",
    "format": "{0.__class__} %s%n",
    "empty": "",
    "space": "   ",
}
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    b"\xff",
)


@dataclass(frozen=True)
class Case:
    """A name, and what makes the files in an empty folder and returns the words of the command."""

    name: str
    make: Callable[[Path], list[str]]


# --- boards -------------------------------------------------------------------------------------------------


def boards(good: dict[str, Any]) -> Iterator[Case]:
    def case(name: str, content: Any) -> Case:
        return Case(f"board {name}", partial(board_file, content))

    for key in ("name", "model", "methods", "budgets", "tasks", "split", "metrics", "scopes", "dtype"):
        for label, text in NASTY.items():
            if key == "name" and label == "long":
                continue
            yield case(f"{key} {label}", {**good, key: text if key in ("name", "model", "split", "dtype") else [text]})
    sound = {"floors": (True, 0, []), "limit": (None, True, 10**400), "units": (), "latency": ({},), "tuning": ({},)}
    sound |= {"calibration": ({},), "reference_input": ({},), "budgets": (), "methods": (), "tasks": ()}
    for key, fine in sound.items():
        for value in VALUES:
            if value in fine or (key == "floors" and value in (1, 0)) or isinstance(value, bytes):
                continue
            yield case(f"{key} {value!r:.20}", {**good, key: value})
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    for name, text in {
        "bomb": bomb,
        "bomb in a name": bomb + "name: *j\n",
        "bomb in methods": bomb + yaml.safe_dump({k: v for k, v in good.items() if k != "methods"}) + "methods: *j\n",
        "loop": "name: &a [*a]\n",
        "deep list": "[" * 5000,
        "deep map": "{a: " * 5000,
        "deep blocks": "".join("  " * i + "a:\n" for i in range(700)),
        "python": "!!python/object/apply:os.system ['touch owned']",
        "python name": "name: !!python/name:os.system ''",
        "python module": "name: !!python/module:os ''",
        "binary": "name: !!binary aGVsbG8=",
        "set": "name: !!set {a, b}",
        "own tag": "name: !danger x",
        "merge": "<<: {a: 1}",
        "a key twice": yaml.safe_dump(good) + "budgets: [0.9]\n",
        "tag of no bool": "model: !!bool z",
        "tag of no time": "model: !!timestamp z",
        "documents": "name: a\n---\nname: b\n",
        "tab": "name:\n\t- a",
        "unclosed": "name: 'a",
        "undefined alias": "name: *nobody",
        "number": "7",
        "key that is a list": "? [a, b]\n: c\n",
        "key that is a map": "? {a: b}\n: c\n",
        "numeric key": "7: a\n",
        "huge number": f"budgets: [{'9' * 6000}]",
        "sexagesimal": yaml.safe_dump({**good, "budgets": "X"}).replace("X", "[1:30:00]"),
        "utf-16": "name: a".encode("utf-16"),
        "invalid utf-8": b"name: \xc3\x28",
        "surrogate": b'name: "\xed\xa0\x80"',
        "nul": b"\x00" * 64,
        "control": b"name: \x1b[31m",
        "a picture": png(2, 2),
        "million keys": "".join(f"k{i}: 1\n" for i in range(20_000)),
    }.items():
        yield case(name, text)


def board_file(content: Any, folder: Path) -> list[str]:
    file = folder / "board.yaml"
    if isinstance(content, dict):
        content = yaml.safe_dump(content, allow_unicode=False)
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return ["sweep", str(file), "--dry-run"]


# --- records ------------------------------------------------------------------------------------------------


def _record(change: Callable[[dict[str, Any]], Any], folder: Path, name: str = "") -> list[str]:
    """A folder with one record, changed, its own hash set right; to be merged somewhere."""
    path = stored.put(folder / "results", np.ones(9))
    made = json.loads(path.read_text())
    result = change(made)
    if result is None:
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            made["hashes"]["record"] = record.content_hash(made)
        result = json.dumps(made)
    target = path.with_name(name) if name else path
    if name:
        path.unlink()
    target.write_bytes(result if isinstance(result, bytes) else result.encode())
    return ["results", "merge", str(folder / "results"), "--out", str(folder / "merged")]


def records() -> Iterator[Case]:
    def setting(place: tuple[str, ...], value: Any) -> Callable[[dict[str, Any]], None]:
        def change(made: dict[str, Any]) -> None:
            for key in place[:-1]:
                made = made[key]
            made[place[-1]] = value

        return change

    wrong: dict[tuple[str, ...], tuple[Any, ...]] = {
        ("schema",): (None, True, 0, -1, 1, 2, SCHEMA + 1, 99, "2", [2], 2.5),
        ("id",): (None, 7, "", "../../outside", "0" * 16, "G" * 16, "/etc/passwd", "a\x1b[31m", "\u202e" * 16),
        ("status",): (None, "good", 1, [], "failed"),
        ("error",): ("x", {}, {"type": 1, "message": "m"}, {"type": "t", "message": "m"}),
        ("trial",): (None, [], "x", {}),
        ("trial", "board"): (None, 7, "", "../../outside", "/etc", "a/b", "other", "made\x00", "<b>", "\x1b[2J"),
        ("trial", "budget"): (None, 0, 1.5, -1, "half", True, [], float("nan"), float("inf"), 10**400),
        ("trial", "scope"): (None, "x", 1, "<script>"),
        ("trial", "units"): (None, "x", ["heads"]),
        ("trial", "seed"): (None, "0", 0.5, True, 7),
        ("trial", "tasks"): (None, "x", [1], {}),
        ("trial", "limit"): ("x", 1.5, [], 5),
        ("trial", "options"): (None, [], "x", {"a": 1}),
        ("trial", "method"): (None, 5, [], "<img src=x onerror=alert(1)>"),
        ("trial", "calibration"): (None, [], {"samples": {}}, {"samples": 8, "shots": 1}),
        ("trial", "recovery"): (None, [], {"method": "x"}, {"method": "full", "rate": "x"}, {"method": "full", "x": 1},
                                {"method": "full", "steps": {}}, {"method": "none", "steps": 5}),
        ("trial", "loading"): (None, [], "x", {"x": 1}, {"revision": {}}),
        ("contestant",): (None, [], "x", {}),
        ("contestant", "role"): (None, 7, "judge"),
        ("contestant", "resolved"): (None, [], "x"),
        ("plan",): ([], "x", {}, {"requested": 0.5, "achieved": 0.5, "blocks": [1]},
                    {"requested": 0.5, "achieved": 0.5, "blocks": {"a": {"ffn": {}}}}),
        ("metrics",): ([], "x", 7),
        ("metrics", "accuracy"): (None, [], {}, {"mean": 2}, {"mean": -1}, {"mean": "x"}, {"mean": float("nan")}),
        ("metrics", "accuracy", "tasks"): ([], {"x": 1}, {"mini_gqa": {"accuracy": 0.5}}, {"a": {"accuracy": 1}}),
        ("metrics", "latency"): ([], "x", {"speedup": "fast"}),
        ("metrics", "flops"): ([], {"kept": "x"}, {"kept": float("inf")}),
        ("hashes",): (None, [], "x", {}),
        ("env",): (None, [], "x"),
        ("code",): (None, [], "x"),
        ("cost",): ([], "x"),
        ("cost", "ranking_s"): ("fast", [], 10**400),
        ("cost", "peak_memory_bytes"): ({}, True),
        ("cost", "calibration_samples"): ({}, "many"),
        ("log",): ([], "x"),
    }  # fmt: skip
    for place, values in wrong.items():
        for value in values:
            yield Case(f"record {'.'.join(place)} {value!r:.80}", partial(_record, setting(place, value)))
    for name, text in {
        "empty": b"",
        "half": None,
        "list": b"[]",
        "number": b"7",
        "null": b"null",
        "deep list": b"[" * 100_000,
        "deep map": b'{"a":' * 100_000,
        "huge number": b'{"schema": ' + b"9" * 10_000 + b"}",
        "huge float": b'{"schema": 1e999}',
        "nan": b'{"schema": NaN}',
        "infinity": b'{"schema": -Infinity}',
        "invalid utf-8": b'{"schema": "\xff"}',
        "utf-16": '{"schema": 2}'.encode("utf-16"),
        "bom": b'\xef\xbb\xbf{"schema": 2}',
        "nul": b"\x00" * 4096,
        "a picture": png(2, 2),
        "yaml": b"schema: 2\n",
        "trailing": b'{"schema": 2} {"schema": 2}',
        "escape": b'{"schema": "\\u001b[2J"}',
        "lone surrogate": b'{"schema": "\\ud800"}',
        "large": b'{"schema": 2, "x": "' + b"a" * 5_000_000 + b'"}',
    }.items():
        yield Case(
            f"record {name}",
            partial(_record, lambda made, text=text: text if text is not None else json.dumps(made)[:400]),
        )
    for name in ("x.json", "..json", "a\x1b[31mb.json", "<b>.json", "0000000000000000.json", "\u202e.json", "-rf.json"):
        yield Case(f"record file {name!r}", partial(_record, lambda made: None, name=name))
    for name, spoil in {
        "samples gone": lambda file: file.unlink(),
        "samples empty": lambda file: file.write_bytes(b""),
        "samples others": lambda file: pq.write_table(stored.samples([0.0] * 9), file),
        "samples a folder": lambda file: (file.unlink(), file.mkdir()),
        "samples linked out": lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
        "samples a loop": lambda file: (file.unlink(), file.symlink_to(file)),
        "samples endless": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
    }.items():
        yield Case(f"record {name}", partial(_samples, spoil))


def _samples(spoil: Callable[[Path], object], folder: Path) -> list[str]:
    words = _record(lambda made: None, folder)
    spoil(next((folder / "results").glob("*/*.parquet")))
    return words


# --- pictures --------------------------------------------------------------------------------------------


def png(width: int, height: int, *, claim: tuple[int, int] | None = None, text: int = 0, noise: bool = False) -> bytes:
    """A PNG of one colour; with another size than it says, with a text that inflates to so many bytes, or of noise."""
    if noise:
        sink = io.BytesIO()
        Image.frombytes("RGB", (width, height), os.urandom(width * height * 3)).save(sink, "PNG")
        return sink.getvalue()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, line = zlib.compressobj(1), b"\x00" * (1 + (width + 7) // 8)
    body = b"".join(packer.compress(line * min(64, height - i)) for i in range(0, height, 64)) + packer.flush()
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *(claim or (width, height)), 1, 0, 0, 0, 0))]
    if text:
        parts.append(chunk(b"zTXt", b"a\x00\x00" + zlib.compress(b"a" * text)))
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", body), chunk(b"IEND", b"")])
