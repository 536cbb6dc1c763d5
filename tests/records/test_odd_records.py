"""Whatever a sealed record says, every reader takes it or refuses it in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.records import record, store
from harness.records.mirrors import Run
from harness.report import choices, compare, details, latex, page, spreadsheet
from harness.report.board import Board
from harness.report.samples import Samples
from harness.types import InputError, Keep, Plan
from harness.verdicts import compare as verdicts
from harness.verdicts import gate, standing
from tests.support.records import packed
from tests.support.stored import OK, put, scores

VALUES: tuple[Any, ...] = (None, True, -1, 1e308, 1e-308, 10**25, 10**400, "", "\ud800", [], ["a"], {"": 0})
METRICS = {  # what `put` measures, and what else readers calculate with
    "flops": {"kept": 0.5, "reduction": 2.0, "params": {"pruned": 5000, "kept": 0.5}},
    "memory": {
        name: {"weight_bytes": 4000, "kv_bytes": 30, "peak_bytes": {"vision": 5}} for name in ("dense", "pruned")
    },
    "floors": {"blank": {"mean": 0.2}, "gain_over_blind": {"mean": 0.5, "lo": 0.4, "hi": 0.6}},
    "fidelity": {"flips": 0.25, "kl_first_token": 0.5},
}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two results folders with a dense record and a pruned one; and what the latter's file says."""
    root = tmp_path_factory.mktemp("odd")
    plan = Plan({("vision.0", "heads"): Keep((0, 2))}, 0.5, 0.5)
    for name in "ab":
        put(root / name, scores(90), method="none", kept=1.0, scope="all", budget=1.0)
        changed = {"env": {**OK["env"], "packages": {"torch": "2"}}, "data": "d", "plan": plan, "options": {"a": 1}}
        path = put(root / name, scores(90), method="mine", interval=True, **changed)
        content = json.loads(path.read_bytes())
        content["metrics"] |= METRICS
        path.write_text(json.dumps(sealed(content)), encoding="utf-8")
    return root / "a" / "made" / path.name, root / "b"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    with suppress(Exception):  # what has no hash is no record either
        content["hashes"]["record"] = record.content_hash(content)
    return content


def changes(part: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each part of a JSON value; of a list, of the first one."""
    if place:
        yield place
    for key in part if isinstance(part, dict) else range(min(1, len(part))) if isinstance(part, list) else ():
        yield from changes(part[key], (*place, key))


def read_all(path: Path, other: Path) -> None:
    """What each reader makes of the board of this record, alone and beside another results folder."""
    stored = record.read(path)
    json.dumps(Run.of(stored).__dict__, allow_nan=False)
    store.verify(path.parent)
    records, _ = record.load(path.parent)
    board = Board.of("made", records, 0, Samples(path.parent))
    page.board(board, details.data(board, records), json.dumps(packed(records))).encode()
    latex.document(board)
    table = path.parent.parent / "board.csv"
    table.write_text(spreadsheet.frame_text(board.frame), encoding="utf-8", newline="\n")
    for frame in (board.frame, spreadsheet.read(table)):
        choices.text(choices.table(frame, "vision"))
        found = choices.best(frame, 1.0, scope="vision")
        assert found is None or json.dumps(found.to_json(), allow_nan=False)
    for first, second in ((path.parent, other), (other, path.parent)):
        compared = verdicts.compare(str(first), str(second))
        compare.page(compared)
        compare.readme(compared)
        json.dumps(compared.to_json(), allow_nan=False)
        json.dumps(gate.compare(str(first), str(second), gate.Limits()).to_json(), allow_nan=False)
    for verdict in standing.verdict(path.parent):
        json.dumps(verdict.to_json(), allow_nan=False)


def faults(sides: tuple[Path, Path], places: Callable[[tuple[Any, ...]], bool]) -> Iterator[str]:
    path, other = sides
    text = path.read_text(encoding="utf-8")
    try:
        for place in filter(places, changes(json.loads(text))):
            for value in VALUES:
                made = copy.deepcopy(json.loads(text))
                part = made
                for key in place[:-1]:
                    part = part[key]
                part[place[-1]] = value
                path.write_text(json.dumps(sealed(made)), encoding="utf-8")
                try:
                    read_all(path, other)
                except InputError as error:
                    if "\n" in str(error):
                        yield f"{place} {value!r:.40}: {error}"
                except Exception as error:
                    yield f"{place} {value!r:.40}: {type(error).__name__}: {error}"
    finally:
        path.write_text(text, encoding="utf-8")


# Of each reader one that was a crash, and what is calculated in the same way.
CRASHED = {
    ("plan", "achieved"),
    ("env", "packages"),
    ("hashes", "data"),
    ("contestant", "regime"),
    ("trial", "seed"),
    ("trial", "latency", "repeats"),
    ("metrics", "latency", "speedup"),
    ("metrics", "flops", "params", "pruned"),
    ("metrics", "memory", "pruned", "weight_bytes"),
    ("cost", "total_s"),
}


def test_what_was_a_crash_is_none(sides: tuple[Path, Path]) -> None:
    read_all(*sides)
    assert set(changes(json.loads(sides[0].read_bytes()))) >= CRASHED
    assert list(faults(sides, CRASHED.__contains__)) == []


@pytest.mark.slow
def test_no_change_of_a_part_is_a_crash(sides: tuple[Path, Path]) -> None:
    assert list(faults(sides, lambda place: place[0] not in ("schema", "id"))) == []
