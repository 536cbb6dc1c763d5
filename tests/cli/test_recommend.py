"""`infoprune recommend`: a row from records, the model of that row, and one line for what no record answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Call, refused
from tests.support.paths import ROOT

DEMO = ["--results", str(ROOT / "results"), "--board", "demo", "--scope", "vision"]


def test_the_row_is_that_of_the_board(call: Call) -> None:
    done = call("recommend", "--budget", "0.5", *DEMO, "--json")
    choice = json.loads(done.out)
    record = json.loads((ROOT / "results" / "demo" / f"{choice['trial']}.json").read_text())
    assert (record["trial"]["method"], record["trial"]["budget"]) == (choice["name"], 0.5)
    assert record["metrics"]["accuracy"]["mean"] == choice["accuracy"]
    shown = call("recommend", "--budget", "0.5", *DEMO).out
    assert "".join(choice["command"].split()) in "".join(shown.split())  # the table wraps it
    assert choice["command"].endswith(f"--results {ROOT / 'results'}"), "it looks where this command looked"


@pytest.mark.slow
def test_it_makes_the_model_of_its_row(call: Call, tmp_path: Path) -> None:
    done = call("recommend", "--budget", "0.3125", *DEMO, "--out", tmp_path / "small")
    assert done.code == 0 and (tmp_path / "small" / "model.safetensors").is_file(), done


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--budget", "1.5", *DEMO], "--budget 1.5: use a share in (0, 1]"),
        (["--budget", "0.5", *DEMO, "--model", "mini"], "unknown model 'mini'"),
        (["--budget", "0.01", *DEMO], "no board has a trial in scope vision that keeps at most 0.01"),
        (["--budget", "0.5", "--results", str(ROOT / "results"), "--board", "demos"], "--board demos: no such board"),
    ],
)
def test_one_line_says_what_is_wrong(call: Call, more: list[str], says: str) -> None:
    refused(call("recommend", *more), says)


def test_a_folder_without_a_record_says_so(call: Call, tmp_path: Path) -> None:
    (tmp_path / "results" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "mine" / "0123456789abcdef.json").write_text("{")
    for more in ([], ["--board", "mine"]):
        done = call("recommend", "--budget", "0.5", "--results", tmp_path / "results", *more)
        assert done.code == 2 and "no record that can be read there" in done.err.splitlines()[-1], done
