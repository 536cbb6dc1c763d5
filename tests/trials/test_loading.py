"""A board says how its model is loaded, and its records say how it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import families
from harness.records.record import Record
from harness.report.frame import board_frame
from harness.types import InputError, Loading
from tests.support.boards import FinishedSweep, read_board
from tests.support.commands import Call, refused


def only(run: FinishedSweep) -> dict[str, Record]:
    assert not run.outcome.failed
    return run.records()


def test_random_weights_are_measured_and_said(tiny_folder: Path, questions: Path, tmp_path: Path) -> None:
    """From a folder without any weights."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    more = {"metrics": ["flops", "latency"], "random_weights": True, "attention": "eager"}
    found = only(
        FinishedSweep(read_board(tmp_path, bare, questions, ["random"], **more), tmp_path / "results", inline=True)
    )
    for made in found.values():
        assert made.hashes["weights"] == "random:0"
        assert made.trial.loading == Loading(attention="eager", random_weights=True)
        assert made.env["attention"] == "eager"
        assert made.trial.id == made.id
    assert found["random"].metrics["flops"]["kept"] == pytest.approx(0.5, rel=0.01)
    assert found["random"].metrics["latency"]["speedup"] > 0
    assert "random_weights=true" in board_frame(list(found.values()))["setting"][0]


def test_a_model_spread_by_accelerate_is_the_same(tiny_folder: Path, questions: Path, tmp_path: Path) -> None:
    kept = []
    for name, more in (("plain", {}), ("spread", {"device_map": "sequential"})):
        folder = tmp_path / name
        folder.mkdir()
        board = read_board(folder, tiny_folder, questions, ["magnitude"], metrics=["flops"], **more)
        kept.append(only(FinishedSweep(board, folder / "results", inline=True)))
    first, second = (own["magnitude"] for own in kept)
    assert first.hashes["weights"] == second.hashes["weights"] and first.plan == second.plan
    assert first.id != second.id and second.trial.loading == Loading(device_map="sequential")
    assert first.env["attention"] == second.env["attention"] == "sdpa"


def test_the_flag_refuses_answers_of_random_weights(call: Call, board: dict[str, Any]) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(board))
    done = call("sweep", "small.yaml", "--random-weights")
    Path("small.yaml").unlink()
    refused(done, "metrics: accuracy", "random weights", "[flops, latency]")
    Path("small.yaml").write_text(yaml.safe_dump({**board, "metrics": ["flops"]}))
    done = call("sweep", "small.yaml", "--random-weights", "--inline")
    assert done.code == 0, done
    made = [json.loads(file.read_text()) for file in Path("results/small").glob("*.json")]
    assert len(made) == 3 and {one["hashes"]["weights"] for one in made} == {"random:0"}


def test_flash_attention_is_asked_for_in_vain_on_a_cpu(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"attention: flash_attention_2 (needs|runs)"):
        families.load(tiny_folder, attention="flash_attention_2")
