"""Question sets: names, validation of files, the draw of questions, and calibration samples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ImageFile

from harness import tasks
from harness.tasks import data, truths
from harness.types import InputError
from tests.support.pictures import encoded_picture
from tests.support.question_files import QUESTIONS, asked, question_rows, rows_asked, write_parquet

SUFFIX = "\nAnswer the question using a single word or phrase."


# --- names ------------------------------------------------------------------------------------------------


def test_importing_is_light():
    code = (
        "import sys; from harness import tasks; from harness.types import Questions; "
        "tasks.describe(); tasks.require(Questions(()));"
        "assert not {'torch', 'lmms_eval', 'datasets', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shipped_names_have_a_line_each():
    assert tasks.names() == ["mini_gqa", "mini_textvqa", "mini_vqav2"]
    assert all(10 < len(line) < 100 and "\n" not in line for line in tasks.describe().values())


def test_unknown_task_offers_the_nearest(tmp_path: Path):
    for wrong, near in (("mini_vqa2", "mini_vqav2"), ("textvqa_vall", "textvqa_val")):
        with pytest.raises(InputError, match=f"'{wrong}': unknown; did you mean {near}.*mini_gqa, mini_textvqa"):
            tasks.require(asked([wrong]))
    with pytest.raises(InputError, match=r"nothere\.parquet: no such file"):
        tasks.require(asked(["nothere.parquet"]))
    with pytest.raises(InputError, match="unknown"):
        tasks.require(asked([str(tmp_path)]))  # a folder without parquet


def test_unknown_split_lists_those_there(sets: Path):
    with pytest.raises(InputError, match=r"mini_gqa: no split 'test'.*calibration, dev, validation"):
        rows_asked("mini_gqa", "test", 3)


def test_task_named_twice(sets: Path):
    with pytest.raises(InputError, match="'mini_gqa': named twice"):
        tasks.samples(asked(["mini_gqa", "mini_gqa"], "calibration"), 2, 0)


def test_own_tasks_of_lmms_eval_have_one_split():
    with pytest.raises(InputError, match="textvqa_val: has no split 'dev'"):
        tasks.samples(asked(["textvqa_val"], "dev"), 2, 0)


@pytest.mark.slow
def test_own_task_without_its_data_says_so(tmp_path: Path):
    """In a process that may not reach the hub and has nothing in its cache."""
    code = (
        "from harness import tasks\nfrom harness.types import InputError, Questions\n"
        "for name in ('vizwiz_vqa_val', 'gqa'):\n"
        "    try: tasks.samples(Questions((name,)), 2, 0)\n    except InputError as error: print(error)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "INFOPRUNE_DATA_OWNER": "elsewhere"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    stock, official = done.stdout.strip().splitlines()
    assert "task vizwiz_vqa_val: lmms-eval could not load its data set" in stock
    assert "task gqa: cannot fetch elsewhere/GQA (" in official and official.endswith("or gqa@FOLDER")


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mini_gqa", "mini_textvqa", "mini_vqav2"])
def test_check_accepts_the_official_columns(tmp_path: Path, form: str):
    path = write_parquet(tmp_path / "a.parquet", question_rows(form, 3))
    assert tasks.check(path) == {"path": str(path), "rows": 9, "images": 3, "form": form, "warnings": []}
    assert tasks.check(tmp_path)["files"] == [tasks.check(path)]


def test_images_without_an_id_are_told_apart_by_their_bytes(tmp_path: Path):
    table = [{k: v for k, v in row.items() if k != "image_id"} for row in question_rows("mini_textvqa", 3)]
    assert tasks.check(write_parquet(tmp_path / "a.parquet", table))["images"] == 3


def spoil(row: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    table = question_rows("mini_textvqa", 2)
    table[4] = {**table[4], **row, **changes}
    return table


BAD = {
    "truncated png": (
        spoil({"image": {**encoded_picture(1), "bytes": encoded_picture(1)["bytes"][:-40]}}),
        "row 4: column 'image'",
    ),
    "truncated jpeg": (
        spoil({"image": {"bytes": encoded_picture(1, "JPEG", (200, 200))["bytes"][:-300], "path": "a.jpg"}}),
        "row 4: column 'image'",
    ),
    "no image at all": (spoil({"image": {"bytes": b"nonsense", "path": "a.png"}}), "row 4: column 'image'"),
    "image by path only": (spoil({"image": {"bytes": None, "path": "a.png"}}), "row 4: column 'image' has no bytes"),
    "null image": (spoil({"image": None}), "row 4: column 'image' has no bytes"),
    "empty answers": (spoil({"answers": []}), "row 4: column 'answers' is an empty list"),
    "null answers": (spoil({"answers": None}), "row 4: column 'answers' is an empty list"),
    "blank answer": (spoil({"answers": ["yes", " "]}), "row 4: column 'answers' holds an empty answer"),
    "empty question": (spoil({"question": ""}), "row 4: column 'question' is empty"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("lenient", [False, True])
def test_bad_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lenient: bool):
    """Also in a process where a library has told PIL to accept truncated images."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    table, message = BAD[name]
    path = write_parquet(tmp_path / "bad.parquet", table)
    with pytest.raises(InputError, match=message) as caught:
        tasks.require(asked([str(path)]))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(InputError, match=message):  # nor is such a file evaluated or calibrated on
        tasks.samples(asked([str(path)], "validation"), 1, 0)


@pytest.mark.parametrize("column", ["question_id", "image", "question", "answers"])
def test_missing_columns_are_named(tmp_path: Path, column: str):
    table = [{k: v for k, v in row.items() if k != column} for row in question_rows("mini_vqav2", 1)]
    with pytest.raises(InputError, match=f"bad.parquet: missing column '{column}'"):
        tasks.check(write_parquet(tmp_path / "bad.parquet", table))


def test_wrong_types_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="column 'answers' is string"):
        tasks.check(
            write_parquet(tmp_path / "a.parquet", [{**row, "answers": "red"} for row in question_rows("mini_vqav2", 1)])
        )
    with pytest.raises(InputError, match="column 'image' is string"):
        tasks.check(
            write_parquet(tmp_path / "b.parquet", [{**row, "image": "a.png"} for row in question_rows("mini_vqav2", 1)])
        )


def test_zero_rows_and_other_files(tmp_path: Path):
    table = pa.Table.from_pylist(question_rows("mini_gqa", 1))
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(InputError, match=r"none\.parquet: no rows"):
        tasks.check(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match=r"text\.parquet: not a parquet file"):
        tasks.check(tmp_path / "text.parquet")
    with pytest.raises(InputError, match=r"no \.parquet file"):
        (tmp_path / "empty").mkdir()
        tasks.check(tmp_path / "empty")


def test_a_changed_file_is_checked_again(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", question_rows("mini_textvqa", 2))
    assert tasks.check(path)["rows"] == 6
    write_parquet(path, question_rows("mini_textvqa", 3))
    assert tasks.check(path)["rows"] == 9


def test_short_answer_lists_can_score_one():
    assert truths.annotators(["a"] * 10) == ["a"] * 10
    assert truths.annotators(["a"]).count("a") == 10
    two = truths.annotators([{"answer": "a", "answer_id": 1}, {"answer": "b", "answer_id": 1}])
    assert [d["answer"] for d in two] == ["a", "b"] * 5
    assert [d["answer_id"] for d in two] == list(range(1, 11))


# --- which questions --------------------------------------------------------------------------------------


def test_limit_is_met_exactly_with_whole_images(sets: Path):
    before: list[int] = []
    for limit in range(1, 25):
        chosen = rows_asked("mini_gqa", "validation", limit)
        assert len(chosen) == limit and chosen == sorted(set(chosen))
        assert set(before) < set(chosen)
        sizes = [sum(i // 3 == image for i in chosen) for image in range(8)]
        assert sum(0 < size < 3 for size in sizes) == (limit % 3 > 0)
        before = chosen
    assert rows_asked("mini_gqa", "validation", None) == list(range(24))
    assert rows_asked("mini_gqa", "validation", 99) == list(range(24))
    with pytest.raises(InputError, match="limit: 0"):
        rows_asked("mini_gqa", "validation", 0)


def test_draw_depends_on_ids_alone():
    """Fixed by hand once: the draw may not change with the version of anything."""
    questions = [f"{image}-{number}" for image in range(6) for number in range(2)]
    images = [f"i{image}" for image in range(6) for number in range(2)]
    chosen = data.choose(questions, images, 5)
    assert chosen == [3, 4, 5, 10, 11]
    back = data.choose(questions[::-1], images[::-1], 5)
    assert {questions[::-1][i] for i in back} == {questions[i] for i in chosen}


def test_one_file_has_three_parts_that_share_no_image(tmp_path: Path):
    path = str(write_parquet(tmp_path / "a.parquet", question_rows("mini_vqav2", 20)))
    parts = {split: set(rows_asked(path, split, None)) for split in tasks.SPLITS}
    assert [len(part) for part in parts.values()] == [36, 12, 12]
    assert set().union(*parts.values()) == set(range(60))
    images = [{i // 3 for i in part} for part in parts.values()]
    assert sum(map(len, images)) == 20
    one = str(write_parquet(tmp_path / "one.parquet", question_rows("mini_vqav2", 1)))
    assert rows_asked(one, "validation", None) == [0, 1, 2]
    with pytest.raises(InputError, match="too few images"):
        rows_asked(one, "calibration", None)


def test_data_hash_follows_content_split_and_limit(sets: Path, tmp_path: Path):
    names = ["mini_gqa", "mini_vqav2"]
    seen = {tasks.data_hash(asked(names, split, limit)) for split in ("dev", "validation") for limit in (3, 6, None)}
    assert len(seen) == 6
    copied = shutil.copy(sets / "mini_gqa" / "dev.parquet", tmp_path / "b.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(copied, folder / "dev.parquet")
    assert tasks.data_hash(asked([str(folder)], "dev", 3)) == tasks.data_hash(asked(["mini_gqa"], "dev", 3))


# --- calibration ------------------------------------------------------------------------------------------


def test_samples_are_even_seeded_and_worded_as_in_evaluation(sets: Path):
    drawn = tasks.samples(asked(tasks.names(), "calibration"), 8, seed=0)
    assert len(drawn) == 8
    prompts = {question + SUFFIX: answer for question, answer in QUESTIONS}
    for sample in drawn:
        assert prompts[sample.question] == sample.answer
        assert sample.image.size == (48, 48) and sample.image.mode == "RGB"
    gqa = {f"{image}-{number}" for image in range(200, 208) for number in range(3)}
    assert sum(sample.question_id in gqa for sample in drawn) == 3
    ids = [sample.question_id for sample in drawn]
    assert ids == [sample.question_id for sample in tasks.samples(asked(tasks.names(), "calibration"), 8, seed=0)]
    assert ids != [sample.question_id for sample in tasks.samples(asked(tasks.names(), "calibration"), 8, seed=1)]
    assert ids[:5] == [sample.question_id for sample in tasks.samples(asked(tasks.names(), "calibration"), 5, seed=0)]


def test_answer_is_the_most_common_one(tmp_path: Path):
    table = [{**row, "answers": ["blue", "red", "red", "green"]} for row in question_rows("mini_textvqa", 5)]
    path = write_parquet(tmp_path / "a.parquet", table)
    assert tasks.samples(asked([str(path)], "calibration"), 1, 0)[0].answer == "red"


def test_too_many_samples(sets: Path):
    words = r"task mini_gqa must supply 25 of the 25 samples, but its split 'calibration' has only 24; set (.*)$"
    with pytest.raises(InputError, match=words) as caught:
        tasks.samples(asked(["mini_gqa"], "calibration"), 25, 0)
    assert "calibration.samples to at most 24 (in prune: --samples 24)" in str(caught.value)
    for number, names in ((49, ["mini_gqa", "mini_vqav2"]), (50, ["mini_gqa", "mini_vqav2"])):
        with pytest.raises(InputError) as caught:
            tasks.require(asked(names, "calibration"), number)
        most = int(str(caught.value).partition("to at most ")[2].split()[0])
        assert 48 <= most < number
        tasks.require(asked(names, "calibration"), 48)
    with pytest.raises(InputError, match=r"tuning\.samples: .*; set tuning\.samples to at most 24, or"):
        tasks.require(asked(["mini_gqa"], "calibration"), 25, "tuning.samples")


# --- the shipped sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["mini_gqa", "mini_textvqa", "mini_vqav2"])
def test_shipped_sets_are_sound_and_share_no_image(task: str):
    seen: set[bytes] = set()
    for split in tasks.SPLITS:
        path = data.REFERENCE / task / f"{split}.parquet"
        found = tasks.check(path)
        assert found["form"] == task
        if split != "calibration":
            assert found["rows"] >= {"validation": 1000, "dev": 500}[split]
            assert found["images"] >= {"validation": 300, "dev": 150}[split]
        own = {image["bytes"] for image in pq.read_table(path, columns=["image"])["image"].to_pylist()}
        assert not own & seen
        seen |= own
