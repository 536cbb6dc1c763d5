"""A hostile board on disk, read, and reported: made once for all modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.records import record
from harness.report import report
from harness.report.board import Board
from tests.support.hostile_board import write_board


@pytest.fixture(scope="session")
def hostile_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    write_board(results / "made")
    return results


@pytest.fixture(scope="session")
def hostile_board(hostile_results: Path) -> Board:
    return Board.of("made", record.load(hostile_results / "made")[0])


@pytest.fixture(scope="session")
def site(hostile_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    report(hostile_results, out)
    return out
