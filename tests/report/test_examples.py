"""Examples of flips: counted as the scores say, shown with their images, and damaged samples named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from harness.records import record
from harness.report import examples
from harness.report.samples import Samples
from harness.tasks import data
from tests.support.hostile_board import HOSTILE, LIMIT, TASK, answers_of
from tests.support.records import board_record


def test_flips_are_counted_and_shown_with_their_images(hostile_results: Path) -> None:
    items = record.load(hostile_results / "made")[0]
    found = examples.find(Samples(hostile_results / "made"), items)
    assert len(found.flips) == len(items) - 2, "all but dense and the failure"
    # Right at first: all but 0, 4, 8. Right after: of those all but 5 and 10, and 0 besides.
    for flips in found.flips.values():
        assert (flips.questions, flips.lost, flips.gained) == (LIMIT, 2, 1)
        assert [lost for _, lost, _, _ in flips.shown] == [True, True, False]
        place, _, before, after = flips.shown[0]
        assert (before, after) == ("yes", HOSTILE)
        rows = data.source(TASK, data.REFERENCE / TASK, "validation", LIMIT).read().to_pylist()
        asked = {row["question_id"]: row for row in rows}[found.questions[place]["id"]]
        assert found.questions[place]["text"] == asked["question"]
        assert found.questions[place]["truth"] == [asked["answer"]]
        assert found.images[found.questions[place]["image"]].startswith("data:image/")
    assert {flips.shown[2][0] for flips in found.flips.values()} == {
        place
        for place, question in enumerate(found.questions)
        if question["id"] == answers_of([True] * LIMIT)["question_id"][0].as_py()
    }


def test_questions_are_named_only_where_the_data_is_another(hostile_results: Path) -> None:
    items = record.load(hostile_results / "made")[0]
    items = [replace(item, hashes={**item.hashes, "data": "f" * 16}) for item in items]
    found = examples.find(Samples(hostile_results / "made"), items)
    assert (
        found.questions and not found.images and all(set(own) == {"task", "id", "image_id"} for own in found.questions)
    )


@pytest.mark.parametrize("how", ["gone", "cut", "other bytes", "no table", "other questions"])
def test_damaged_samples_give_no_flips_and_are_named(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "made"
    about: dict[str, Any] = {"tasks": [TASK], "limit": LIMIT}
    record.write(folder, board_record(**about), answers_of([True] * LIMIT))
    table = answers_of([False] * LIMIT)
    if how == "no table":
        table = pa.table({"answer": ["x"], "score": ["y"]})
    if how == "other questions":
        table = table.set_column(1, "question_id", pa.array(["other"] * LIMIT))
    item = board_record("random", "vision", 0.5, **about)
    record.write(folder, item, table)
    path = folder / f"{item.id}.parquet"
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "other bytes":
        path.write_bytes((folder / f"{board_record(**about).id}.parquet").read_bytes())
    assert not examples.find(Samples(folder), record.load(folder)[0]).flips
    assert f"{item.id}.parquet" in caplog.text
