"""Image id and question id together identify a question: in `data check`, before a sweep, in pairs, verdicts, pages."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import tasks
from harness.records import record
from harness.report import examples
from harness.report.samples import Samples
from harness.types import InputError
from tests.support import stored
from tests.support.commands import Call, put, refused
from tests.support.flips import examples_of
from tests.support.question_files import asked, question_rows, write_columns, write_parquet

Rows = list[dict[str, Any]]


def restarted(form: str, images: int) -> Rows:
    """Question ids 0, 1, 2 on every image."""
    key = "id" if form == "mini_gqa" else "question_id"
    return [{**row, key: number % 3} for number, row in enumerate(question_rows(form, images))]


def without_image_ids(rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if key not in ("image_id", "imageId")} for row in rows]


# --- what is refused --------------------------------------------------------------------------------------

AGAIN = "row 4: column 'question_id': the id '30' is also that of row 3, for the same image ('1')"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an id of the same image": ({"question_id": 30}, AGAIN),
    "a null id": ({"question_id": None}, "row 4: column 'question_id' is null; give every row an id"),
    "a null image": ({"image_id": None}, "row 4: column 'image_id' is null; give every row an id"),
    "an id of NaN": ({"question_id": float("nan")}, "row 4: column 'question_id' is null"),
    "an empty id": ({"question_id": ""}, "row 4: column 'question_id' is empty"),
    "a blank image id": ({"image_id": " \t"}, "row 4: column 'image_id' is empty"),
}


def spoiled(name: str) -> Rows:
    changes, _ = REFUSED[name]
    rows = question_rows("mini_vqav2", 10)
    rows[3]["question_id"] = 30
    if isinstance(next(iter(changes.values())), str):
        rows = [{**row, "question_id": str(row["question_id"]), "image_id": str(row["image_id"])} for row in rows]
    if isinstance(changes.get("question_id"), float):
        rows = [{**row, "question_id": float(row["question_id"])} for row in rows]
    rows[4] |= changes
    return rows


@pytest.mark.parametrize("name", REFUSED)
def test_ids_that_identify_nothing_are_refused_by_row(
    call: Call, tmp_path: Path, board: dict[str, Any], name: str
) -> None:
    """By `data check`, and before a sweep: not by the gate after it."""
    path = write_parquet(tmp_path / "mine.parquet", spoiled(name))
    refused(call("data", "check", path), str(path), REFUSED[name][1])
    file = put(tmp_path / "board.yaml", {**board, "tasks": [str(path)]})
    refused(call("sweep", file), str(path), REFUSED[name][1])


def test_ids_that_name_the_same_are_refused_whatever_their_type(tmp_path: Path) -> None:
    """Two rows of one image whose large numbers fall together as floats; bytes and a space apart are others."""
    rows = question_rows("mini_vqav2", 2)
    rows[1]["question_id"], rows[2]["question_id"] = 2**53, 2**53 + 1
    assert tasks.check(write_parquet(tmp_path / "a.parquet", rows))["rows"] == 6
    floats = [{**row, "question_id": float(row["question_id"])} for row in rows]
    with pytest.raises(InputError, match=rf"row 2: .* '{2**53}' is also that of row 1"):
        tasks.check(write_columns(tmp_path / "b.parquet", floats, {"question_id": pa.float64()}))
    spaces = [{**row, "question_id": " " * (number % 3) + "1"} for number, row in enumerate(rows)]
    assert tasks.check(write_parquet(tmp_path / "c.parquet", spaces))["rows"] == 6


def test_equal_rows_are_refused_without_image_ids(tmp_path: Path) -> None:
    """Equal bytes are one image."""
    rows = without_image_ids(question_rows("mini_textvqa", 2))
    with pytest.raises(InputError, match="row 6: column 'question_id': the id '0' is also that of row 0"):
        tasks.check(write_parquet(tmp_path / "a.parquet", [*rows, rows[0]]))


@pytest.mark.parametrize("form", ["mini_gqa", "mini_textvqa", "mini_vqav2"])
def test_ids_may_restart_with_every_image(tmp_path: Path, form: str) -> None:
    for rows in (restarted(form, 5), without_image_ids(restarted(form, 5))):
        path = str(write_parquet(tmp_path / "a.parquet", rows))
        assert tasks.check(path)["warnings"] == [] and tasks.check(path)["rows"] == 15
        table = tasks.majority(asked([path]))
        names = list(zip(table["image_id"].to_pylist(), table["question_id"].to_pylist(), strict=True))
        assert len(set(names)) == len(names) == 9
        drawn = tasks.samples(asked([path], "calibration"), 3, 0)
        assert sorted(sample.question_id for sample in drawn) == ["0", "1", "2"]


# --- a board whose ids restart ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_board_is_run_gated_judged_and_shown(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    """From `data check` to the page: what the check accepts, nothing refuses later."""
    path = write_parquet(tmp_path / "mine.parquet", without_image_ids(restarted("mini_textvqa", 10)))
    assert call("data", "check", path).code == 0
    file = put(tmp_path / "board.yaml", {**board, "tasks": [str(path)], "methods": ["random", "infoprune_free"]})
    assert call("sweep", file, "--inline", "--results", tmp_path / "a").code == 0
    assert call("sweep", file, "--inline", "--results", tmp_path / "b").code == 0
    gated = call("gate", tmp_path / "a", tmp_path / "b", "--json")
    assert gated.code in (0, 1, 3) and json.loads(gated.out)["metrics"]["accuracy"] != "refused", gated
    judged = call("verdict", tmp_path / "a" / "small", "--json")
    assert judged.code in (0, 1) and json.loads(judged.out)["bars"], judged
    assert call("report", "--results", tmp_path / "a", "--out", tmp_path / "boards").code == 0


def test_gate_and_verdict_pair_by_image_and_question(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On records whose question ids restart with every image."""

    def samples(scores: Any, tasks: Any, samples: Any = stored.samples) -> pa.Table:
        table = samples(scores, tasks)
        ids = pa.array([f"q{place % stored.PER_IMAGE}" for place in range(table.num_rows)])
        return table.set_column(1, "question_id", ids)

    monkeypatch.setattr(stored, "samples", samples)
    scores = stored.scores(180)
    for side, lost in (("before", 0.0), ("after", 0.02)):
        for method in ("mine", "taylor", "random"):
            stored.put(tmp_path / side, stored.flipped(scores, lost), method=method)
    gated = call("gate", tmp_path / "before", tmp_path / "after", "--json")
    assert gated.code in (1, 3), gated
    assert json.loads(gated.out)["pooled"][0]["accuracy"]["estimate"] == pytest.approx(0.02, abs=0.005)
    assert call("verdict", tmp_path / "after" / "made").code in (0, 1)


def test_the_page_shows_the_question_of_the_image(tmp_path: Path) -> None:
    """Ids are the same on every image; one question flips, and its own text and image are shown."""
    rows = restarted("mini_textvqa", 4)
    for number, row in enumerate(rows):
        row["question"] = f"Question number {number}?"
    found = examples_of(tmp_path, rows, [7])
    (question,) = found.questions
    assert (question["text"], question["id"], question["image_id"]) == ("Question number 7?", "1", "2")
    content = base64.b64decode(found.images[question["image"]].partition("base64,")[2])
    assert content == rows[7]["image"]["bytes"]


def test_answers_to_the_same_ids_on_other_images_are_other_answers(tmp_path: Path) -> None:
    rows = restarted("mini_textvqa", 4)
    assert examples_of(tmp_path, rows, [7]).flips
    path = next(path for path in (tmp_path / "results").glob("*.json") if '"random"' in path.read_text())
    item, table = record.read(path), pq.read_table(path.with_suffix(".parquet"))
    for file in (path, path.with_suffix(".parquet")):
        file.unlink()
    images = pa.array(table["image_id"].to_pylist()[::-1])
    table = table.set_column(table.schema.get_field_index("image_id"), "image_id", images)
    record.write(tmp_path / "results", replace(item, hashes={"data": item.hashes["data"]}), table)
    assert not examples.find(Samples(tmp_path / "results"), record.load(tmp_path / "results")[0]).flips


def test_tasks_of_lmms_eval_whose_ids_are_shared_get_row_numbers() -> None:
    """Some sets give both questions of an image one id."""
    from harness.tasks import suite

    class Pairs:
        def __init__(self, ids: list[Any], images: list[str]) -> None:
            rows = datasets.Dataset.from_dict({"question_id": ids, "image_id": images, "answer": ["yes"] * len(ids)})
            self.dataset, self.dataset_no_image = {"test": rows}, {"test": rows}
            self.config = type("Config", (), {"test_split": "test", "validation_split": None})

    for ids, unique in ((["a", "a", "b", "b"], False), ([None] * 4, False), (["a", "b", "a", "b"], True)):
        loaded = suite.restrict(Pairs(ids, ["x", "x", "y", "y"]), None)
        assert loaded.question_ids == (("a", "b", "a", "b") if unique else ("0", "1", "2", "3"))
