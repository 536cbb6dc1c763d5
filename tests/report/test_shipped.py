"""The shipped leaderboards are what the shipped records and today's code make, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report import report
from tests.support.paths import ROOT


@pytest.mark.slow
def test_the_shipped_pages_are_those_of_the_records(tmp_path: Path) -> None:
    report(ROOT / "results", tmp_path)
    made = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    assert Path("demo/index.html") in made and Path("index.html") in made
    shipped = ROOT / "leaderboards"
    assert [str(file) for file in sorted(made) if (shipped / file).read_bytes() != (tmp_path / file).read_bytes()] == []
