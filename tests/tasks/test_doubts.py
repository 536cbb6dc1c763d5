"""What `data check` says of data that can be used, but hardly as meant; and how often it looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import pictures, tasks
from harness.types import InputError
from tests.support.commands import Call, refused
from tests.support.pictures import encoded_picture, stored_picture
from tests.support.question_files import question_rows, write_parquet

DEEP = Image.fromarray(np.full((32, 32), 40_000, np.uint16))
CLEAR = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
FULL = Image.new("RGBA", (32, 32), (9, 9, 9, 255))
TEN = [{"answer": "red", "answer_id": number} for number in range(10)]


def numbered(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]


DOUBTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an article": ("mini_textvqa", {"answers": ["A"] * 10}, "the answer 'A' is empty to the scorer"),
    "an article of one annotator": ("mini_textvqa", {"answers": ["red"] * 9 + ["the"]}, "the answer 'the' is empty"),
    "an article of VQAv2": ("mini_vqav2", {"answers": numbered(*["An."] * 10)}, "the answer 'An.' is empty"),
    "marks": ("mini_vqav2", {"answers": numbered(*["?"] * 10)}, "the answer '?' is empty"),
    "marks of GQA": ("mini_gqa", {"answer": "..."}, "the answer '...' is empty to the scorer"),
    "a space": ("mini_gqa", {"answer": "red "}, "the answer 'red ' cannot score"),
    "a line": ("mini_gqa", {"answer": "dark\nred"}, "the answer 'dark\\nred' cannot score"),
    "a long answer": ("mini_gqa", {"answer": " ".join(["very"] * 17)}, "an answer of 17 words cannot score"),
    "one annotator": ("mini_textvqa", {"answers": ["red"]}, "one annotator, where official sets have 10"),
    "nine annotators": ("mini_vqav2", {"answers": numbered(*["red"] * 9)}, "9 annotators, where official sets have 10"),
    "an image token": ("mini_textvqa", {"question": "What is <image>?"}, "the question holds <image>"),
    "another image token": ("mini_gqa", {"question": "<|image_pad|> ?"}, "the question holds <|image_pad|>"),
    "an end token": ("mini_vqav2", {"question": "Yes</s>"}, "the question holds </s>"),
    "a turn": ("mini_vqav2", {"question": "[INST] Is it?"}, "the question holds [INST]"),
    "a strip": ("mini_gqa", {"image": encoded_picture(1, size=(800, 2))}, "800x2 pixels: some processors refuse more"),
    "a line of pixels": ("mini_gqa", {"image": encoded_picture(1, size=(9, 1900))}, "9x1900 pixels: some processors"),
    "a dot": ("mini_gqa", {"image": encoded_picture(1, size=(1, 1))}, "1x1 pixels: some processors refuse it"),
    "16 bits": ("mini_textvqa", {"image": stored_picture(DEEP)}, "an image with 16 bits: shown as in a viewer"),
    "transparency": ("mini_textvqa", {"image": stored_picture(CLEAR)}, "an image with transparent parts: shown as in"),
    "one id for two images": ("mini_textvqa", {"image_id": 0}, "another image has the id '0' too"),
    "two ids for one image": ("mini_gqa", {"image": encoded_picture(0)}, "image 'i1' is also 'i0'"),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_every_doubt_is_a_line_with_its_row(tmp_path: Path, name: str) -> None:
    form, changes, words = DOUBTS[name]
    rows = question_rows(form, 3)
    rows[3] |= changes
    if "image_id" in changes:
        rows[3]["question_id"] = 77
    path = write_parquet(tmp_path / "a.parquet", rows)
    warnings = tasks.check(path)["warnings"]
    assert warnings and all("\n" not in line for line in warnings)
    assert any(line.startswith(f"{path}: row ") and words in line for line in warnings), warnings
    first = next(line for line in warnings if words in line)
    assert "row 3: " in first or ("id" in first and "row 4: " in first)


def test_sound_data_raise_no_doubt(tmp_path: Path) -> None:
    """Words like tokens, one opaque alpha channel, numbers, marks inside words, long words, a tall image."""
    rows = [{key: value for key, value in row.items() if key != "image_id"} for row in question_rows("mini_textvqa", 3)]
    rows[0] |= {"question": "Is 3 < 4 and 5 > 4? (a|b) [1]", "image": stored_picture(FULL)}
    rows[1] |= {"answers": ["3.5", "a dog", "don't", "U.S.", "t-shirt", "O'Neill", "the end", "0", "none", "x" * 90]}
    rows[2] |= {"image": encoded_picture(0, size=(32, 6000))}
    assert tasks.check(write_parquet(tmp_path / "a.parquet", rows))["warnings"] == []


def test_many_rows_of_a_kind_are_one_line(tmp_path: Path, call: Call) -> None:
    rows = [
        {**row, "answers": [word]}
        for row, word in zip(question_rows("mini_textvqa", 5), "abcdefghijklmno", strict=True)
    ]
    path = write_parquet(tmp_path / "a.parquet", rows)
    few, empty = tasks.check(path)["warnings"]
    assert few.startswith(f"{path}: row 0: one annotator") and few.endswith("(and 14 more)")
    assert empty.startswith(f"{path}: row 0: the answer 'a' is empty") and "more)" not in empty
    done = call("data", "check", path)
    assert done.code == 0 and done.out.count("warning: ") == 2 and few in done.out, done
    assert "rows=15, images=5, form=mini_textvqa" in done.out and "validation=9, dev=3, calibration=3" in done.out


def test_a_folder_shows_a_line_a_file_and_their_doubts(tmp_path: Path, call: Call) -> None:
    for place, split in enumerate(tasks.SPLITS):
        rows = question_rows("mini_textvqa", 2, start=10 * place)
        rows[0] |= {"answers": ["red"]} if split == "dev" else {}
        write_parquet(tmp_path / "set" / f"{split}.parquet", rows)
    lines = call("data", "check", tmp_path / "set").out.splitlines()
    assert len(lines) == 4 and all("rows=6, images=2" in line for line in lines if not line.startswith("warning"))
    assert lines[2].startswith("warning: ") and "dev.parquet: row 0: one annotator" in lines[2]


def test_too_few_images_for_an_interval_are_named(tmp_path: Path, call: Call) -> None:
    for images, few in ((1, True), (2, True), (4, False)):
        path = write_parquet(tmp_path / f"{images}.parquet", question_rows("mini_textvqa", images))
        assert ("too few images for an interval" in call("data", "check", path).out) == few


def test_every_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many questions share it, and whether or not the file says so."""
    decoded = []
    monkeypatch.setattr(
        pictures, "whole", lambda content, whole=pictures.whole: decoded.append(content) or whole(content)
    )
    rows = [{key: value for key, value in row.items() if key != "image_id"} for row in question_rows("mini_textvqa", 4)]
    path = write_parquet(tmp_path / "a.parquet", rows)
    assert tasks.check(path)["images"] == 4 and len(decoded) == 4
    tasks.check(path)
    assert len(decoded) == 4, "an unchanged file is not looked at again"


def test_data_check_reads_no_image_for_the_floor(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.tasks import data

    path, reads = write_parquet(tmp_path / "a.parquet", question_rows("mini_vqav2", 4)), []
    monkeypatch.setattr(
        data.Source, "read", lambda self, images=True, read=data.Source.read: reads.append(images) or read(self, images)
    )
    assert call("data", "check", path).code == 0 and reads == [False]


@pytest.mark.parametrize("column", ["question", "answers"])
def test_doubts_and_faults_do_not_hide_each_other(tmp_path: Path, call: Call, column: str) -> None:
    rows = question_rows("mini_textvqa", 3)
    rows[0]["answers"] = ["the"]
    rows[8][column] = None
    refused(call("data", "check", write_parquet(tmp_path / "a.parquet", rows)), "row 8", f"column '{column}'")
    with pytest.raises(InputError, match="row 8"):
        tasks.check(tmp_path / "a.parquet")
