"""How a trial is repeated, what a plan shows, and LaTeX: whatever a record says, nothing but that comes of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from test_report import made

from harness import spec
from harness.report import details, examples, latex
from harness.report.board import Board

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
                    {"method": "magnitude", "tuning": {"method": "lora", "rate": 1e-5, "samples": 64}}],
        "reference_input": {"image": [96, 64], "text": "it's\n\"this\": - 'that'\n"},
    }  # fmt: skip
    described = {"title": "", "variant": "", "role": "reference", "regime": ""}
    for trial in spec.check(content, Path("mine.yaml")).trials():
        plain = json.loads(json.dumps(trial.content()))
        item = made() | {"id": spec.trial_id(trial), "trial": plain | described}
        again = spec.check(run(details.repeat(item), tmp_path), tmp_path / "trial.yaml")
        assert spec.trial_id(trial) in {spec.trial_id(own) for own in again.trials()}
        (tmp_path / "trial.yaml").unlink()


def test_a_command_runs_nothing_that_a_record_says(tmp_path: Path) -> None:
    hostile = "'; touch gone; '\n$(touch gone) `touch gone`\nEOF\n\x1b[31m \u202e"
    item = made(hostile, model=hostile, options={"a": hostile, "b": 1e-05}) | {"code": {"revision": "abc; touch gone"}}
    command = details.repeat(item)
    assert command.isascii() and "git" not in command and "\x1b" not in command
    again = run(command, tmp_path)
    assert again["model"] == hostile and again["methods"][0]["options"] == {"a": hostile, "b": 1e-05}


def test_the_command_starts_from_the_revision() -> None:
    assert details.repeat(made() | {"code": {"revision": "0123abc"}}).startswith("git checkout 0123abc\nprintf")


def test_a_number_too_large_for_a_float_is_none() -> None:
    one = made() | {"cost": {}, "metrics": {"flops": {"params": {"pruned": 10**400}}}}
    assert details.data(Board.of("board", [one]), [one], examples.Examples())["weights"] == [None]


# --- plans and LaTeX ----------------------------------------------------------------------------------------


def test_plans_of_any_kind_do_no_harm() -> None:
    for blocks in (
        [1],
        {"a": 1},
        {"a": {"heads": [-1]}},
        {"a": {"heads": [10**12]}},
        {"a": {"heads": ["x"], "ffn": {}}},
    ):
        item = made("random", "vision", 0.5) | {"plan": {"blocks": blocks}}
        data = details.data(Board.of("made", [item]), [item], examples.Examples())
        assert all(part in (None, "null") for own in data["trials"][0]["plan"] for part in own or [])


def test_latex_of_any_text_is_literal() -> None:
    assert latex.escape("a_b & 5% $x$ #1 {y} ~^ \\z") == (
        r"a\_b \& 5\% \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{} \textbackslash{}z"
    )
    assert latex.escape("[x]--`q' 日本 é") == "{[}x]{-}{-}{`}q{'} ?? é"
