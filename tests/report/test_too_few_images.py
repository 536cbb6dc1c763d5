"""No interval is made of questions about one image, and every place where one would stand says why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness import tasks
from harness.cli import screen
from harness.records import record
from harness.report import report
from tests.support.commands import Call
from tests.support.records import board_record
from tests.support.stored import put, scores

WORDS = "too few images"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no words wrap."""
    monkeypatch.delenv("COLUMNS", raising=False)
    for console in (screen.out, screen.err):
        monkeypatch.setattr(console, "_width", 300)


def answered(images: dict[str, list[str]]) -> pa.Table:
    """Answers to a question on each of these images, by task, right and wrong in turns."""
    rows = [
        (task, str(i), image, "red", float(i % 2)) for task, names in images.items() for i, image in enumerate(names)
    ]
    columns = zip(("task", "question_id", "image_id", "answer", "score"), zip(*rows, strict=True), strict=True)
    return pa.table({name: list(values) for name, values in columns})


@pytest.mark.parametrize(
    ("images", "bounded"),
    [
        ({"a": ["x", "x", "x"]}, {"": False, "a": False}),
        ({"a": ["x"]}, {"": False, "a": False}),
        ({"a": ["x", "y"]}, {"": True, "a": True}),
        ({"a": ["x", "y"], "b": ["x", "x"]}, {"": False, "a": True, "b": False}),
    ],
)
def test_a_summary_leaves_out_what_nobody_knows(images: dict[str, list[str]], bounded: dict[str, bool]) -> None:
    table = answered(images)
    found = tasks.summary(table)
    figures = {"": found, **found["tasks"]}
    for name, known in bounded.items():
        assert ("lo" in figures[name]) == ("hi" in figures[name]) == known, name
    mean = tasks.mean(table, table["score"].to_numpy())
    assert set(mean) == ({"mean", "lo", "hi"} if bounded[""] else {"mean"})
    json.dumps(found, allow_nan=False)


def test_fidelity_and_floors_of_one_image(sets: Path, tiny: Any) -> None:
    from harness.metrics import fidelity, floors
    from tests.support.contexts import Attached
    from tests.support.trials import dense_trial

    trial = dense_trial("mini_gqa", limit=2, metrics=("accuracy", "fidelity"))
    found = fidelity.measure(tiny, tiny, trial, Attached())
    assert found["flips"] == 0 and "flips_lo" not in found
    assert "lo" not in floors.measure(tiny, tiny, trial, Attached())["gain_over_blind"]


def test_tables_and_pages_say_so(tmp_path: Path) -> None:
    for item in (board_record(), board_record("taylor", "vision", 0.5)):
        accuracy = {key: value for key, value in item.metrics["accuracy"].items() if key not in ("lo", "hi")}
        object.__setattr__(item, "metrics", {**item.metrics, "accuracy": accuracy})
        record.write(tmp_path / "results" / "made", item, None)
    report(tmp_path / "results", tmp_path / "boards")
    text = (tmp_path / "boards" / "made" / "README.md").read_text()
    assert text.count(f"({WORDS})") == 2 and "nan" not in text
    page = (tmp_path / "boards" / "made" / "index.html").read_text()
    assert f'"few":"{WORDS}"' in page.replace('": ', '":')


def test_a_sweep_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    from harness.cli.screen import out
    from harness.cli.sweep import _frame_table

    row: dict[str, Any] = {"method": "taylor", "variant": "", "regime": "none", "scope": "vision", "budget": 0.5}
    row |= {"status": "ok", "role": "reference", "flops_kept": 0.5, "params_kept": 0.5, "latency_speedup": 1.5}
    out.print(_frame_table(pd.DataFrame([{**row, "accuracy": 0.5, "accuracy_lo": math.nan, "accuracy_hi": math.nan}])))
    assert f"50.0 ({WORDS})" in capsys.readouterr().out


def test_gate_and_verdict_say_so(call: Call, tmp_path: Path) -> None:
    """One image a task."""
    for side, made in (("old", scores(9)), ("new", 1 - scores(9))):
        for method in ("mine", "taylor", "random"):
            put(tmp_path / side, made, method=method)
    gated = call("gate", tmp_path / "old", tmp_path / "new", "--markdown", tmp_path / "gate.md")
    assert gated.code == 3 and f"({WORDS})" in gated.out and "inf" not in gated.out.replace("infoprune", "")
    assert f"({WORDS})" in (tmp_path / "gate.md").read_text()
    compared = call("compare", tmp_path / "old" / "made", tmp_path / "new" / "made", "--out", tmp_path / "compared")
    assert compared.code == 0 and f"({WORDS})" in compared.out and "inf" not in compared.out, compared
    for file in (tmp_path / "compared").iterdir():
        assert WORDS in file.read_text() and "nan%" not in file.read_text()
    judged = call("verdict", tmp_path / "new" / "made")
    assert judged.code == 1 and f"({WORDS})" in judged.out and "inf" not in judged.out
