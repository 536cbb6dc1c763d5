"""A record is read back as it was written, whole or not at all, and what is no record is refused in one line."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from harness.records import record
from harness.records.record import Cost, Failure, Record
from harness.text import plain
from harness.types import InputError, short_hash

ID = "0123456789abcdef"
CONTENT: dict[str, Any] = {  # of a file
    "schema": 5,
    "id": ID,
    "status": "ok",
    "error": None,
    "trial": {
        "board": "made", "model": "reference", "method": "random", "options": {}, "tuning": "none", "units": "both",
        "scope": "vision", "budget": 0.5, "seed": 0, "tasks": ["mini_gqa"], "split": "validation", "limit": None,
        "metrics": ["accuracy"], "calibration": {"samples": 128, "tasks": ["mini_gqa"], "split": "calibration"},
        "latency": {"batches": [1, 8], "repeats": 20}, "reference_input": {"image": [96, 96], "text": "?"},
        "dtype": "float32",
    },
    "contestant": {
        "title": "random", "variant": "", "role": "floor", "regime": "none", "resolved": {"power": 2},
    },
    "plan": {"requested": 0.5, "achieved": 0.4996, "blocks": {"vision.0": {"heads": [0, 2]}}},
    "metrics": {"accuracy": {"mean": 0.75, "lo": 0.7, "hi": 0.8, "tasks": {"mini_gqa": {"accuracy": 0.75, "n": 600}}}},
    "cost": {"ranking_s": 0.1},
    "log": {},
    "env": {"cpu": "Example CPU"},
    "code": {"version": "0.1.0", "revision": None, "dirty": True},
    "hashes": {"weights": "w"},
}  # fmt: skip
RECORD = Record.of(CONTENT)
DELETE = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """CONTENT with the value at a dotted path replaced, or taken away."""
    result = copy.deepcopy(CONTENT)
    *parents, last = path.split(".")
    part = result
    for key in parents:
        part = part[key]
    if value is DELETE:
        del part[last]
    else:
        part[last] = value
    return result


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with the hash that a file of it has."""
    return content | {"hashes": content["hashes"] | {"record": record.content_hash(content)}}


def older(schema: int) -> dict[str, Any]:
    """CONTENT as a file of an earlier version had it."""
    content: dict[str, Any] = copy.deepcopy(CONTENT) | {"schema": schema}
    content["contestant"]["role"] = "reference"
    if schema < 4:
        content["contestant"]["regime"] = "training-free"
    if schema < 3:
        content["trial"] |= content.pop("contestant")
    return content if schema == 1 else sealed(content)


def test_a_record_and_the_content_of_its_file_are_inverse() -> None:
    assert json.loads(json.dumps(RECORD.to_json())) == CONTENT
    assert Record.of(json.loads(json.dumps(RECORD.to_json()))) == RECORD
    failed = replace(RECORD, error=Failure("E", "m", "load"), plan=None, metrics={})
    assert Record.of(json.loads(json.dumps(failed.to_json()))) == failed and failed.status == "failed"


def test_what_is_written_is_read_back_with_the_hash_of_its_samples(tmp_path: Path) -> None:
    samples = pyarrow.table({"question_id": ["a", "b"], "score": [1.0, 0.3]})
    folder = tmp_path / "results" / "made"
    written = record.write(folder, RECORD, samples)
    assert sorted(file.name for file in folder.iterdir()) == [f"{ID}.json", f"{ID}.parquet"]
    table = folder / f"{ID}.parquet"
    assert parquet.read_table(table).equals(samples)
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    assert written == record.read(folder / f"{ID}.json")
    assert written.hashes["record"] == record.content_hash(changed("hashes.samples", digest))
    assert written == replace(RECORD, hashes={"weights": "w", "samples": digest, "record": written.hashes["record"]})
    assert "samples" not in RECORD.hashes, "the caller's record is left alone"


# Texts around what the layout of a file is made of: quotes, colons, spaces, line ends, backslashes.
odd = st.text(st.sampled_from('": \\n\\\\,{}a'), max_size=12)


@given(odd, odd, odd)
@example("", ":a", ": a")
@example(":a", "", ": a")
@example(',": a', "", ',":a')
def test_a_file_is_known_by_its_bytes_and_no_change_of_a_text_passes_as_white_space(
    key: str, text: str, other: str
) -> None:
    content = sealed(changed("log", {"k" + key: text, "list": [1, [2.5], {}]}))
    written = record._dumps(content).encode()
    seal = content["hashes"]["record"]
    strange = set('":{, \\') & {*key, *text}
    assert record._as_written(written, seal) or strange, "only what holds parts of the layout takes the slow way"
    for log in ({"k" + key: other, "list": [1, [2.5], {}]}, {"k" + other: text, "list": [1, [2.5], {}]}):
        if log != content["log"]:
            assert not record._as_written(record._dumps(content | {"log": log}).encode(), seal)
    again = json.dumps(content).encode()
    for layout in (written, written.replace(b"\n", b"\r\n"), again, json.dumps(content, indent=1).encode()):
        assert record.parse(layout, Path(f"{ID}.json")) == Record.of(content)


@pytest.mark.parametrize("place", ["env", "log", "code"])
def test_the_seal_in_another_place_is_not_taken_for_the_seal(place: str) -> None:
    content = sealed(CONTENT)
    seal = content["hashes"]["record"]
    forged = copy.deepcopy(content)
    forged[place]["record"] = seal
    assert not record._as_written(record._dumps(forged).encode(), seal)
    with pytest.raises(InputError, match="changed after it was written"):
        record.parse(record._dumps(forged).encode(), Path(f"{ID}.json"))


def test_text_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    def backwards(value: Any) -> Any:
        return {k: backwards(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

    record.write(tmp_path / "a", RECORD)
    record.write(tmp_path / "b", Record.of(backwards(CONTENT)))
    first, second = (path.read_bytes() for path in sorted(tmp_path.glob("*/*.json")))
    assert second == first
    assert first.startswith(b'{\n  "') and first.endswith(b"}\n")


def test_a_trial_without_samples_drops_those_of_an_earlier_run(tmp_path: Path) -> None:
    record.write(tmp_path, RECORD, pyarrow.table({"score": [1.0]}))
    record.write(tmp_path, RECORD)
    assert [file.name for file in tmp_path.iterdir()] == [f"{ID}.json"]


def test_a_failure_while_writing_leaves_the_old_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write(tmp_path, RECORD)
    path = tmp_path / f"{ID}.json"
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        record.write(tmp_path, replace(RECORD, cost=Cost(ranking_s=9.0)))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("again", [True, False])
def test_a_disk_that_is_full_for_the_record_leaves_the_old_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Whether the new record has samples, too, or would take the old ones away."""
    record.write(tmp_path, RECORD, pyarrow.table({"score": [1.0]}))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        record.write(tmp_path, RECORD, pyarrow.table({"score": [0.0]}) if again else None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400], ids=["nan", "infinity", "no float"])
def test_what_is_no_finite_number_is_not_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match=r"JSON|not a finite number"):
        record.write(tmp_path, replace(RECORD, cost=Cost(ranking_s=number)), pyarrow.table({"score": [1.0]}))
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot write records there"):
        record.write(tmp_path / "file", RECORD)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema", 6, "schema: made by a newer version"),
        ("schema", 0, "schema: must be 1 to 5"),
        ("schema", True, "schema: must be 1 to 5"),
        ("schema", DELETE, "schema: must be 1 to 5"),
        ("id", "f" * 16, "id: f+ is not the file's name"),
        ("id", "../../etc/passwd", "id: "),
        ("status", "fine", "status: "),
        ("status", "failed", "error: contradicts status failed"),
        ("error", {"type": "E", "message": "m"}, "error: contradicts status ok"),
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
        ("contestant", DELETE, "contestant: Field required"),
        ("contestant.role", "rival", "contestant.role: "),
        ("trial.seed", -1, "trial.seed: "),
        ("trial.seed", 2**63, "trial.seed: "),
        ("trial.limit", 10**30, "trial.limit: "),
        ("trial.latency.repeats", 10**30, "trial.latency.repeats: "),
        ("trial.calibration.samples", 10**30, "trial.calibration.samples: "),
        ("contestant.regime", "", "contestant.regime: "),
        ("contestant.regime", " ", "contestant.regime: "),
        ("contestant.regime", "\x1b", "contestant.regime: "),
        ("plan.achieved", "all", "plan.achieved: "),
        ("plan.achieved", 1e308, "plan.achieved: "),
        ("metrics.accuracy.hi", 1e308, "metrics.accuracy.hi: "),
        ("metrics.latency", {"speedup": 1e308}, "metrics.latency.speedup: "),
        ("metrics.latency", {"speedup_lo": 0.0}, "metrics.latency.speedup_lo: "),
        ("metrics.flops", {"params": {"pruned": 1e308}}, "metrics.flops.params.pruned: "),
        ("metrics.memory", {"pruned": {"weight_bytes": -1e308}}, "metrics.memory.pruned.weight_bytes: "),
        ("cost.total_s", 1e308, "cost.total_s: "),
        ("env.packages", ["a"], "env.packages: "),
        ("env.packages", {"torch": 2}, "env.packages.torch: "),
        ("hashes.calibration", None, "hashes.calibration: "),
        ("hashes.data", {}, "hashes.data: "),
        ("metrics.flops", {"kept": 1.0}, "plan.achieved: 0.4996 of the FLOPs, but metrics.flops.kept is 1.0000"),
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
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": NaN}', b'{"schema": 1e999}', b"[" * 100_000]
    + [b'{"schema": 5, "log": {"x": -1%s}}' % (b"0" * zeros) for zeros in (309, 5000)],
    ids=["empty", "cut off", "list", "null", "not utf-8", "nan", "infinity", "deep", "no float", "too long"],
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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("plan", {"blocks": {}}),
        ("plan", {"requested": 0.5, "achieved": 0.5, "blocks": {"vision.0": [1]}}),
        ("plan", {"requested": 0.5, "achieved": 0.5, "blocks": {"vision.0": {"heads": {"label": "rank 3"}}}}),
        ("trial.recovery", {"method": "fully"}),
        ("trial.recovery", {"method": "full", "epochs": 3}),
        ("trial.loading", {"atention": "eager"}),
        ("trial.calibration", {"sample": 3}),
        ("trial.latency", {"batch": [1]}),
        ("trial.reference_input", {"picture": [1, 1]}),
    ],
)
def test_a_part_that_this_version_does_not_know_is_refused(tmp_path: Path, path: str, value: Any) -> None:
    file = tmp_path / f"{ID}.json"
    file.write_text(json.dumps(sealed(changed(path, value))), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{ID}\.json: (not a record of this version: |{path}\.)") as caught:
        record.read(file)
    assert "\n" not in str(caught.value)


def test_a_record_changed_by_hand_is_refused_even_where_the_schema_allows_it(tmp_path: Path) -> None:
    record.write(tmp_path, RECORD)
    path = tmp_path / f"{ID}.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"mean": 0.75', '"mean": 0.76'), encoding="utf-8")
    with pytest.raises(InputError, match=f"{ID}.json: hashes.record: the record was changed"):
        record.read(path)
    path.write_text(json.dumps(json.loads(text)), encoding="utf-8")  # laid out otherwise, the same content
    assert record.read(path).metrics == RECORD.metrics
    path.write_text(json.dumps(CONTENT), encoding="utf-8")
    with pytest.raises(InputError, match=r"hashes\.record"):
        record.read(path)


@pytest.mark.parametrize("schema", [1, 2, 3, 4])
def test_a_file_of_an_older_schema_is_the_same_record(tmp_path: Path, schema: int) -> None:
    old = tmp_path / f"{ID}.json"
    old.write_text(json.dumps(older(schema)), encoding="utf-8")
    found = record.read(old)
    assert found.hashes["record"] and replace(found, hashes={"weights": "w"}) == RECORD
    again = record.write(tmp_path / "new", found)
    assert replace(again, hashes={}) == replace(found, hashes={})


def test_a_file_of_an_older_schema_that_was_changed_is_refused(tmp_path: Path) -> None:
    old = tmp_path / f"{ID}.json"
    content = older(2)
    content["trial"]["title"] = "another"
    old.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"hashes\.record: the record was changed"):
        record.read(old)


def test_load_gives_the_good_and_names_the_bad(tmp_path: Path) -> None:
    good = record.write(tmp_path, RECORD, pyarrow.table({"score": [1.0]}))
    (tmp_path / f"{'e' * 16}.json").write_text("{", encoding="utf-8")
    (tmp_path / ".half.json.1.tmp").write_text("{", encoding="utf-8")
    records, problems = record.load(tmp_path)
    assert records == [good]
    assert len(problems) == 1 and f"{'e' * 16}.json" in problems[0]


@pytest.mark.parametrize("part", ["contestant", "cost", "code", "env", "plan", "metrics.accuracy", "trial"])
def test_further_keys_are_ignored(tmp_path: Path, part: str) -> None:
    file = tmp_path / f"{ID}.json"
    file.write_text(json.dumps(sealed(changed(f"{part}.new", 1))), encoding="utf-8")
    assert record.read(file).label == RECORD.label


@pytest.mark.parametrize("part", ["metrics", "plan", "metrics.accuracy", "cost", "log"])
def test_parts_may_be_absent(tmp_path: Path, part: str) -> None:
    file = tmp_path / f"{ID}.json"
    file.write_text(json.dumps(sealed(changed(part, DELETE))), encoding="utf-8")
    assert record.read(file).id == ID


def test_an_id_depends_on_values_alone() -> None:
    assert short_hash({"a": 1, "b": ("x", 2.5)}) == short_hash({"b": ["x", 2.5], "a": 1})
    assert short_hash({"a": 1}) != short_hash({"a": 2})
    # Fixed for good: stored results are found by it.
    assert short_hash({"method": "random", "budget": 0.5}) == "f30a7f4ca81d115e"


@given(st.text())
def test_plain_text_is_one_printable_line_and_stays_so(text: str) -> None:
    safe = plain(text)
    assert safe.isprintable() and plain(safe) == safe


def test_escape_sequences_lose_their_escape() -> None:
    assert plain("\x1b[31mred\x1b[0m\r\n\u202eend\x9b2J") == "[31mred [0m end 2J"
