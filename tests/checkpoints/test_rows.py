"""Rows of one name are told apart by what differs: seed, regime, units, calibration, budget terms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoints.export import row
from harness.types import InputError
from tests.support.commands import Call
from tests.support.paths import ROOT
from tests.support.stored import TASKS, put

CALIBRATION = {"samples": 16, "tasks": list(TASKS), "split": "calibration"}
TRIALS: dict[str, dict[str, Any]] = {
    "made/taylor none": {},
    "made/taylor refit": {"tuning": "refit"},
    "made/taylor tuned full-kl-300": {"tuning": "full-kl-300"},
    "made/taylor norm=l1": {"options": {"norm": "l1"}, "variant": "norm=l1"},
    "made/wanda none both samples=128": {"method": "wanda"},
    "made/wanda none both samples=16": {"method": "wanda", "calibration": CALIBRATION},
    "made/random none heads": {"method": "random", "units": "heads"},
    "made/random none both": {"method": "random"},
    "made/amp none both samples=128 align=null currency=params": {"method": "amp", "currency": "params"},
    "made/amp none both samples=128 align=null currency=flops": {"method": "amp"},
    "made/flap none both samples=128 align=null currency=flops image=96x96 text=?": {"method": "flap"},
    "made/flap none both samples=128 align=null currency=flops image=8x8 text=?": {
        "method": "flap",
        "reference_input": {"image": [8, 8], "text": "?"},
    },
}


def full(name: str) -> str:
    return re.sub(r"(samples=\d+)", rf"\1 split=calibration tasks={'+'.join(TASKS)}", name)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for trial in TRIALS.values():
        put(tmp_path / "results", None, **trial)
    put(tmp_path / "results", None, method="michel", seed=0)
    put(tmp_path / "results", None, method="michel", seed=1)
    return tmp_path / "results"


@pytest.mark.parametrize("name", TRIALS)
def test_a_row_has_a_name_of_its_own(results: Path, name: str) -> None:
    trial = TRIALS[name]
    expected = put(results / "again", None, **trial).stem
    assert row(results, f"{full(name)}/vision/0.5").record.id == expected
    assert row(results, f"{full(name)}/vision/0.5/0").record.id == expected


@pytest.mark.parametrize("method", ["taylor", "wanda", "random", "amp", "flap", "michel"])
def test_an_ambiguous_name_lists_names_that_are_not(results: Path, method: str) -> None:
    with pytest.raises(InputError, match=r"records; name one in full, or by its id: ") as error:
        row(results, f"made/{method}/vision/0.5")
    listed = str(error.value).partition("by its id: ")[2].split(", ")
    names = [text.rpartition(" (")[0] for text in listed]
    assert len(names) == len(set(names)) >= 2
    for text in listed:
        name, _, id = text.removesuffix(")").rpartition(" (")
        assert row(results, name).record.id == id


def test_what_is_no_row(call: Call, results: Path) -> None:
    for name in ("made/taylor", "made/taylor/vision", "nowhere/taylor/vision/0.5"):
        with pytest.raises(InputError, match="not BOARD/METHOD/SCOPE/BUDGET"):
            row(results, name)
    done = call("export", "demo/tailor/vision/0.5", "out", "--results", ROOT / "results")
    assert done.code == 2 and "did you mean 'demo/taylor/vision/0.5/0'" in done.err
