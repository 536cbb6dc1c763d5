"""Whatever instant a sweep is killed at, the next one ends with the records of a sweep that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.records import record
from harness.trials.sweep import sweep
from tests.support import stored, stubs
from tests.support.paths import environment


def kill(root: Path, number: int, *board: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kills", str(root), str(number), *map(str, board)],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("samples", [True, False])
def test_a_trial_killed_between_its_two_files_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: bool
) -> None:
    """What is left is new samples beside the old record, or old samples beside a new record that has none."""
    board, folder = stubs.board(0), tmp_path / "made"
    sweep(board, tmp_path, inline=True, make=stubs.make)
    before, path = stubs.contents(folder), next(folder.glob("*.json"))
    old, move = record.read(path), os.replace
    new = replace(old, hashes={key: value for key, value in old.hashes.items() if key != "samples"})

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if samples:
        monkeypatch.setattr(os, "replace", lambda file, to: stop() if to == path else move(file, to))
    else:
        monkeypatch.setattr(Path, "unlink", lambda file, **how: stop() if file.suffix == ".parquet" else None)
    with pytest.raises(KeyboardInterrupt):
        record.write(folder, new, stored.samples([1.0] * 18) if samples else None)
    monkeypatch.undo()
    changed = path.with_suffix(".parquet") if samples else path
    assert changed.read_bytes() != before[changed.name]
    outcome = sweep(board, tmp_path, inline=True, make=stubs.make)
    assert (outcome.ran, outcome.skipped) == (1, 1) and stubs.contents(folder) == before


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
