"""How a trial is repeated, what a plan shows, and LaTeX: whatever a record says, nothing but that comes of it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.records import record
from harness.records.record import Code, Cost, MethodFacts
from harness.report import details, latex, report
from harness.report.board import Board
from harness.trials import spec
from harness.types import Choice, Keep, Plan
from tests.support.records import board_record, packed

# --- how to repeat a trial ----------------------------------------------------------------------------------


def run(command: str, folder: Path) -> Any:
    """The board that a command writes, its last line (the sweep) left out."""
    lines = command.splitlines()
    assert lines[-1] == "infoprune sweep trial.yaml"
    subprocess.run(["sh", "-c", "\n".join(lines[:-1])], cwd=folder, check=True)
    assert [path.name for path in folder.iterdir()] == ["trial.yaml"]
    return yaml.safe_load((folder / "trial.yaml").read_text(encoding="utf-8"))


def test_the_command_of_a_trial_makes_that_trial(tmp_path: Path) -> None:
    content = {
        "name": "mine", "model": "mini-qwen2-vl", "tasks": ["mini_gqa"], "limit": 50, "budgets": [0.5, 0.25],
        "scopes": ["vision", "all"], "units": "heads",
        "methods": [{"method": "random", "seeds": 2}, {"method": "magnitude", "control": "random-units"},
                    {"method": "magnitude", "sequential": True},
                    {"method": "magnitude", "tuning": {"method": "lora", "rate": 1e-5, "samples": 64}}],
        "reference_input": {"image": [96, 64], "text": "it's\n\"this\": - 'that'\n"},
    }  # fmt: skip
    loaded = {"generation": {"suppress_tokens": [5]}, "attention": "eager", "revision": "abc"}
    empty = {"random_weights": True, "metrics": ["flops"]}
    boards = [spec.check(content | changes, Path("mine.yaml")) for changes in ({}, loaded, empty)]
    for trial in (trial for board in boards for trial in board.trials()):
        item = replace(board_record(), id=trial.id, trial=trial, contestant=MethodFacts("", "", "reference", ""))
        again = spec.check(run(details.repeat(item), tmp_path), tmp_path / "trial.yaml")
        assert trial.id in {own.id for own in again.trials()}
        (tmp_path / "trial.yaml").unlink()
    assert set(details.USUAL) == set(details.ENTRY), "what a board sets per method is an attribute of a trial"


def test_a_command_runs_nothing_that_a_record_says(tmp_path: Path) -> None:
    hostile = "'; touch gone; '\n$(touch gone) `touch gone`\nEOF\n\x1b[31m \u202e"
    item = board_record(hostile, model=hostile, options={"a": hostile, "b": 1e-05})
    item = replace(item, code=Code(revision="abc; touch gone"))
    command = details.repeat(item)
    assert command.isascii() and "git" not in command and "\x1b" not in command
    again = run(command, tmp_path)
    assert again["model"] == hostile and again["methods"][0]["options"] == {"a": hostile, "b": 1e-05}


def test_the_command_starts_from_the_revision() -> None:
    made = replace(board_record(), code=Code(revision="0123abc"))
    assert details.repeat(made).startswith("git checkout 0123abc\nprintf")


def test_a_number_too_large_for_a_float_is_none() -> None:
    metrics = {"flops": {"params": {"pruned": 10**400}}, "memory": {"weight_bytes_kept": 10**400}}
    one = replace(board_record(), cost=Cost(), metrics=metrics)
    assert details.data(Board.of("board", [one]), [one])["weights"] == [None]


# --- plans and LaTeX ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [(-1,), (10**12,), (10**400,), ("x",), (True,), (1.5,), ()])
def test_plans_of_any_units_do_no_harm(indices: Any) -> None:
    item = replace(board_record("random", "vision", 0.5), plan=Plan({("a", "heads"): Keep(indices)}, 0.5, 0.5))
    assert all(part in (None, "null") for own in packed([item])["trials"][0]["plan"] for part in own or [])


def test_a_label_of_any_kind_is_text() -> None:
    labels: list[Any] = [None, {}, 10**400, "\x1b[2J"]
    for label in labels:
        item = replace(board_record("random", "vision", 0.5), plan=Plan({("a", "ffn"): Choice(1, label)}, 0.5, 0.5))
        ((_, shown),) = packed([item])["trials"][0]["plan"]
        assert isinstance(shown, str) and shown.isprintable()


@pytest.mark.parametrize("blocks", [[1], {"a": 1}, {"a": {"heads": 3}}, {"a": {"heads": ["x"], "ffn": {}}}])
def test_a_plan_that_is_none_makes_a_record_unreadable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blocks: Any
) -> None:
    item = board_record("random", "vision", 0.5)
    for made in (board_record(), replace(item, plan=Plan({}, 0.5, 0.5))):
        record.write(tmp_path / "in" / "made", made)
    path = tmp_path / "in" / "made" / f"{item.id}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["plan"]["blocks"] = blocks
    content["hashes"]["record"] = record.content_hash(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    report(tmp_path / "in", tmp_path / "out")
    assert f"{item.id}.json: not a record of this version: " in caplog.text
    for page in ("README.md", "index.html"):
        text = (tmp_path / "out" / "made" / page).read_text(encoding="utf-8")
        assert "1 trials, 0 failed" in text and "1 file beside them could not be read" in text


def test_latex_of_any_text_is_literal() -> None:
    assert latex.escape("a_b & 5% $x$ #1 {y} ~^ \\z") == (
        r"a\_b \& 5\% \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{} \textbackslash{}z"
    )
    assert latex.escape("[x]--`q' 日本 é") == "{[}x]{-}{-}{`}q{'} ?? é"
