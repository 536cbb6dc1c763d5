"""Whatever instant a sweep is killed at, the next one ends with the records of a sweep that nobody disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import environment


def kill(root: Path, number: int, *board: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kills", str(root), str(number), *map(str, board)],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path, count: Callable[[str], None]) -> None:
    """Every tenth is a power cut. The kills fall into every phase that a sweep has."""
    found = kill(tmp_path, 112)
    count(f"{sum(found['kills'].values())} kills, {found['cuts']} power cuts: {found['kills']}")
    assert (sum(found["kills"].values()), found["cuts"]) == (101, 11)
    assert found["differ"] == []
    assert sorted(found["kills"]) == found["phases"]
    assert {"claim", "samples", "record", "flush", "move", "trial: ranking"} <= set(found["phases"])


@pytest.mark.slow
def test_kills_of_real_trials(tmp_path: Path, board: dict[str, Any], count: Callable[[str], None]) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**board, "metrics": ["flops", "accuracy"], "floors": False, "limit": 4}))
    found = kill(tmp_path, 4, file)
    count(f"4 kills of real trials: {found['kills']}")
    assert sum(found["kills"].values()) == 4 and found["differ"] == []
