"""The log of a sweep tells how far it is, whatever else has come into the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.trials import journal
from harness.trials.journal import Journal
from tests.support.commands import Call, refused

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"


def event(name: str, **values: str) -> str:
    """A line of a log, with values as they stand in it."""
    keys = {"event": json.dumps(name), **values}
    return f"{{{', '.join(f'{json.dumps(key)}: {value}' for key, value in keys.items())}}}"


@pytest.mark.parametrize(
    "line",
    [
        *(event("begin", time="1", trial=trial) for trial in ('"zz"', '"0123456789ABCDEF"', "[1]", "{}", "5", "null")),
        *(event("sweep", time=time, trials="6") for time in ('"x"', "[1]", "null", "NaN", "Infinity", "1e300", "-1")),
        *(event("sweep", time="1", trials=trials) for trials in ('"x"', "[1]", "null", "1e5", "-1", "9" * 30)),
        event("end", time="[]", trial=f'"{ONE}"'),
        event("end", time="1"),
        '{"event": ["begin"], "time": 1}',
        '{"time": 1}',
        "[]",
        "\0" * 512,
        '{"event": "be',
    ],
)
def test_a_damaged_line_is_passed_over(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Nor does a line that was left without its end take the next event with it."""
    folder, log = tmp_path / "made", Journal(tmp_path / "made")
    folder.mkdir()
    (folder / journal.NAME).write_text(f"{line}\n{line}", encoding="utf-8")
    log.note("sweep", trials=4)
    log.note("begin", trial=ONE)
    with (folder / journal.NAME).open("a", encoding="utf-8") as file:
        file.write(line)
    log.note("end", trial=ONE)
    log.note("begin", trial=OTHER)
    asked: list[str] = []
    monkeypatch.setattr(journal, "held", lambda folder, ids: asked.extend(ids) or {OTHER})
    (row,) = json.loads(call("status", tmp_path, "--json").out)
    assert (sorted(asked), row["running"], row["left"]) == ([ONE, OTHER], [OTHER], 3) and row["end"] > 1e9
    assert call("status", tmp_path).code == 0


def test_an_end_that_no_date_can_name_is_not_known(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / journal.NAME).write_text(
        f"{event('sweep', time='0', trials='900000')}\n{event('end', time='2e11', trial=json.dumps(ONE))}\n"
    )
    monkeypatch.setattr(journal, "held", lambda folder, ids: {OTHER})
    assert json.loads(call("status", tmp_path, "--json").out)[0]["end"] is None
    assert call("status", tmp_path).code == 0


def test_a_log_has_a_line_for_each_event(tmp_path: Path) -> None:
    for number in range(3):
        Journal(tmp_path).note("sweep", trials=number)
    lines = (tmp_path / journal.NAME).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["trials"] for line in lines[:-1]] == [0, 1, 2] and lines[-1] == ""


def test_a_board_is_named_as_elsewhere(tmp_path: Path, call: Call) -> None:
    """By its name in --results, or by its folder."""
    folder = tmp_path / "made"
    folder.mkdir()
    Journal(folder).note("sweep", trials=2)
    for words in (("made", "--results", tmp_path), (folder,), ("--results", tmp_path)):
        assert [row["board"] for row in json.loads(call("status", *words, "--json").out)] == ["made"]
    refused(call("status", "mad", "--results", tmp_path), "unknown board 'mad'; did you mean 'made'?")
    refused(call("status", "made", "--results", tmp_path / "none"), f"{tmp_path / 'none'}: no board there")
