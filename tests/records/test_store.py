"""Stored records: what is there, brought together without loss, and everything that cannot be relied on is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from harness.records import record, schema
from harness.records.store import collect, find, merge, verify
from harness.types import InputError
from tests.support.commands import Call, refused
from tests.support.paths import ROOT
from tests.support.stored import put, scores

RIGHT = scores(90)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for budget in (0.5, 0.25):
        put(folder, RIGHT, budget=budget)
    put(folder, None, board="other", error="out of memory")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the committed records and their format -----------------------------------------------------------------


def test_the_committed_records_are_sound() -> None:
    number, problems = verify(ROOT / "results")
    assert number >= 13 and not problems


def test_the_format_page_names_every_field_and_version() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for key in schema._Record.__annotations__:
        assert f"`{key}`" in page, key
    for key in (*schema._Trial.__annotations__, *schema._Contestant.__annotations__):
        assert f"`{key}`" in page or f"`.{key}`" in page or f"`trial.{key}`" in page, key
    assert f"now {schema.SCHEMA} |" in page
    for version in range(1, schema.SCHEMA + 1):
        assert f"\n| {version} | " in page


def test_a_record_of_the_first_schema_is_migrated_merged_and_the_same_record(results: Path, tmp_path: Path) -> None:
    path = next(results.glob("made/*.json"))
    old = json.loads(path.read_bytes())
    del old["hashes"]["record"]
    old["trial"] |= old.pop("contestant") | {"regime": "training-free"}
    first = tmp_path / "first" / "made" / path.name
    first.parent.mkdir(parents=True)
    first.write_text(json.dumps({**old, "schema": 1}), encoding="utf-8")
    shutil.copy(path.with_suffix(".parquet"), first.with_suffix(".parquet"))
    assert record.read(first) == record.read(path), "the migration gives it what a new one has"
    assert verify(tmp_path / "first") == (1, [])
    assert merge([tmp_path / "first"], results).duplicates == 1
    second = {**old, "schema": 2}
    second["hashes"] = {**old["hashes"], "record": record.content_hash(second)}
    first.write_text(json.dumps(second), encoding="utf-8")
    assert verify(tmp_path / "first") == (1, []) and merge([tmp_path / "first"], results).duplicates == 1
    first.write_text(json.dumps({**old, "schema": 1}), encoding="utf-8")
    text = first.read_text(encoding="utf-8").replace('"accuracy": 0.', '"accuracy": 0.1')
    first.write_text(text, encoding="utf-8")
    (problem,) = {line.partition(": metrics")[0] for line in verify(tmp_path / "first")[1]}
    assert problem == str(first), "it has no hash of its own, but its samples tell"


# --- ls, show -----------------------------------------------------------------------------------------------


def test_ls(call: Call, results: Path) -> None:
    (results / "made" / f"{'0' * 16}.json").write_text("{", encoding="utf-8")
    done = call("results", "ls", "--results", results, "--json")
    made, other = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert {key: made[key] for key in ("board", "trials", "ok", "failed", "unreadable")} == {
        "board": "made", "trials": 2, "ok": 2, "failed": 0, "unreadable": 1,
    }  # fmt: skip
    assert (other["board"], other["ok"], other["failed"], other["methods"]) == ("other", 0, 1, ["taylor"])
    shown = call("results", "ls", "--results", results)
    assert shown.code == 0 and "made" in shown.out and "other" in shown.out
    refused(call("results", "ls", "--results", "nowhere"), "nowhere: no board there")


def test_show(call: Call, results: Path) -> None:
    path = next(results.glob("made/*.json"))
    done = call("results", "show", path.stem[:7], "--results", results)
    assert (done.code, done.err) == (0, "") and done.out.startswith(path.stem)
    assert "trial.method = taylor" in done.out and "metrics.latency.speedup = 1.5" in done.out
    assert json.loads(call("results", "show", path.stem, "--results", results, "--json").out) == json.loads(
        path.read_text()
    )
    refused(call("results", "show", "zz", "--results", results), "no record begins with 'zz'")
    refused(call("results", "show", "", "--results", results), "3 records begin with ''")
    assert find(results, path.stem).name == str(path)


def test_show_prints_what_a_record_says_as_text(call: Call, results: Path) -> None:
    path = put(results, None, method="[bold red]x[/] \x1b[31m<img>")
    done = call("results", "show", path.stem, "--results", results)
    assert "[bold red]x[/]" in done.out and "\x1b" not in done.out


# --- merge --------------------------------------------------------------------------------------------------


def test_merge_brings_everything_together_byte_for_byte(call: Call, results: Path, tmp_path: Path) -> None:
    second, out = tmp_path / "second", tmp_path / "out"
    put(second, RIGHT, seed=1)
    shutil.copytree(results / "made", second / "made", dirs_exist_ok=True)
    done = call("results", "merge", results, second, "--out", out)
    assert done.code == 0 and "4 records copied" in done.out and "2 were there already" in done.out
    assert contents(out) == contents(results) | contents(second)
    assert verify(out) == (4, [])
    assert json.loads(call("results", "merge", results, second, "--out", out, "--json").out) == {
        "copied": 0, "duplicates": 6
    }  # fmt: skip


def test_merge_refuses_by_name_what_contradicts_and_writes_nothing(call: Call, results: Path, tmp_path: Path) -> None:
    second, out = tmp_path / "second", tmp_path / "out"
    put(second, RIGHT, seed=1)
    path = put(second, 1 - RIGHT, budget=0.5)
    refused(call("results", "merge", results, second, "--out", out), str(path), "contradicts", str(results))
    assert not out.exists()
    before = contents(results)
    refused(call("results", "merge", second, "--out", results), str(path), "contradicts")
    assert contents(results) == before


def test_merge_takes_nothing_that_verify_would_name(call: Call, results: Path, tmp_path: Path) -> None:
    path = next(results.glob("made/*.json"))
    path.with_suffix(".parquet").write_bytes(b"PAR1")
    refused(call("results", "merge", results, "--out", tmp_path / "out"), path.stem, "hash differs")
    path.write_bytes(b"{")
    refused(call("results", "merge", results, "--out", tmp_path / "out"), str(path), "not a record")
    refused(call("results", "merge", tmp_path / "none", "--out", tmp_path / "out"), "none")
    assert not (tmp_path / "out").exists()


def test_merge_into_what_cannot_be_written(call: Call, results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(call("results", "merge", results, "--out", tmp_path / "file"), "file: cannot write records there")


# --- verify -------------------------------------------------------------------------------------------------


def test_verify_names_every_kind_of_fault(call: Call, results: Path) -> None:
    assert call("results", "verify", "--results", results).code == 0
    first, second = sorted(results.glob("made/*.json"))
    text = first.read_bytes()

    def after(path: Path, content: bytes | None) -> str:
        """What verify says with this file changed so; the file is put back."""
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        done = call("results", "verify", "--results", results)
        path.unlink(missing_ok=True) if before is None else path.write_bytes(before)
        assert done.code == 1 and done.out.endswith(" problems\n") and done.err.startswith("unsound: ")
        return done.err

    def says(path: Path, content: bytes | None, *words: str) -> None:
        line = after(path, content)
        assert str(path) in line and all(word in line for word in words), line

    made: dict[str, Any] = json.loads(text)
    says(first, text[:200], "not valid JSON")
    says(first, b'{"cells": []}', "schema: must be 1 to")
    says(first, json.dumps({**made, "schema": 9}).encode(), "made by a newer version")
    says(first, text.replace(b'"total_s": 1.0', b'"total_s": 0.1'), "changed after it was written")
    says(first, second.read_bytes(), "is not the file's name")
    table = first.with_suffix(".parquet")
    says(table, None, "samples missing")
    says(table, table.read_bytes()[:-1], "hash differs")
    says(results / "made" / "0123456789abcdef.parquet", b"PAR1", "samples without a record")
    failed = next(results.glob("other/*.json"))
    assert "hashes.samples: missing" in after(failed.with_suffix(".parquet"), b"PAR1")
    moved = results / "other" / first.name
    found = after(moved, text)
    assert "in the folder of board other" in found and "the same trial as" in found and "samples missing" in found
    made["trial"]["seed"] = 5
    made["hashes"]["record"] = record.content_hash(made)
    says(first, json.dumps(made).encode(), "id: does not belong to this trial")
    made["trial"]["seed"] = 0
    made["metrics"]["accuracy"]["tasks"]["mini_gqa"]["accuracy"] = 1.0
    made["hashes"]["record"] = record.content_hash(made)
    says(first, json.dumps(made).encode(), "metrics.accuracy.tasks.mini_gqa: 1.0, but the samples give")


@pytest.mark.parametrize("score", [float("nan"), None, float("inf")])
def test_a_score_that_is_no_number_is_a_fault(results: Path, tmp_path: Path, score: float | None) -> None:
    """Of one answer, of a task, or of all: what is left may well have the mean that the record states."""
    path = next(results.glob("made/*.json"))
    stored = record.read(path)
    table = parquet.read_table(path.with_suffix(".parquet"))
    for number in (1, 30, 90):
        scores = [*[score] * number, *table["score"].to_pylist()[number:]]
        spoilt = table.set_column(4, "score", pyarrow.array(scores, pyarrow.float64()))
        known = [each for each in scores[:30] if each is not None] or [0.5]
        metrics: dict[str, Any] = json.loads(json.dumps(stored.metrics))
        if score is None:
            metrics["accuracy"]["tasks"]["mini_gqa"]["accuracy"] = sum(known) / len(known)
        record.write(path.parent, replace(stored, metrics=metrics), spoilt)
        problems = verify(results)[1]
        assert problems and all("but the samples give" in line and str(path) in line for line in problems)
        with pytest.raises(InputError, match="but the samples give"):
            merge([results], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tasks", [True, False])
def test_the_mean_is_that_of_the_tasks(results: Path, tasks: bool) -> None:
    path = next(results.glob("made/*.json"))
    stored = record.read(path)
    accuracy = {**stored.metrics["accuracy"], "mean": 0.01}
    if not tasks:
        del accuracy["tasks"]
    record.write(
        path.parent, replace(stored, metrics={"accuracy": accuracy}), parquet.read_table(path.with_suffix(".parquet"))
    )
    (problem,) = verify(results)[1]
    assert problem.startswith(f"{path}: metrics.accuracy.mean: 0.01, but the samples give 0.")


def test_merge_leaves_no_samples_without_their_record(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name.startswith(".") and ".json" in path.name:
            raise OSError(28, "No space left on device")
        with path.open("wb") as file:
            file.write(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="cannot write records there: No space left"):
        merge([results], tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_verify_as_json_and_of_nothing(call: Call, results: Path) -> None:
    done = call("results", "verify", "--results", results, "--json")
    assert (done.code, json.loads(done.out)) == (0, {"records": 3, "problems": []})
    (results / "empty").mkdir()
    refused(call("results", "verify", "--results", results / "empty"), "no records there")
    refused(call("results", "verify", "--results", "nowhere"), "nowhere")


def test_a_record_file_is_a_source_too(results: Path) -> None:
    path = next(results.glob("made/*.json"))
    (one,) = collect(path)
    assert one.record == record.read(path) and one.answers().num_rows == 90
    assert one.record.trial.id == one.record.id
    with pytest.raises(InputError, match="neither a results folder"):
        collect(results / "nowhere.json")
