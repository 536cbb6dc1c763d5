"""A record is read back as it was written, whole or not at all, and what is no record is refused in one line."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from harness import record
from harness.text import plain
from harness.types import InputError

ID = "0123456789abcdef"
RECORD: dict[str, Any] = {
    "schema": 2,
    "id": ID,
    "status": "ok",
    "error": None,
    "trial": {
        "board": "made", "model": "reference", "method": "random", "title": "random", "variant": "", "options": {},
        "role": "reference", "regime": "training-free", "tuning": "none", "units": "both", "scope": "vision",
        "budget": 0.5, "seed": 0, "tasks": ["mini_gqa"], "split": "validation", "limit": None, "metrics": ["accuracy"],
        "calibration": {"samples": 128}, "latency": {}, "reference_input": {}, "dtype": "float32",
    },
    "plan": {"requested": 0.5, "achieved": 0.4996, "blocks": {"vision.0": {"heads": [0, 2]}}},
    "metrics": {"accuracy": {"mean": 0.75, "lo": 0.7, "hi": 0.8, "tasks": {"mini_gqa": {"accuracy": 0.75, "n": 600}}}},
    "cost": {"ranking_s": 0.1},
    "log": {},
    "env": {"cpu": "Example CPU"},
    "code": {"version": "0.1.0", "revision": None, "dirty": True},
    "hashes": {"weights": "w"},
}  # fmt: skip
DELETE = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """RECORD with the value at a dotted path replaced, or taken away."""
    result = copy.deepcopy(RECORD)
    *parents, last = path.split(".")
    part = result
    for key in parents:
        part = part[key]
    if value is DELETE:
        del part[last]
    else:
        part[last] = value
    return result


def test_what_is_written_is_read_back_with_the_hash_of_its_samples(tmp_path: Path) -> None:
    samples = pyarrow.table({"question_id": ["a", "b"], "score": [1.0, 0.3]})
    path = record.write(tmp_path / "results" / "made", RECORD, samples)
    assert sorted(file.name for file in path.parent.iterdir()) == [f"{ID}.json", f"{ID}.parquet"]
    table = path.with_suffix(".parquet")
    assert parquet.read_table(table).equals(samples)
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    found = record.read(path)
    assert found["hashes"].pop("record") == record.content_hash(changed("hashes.samples", digest))
    assert found == changed("hashes.samples", digest)
    assert "samples" not in RECORD["hashes"], "the caller's record is left alone"


def test_text_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    def backwards(value: Any) -> Any:
        return {k: backwards(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

    first = record.write(tmp_path / "a", RECORD).read_bytes()
    assert record.write(tmp_path / "b", backwards(RECORD)).read_bytes() == first
    assert first.startswith(b'{\n  "') and first.endswith(b"}\n")


def test_a_trial_without_samples_drops_those_of_an_earlier_run(tmp_path: Path) -> None:
    record.write(tmp_path, RECORD, pyarrow.table({"score": [1.0]}))
    record.write(tmp_path, RECORD)
    assert [file.name for file in tmp_path.iterdir()] == [f"{ID}.json"]


def test_a_failure_while_writing_leaves_the_old_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record.write(tmp_path, RECORD)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        record.write(tmp_path, changed("cost.ranking_s", 9.0))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        record.write(tmp_path, changed("cost.ranking_s", number), pyarrow.table({"score": [1.0]}))
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot write records there"):
        record.write(tmp_path / "file", RECORD)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema", 3, "schema: made by a newer version"),
        ("schema", 0, "schema: must be 1 to 2"),
        ("schema", True, "schema: must be 1 to 2"),
        ("schema", DELETE, "schema: must be 1 to 2"),
        ("id", "f" * 16, "id: f+ is not the file's name"),
        ("id", "../../etc/passwd", "id: "),
        ("status", "fine", "status: "),
        ("status", "failed", "error: does not go with status failed"),
        ("error", {"type": "E", "message": "m"}, "error: does not go with status ok"),
        ("trial", [], "trial: "),
        ("trial.method", DELETE, "trial.method: Field required"),
        ("trial.seed", "0", "trial.seed: "),
        ("trial.seed", True, "trial.seed: "),
        ("trial.budget", 1.5, "trial.budget: "),
        ("trial.scope", "audio", "trial.scope: "),
        ("metrics.accuracy.mean", "0.75", "metrics.accuracy.mean: "),
        ("metrics.accuracy.mean", 75, "metrics.accuracy.mean: "),
        ("metrics.accuracy.tasks.mini_gqa", 0.75, "metrics.accuracy.tasks.mini_gqa: "),
        ("cost.ranking_s", "fast", "cost.ranking_s: "),
        ("env", DELETE, "env: Field required"),
    ],
)
def test_a_bad_record_is_refused_with_file_and_key(tmp_path: Path, path: str, value: Any, says: str) -> None:
    file = tmp_path / f"{ID}.json"
    file.write_text(json.dumps(changed(path, value)), encoding="utf-8")
    with pytest.raises(InputError, match=f"{ID}.json: {says}") as caught:
        record.read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": NaN}', b'{"schema": 1e999}', b"[" * 100_000],
    ids=["empty", "cut off", "list", "null", "not utf-8", "nan", "infinity", "deep"],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / f"{ID}.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{ID}.json: not a record") as caught:
        record.read(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the record"):
        record.read(tmp_path / f"{ID}.json")


def test_a_record_changed_by_hand_is_refused_even_where_the_schema_allows_it(tmp_path: Path) -> None:
    path = record.write(tmp_path, RECORD)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"mean": 0.75', '"mean": 0.76'), encoding="utf-8")
    with pytest.raises(InputError, match=f"{ID}.json: hashes.record: the record was changed"):
        record.read(path)
    path.write_text(json.dumps(json.loads(text)), encoding="utf-8")  # laid out otherwise, the same content
    assert record.read(path)["metrics"] == RECORD["metrics"]
    path.write_text(json.dumps(RECORD), encoding="utf-8")
    with pytest.raises(InputError, match=r"hashes\.record"):
        record.read(path)


def test_a_record_of_the_first_schema_reads_as_one_of_this(tmp_path: Path) -> None:
    old = tmp_path / f"{ID}.json"
    old.write_text(json.dumps(changed("schema", 1)), encoding="utf-8")
    found = record.read(old)
    assert found["schema"] == 2 and found["hashes"].pop("record") and found == RECORD
    written = record.write(tmp_path / "new", record.read(old))
    assert record.read(written) == record.read(old)


def test_load_gives_the_good_and_names_the_bad(tmp_path: Path) -> None:
    good = record.write(tmp_path, RECORD, pyarrow.table({"score": [1.0]}))
    (tmp_path / f"{'e' * 16}.json").write_text("{", encoding="utf-8")
    (tmp_path / ".half.json.1.tmp").write_text("{", encoding="utf-8")
    records, problems = record.load(tmp_path)
    assert records == [record.read(good)]
    assert len(problems) == 1 and f"{'e' * 16}.json" in problems[0]


def test_metrics_may_be_absent(tmp_path: Path) -> None:
    for part in ("metrics", "plan", "metrics.accuracy"):
        record.read(record.write(tmp_path, changed(part, DELETE)))


def test_an_id_depends_on_values_alone() -> None:
    assert record.short_hash({"a": 1, "b": ("x", 2.5)}) == record.short_hash({"b": ["x", 2.5], "a": 1})
    assert record.short_hash({"a": 1}) != record.short_hash({"a": 2})
    # Fixed for good: stored results are found by it.
    assert record.short_hash({"method": "random", "budget": 0.5}) == "f30a7f4ca81d115e"


@given(st.text())
def test_plain_text_is_one_printable_line_and_stays_so(text: str) -> None:
    safe = plain(text)
    assert safe.isprintable() and plain(safe) == safe


def test_escape_sequences_lose_their_escape() -> None:
    assert plain("\x1b[31mred\x1b[0m\r\n\u202eend\x9b2J") == "[31mred [0m end 2J"
