"""lmms-eval's own VQAv2, TextVQA and GQA, unchanged, on folders of parquet files in the official columns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from harness import tasks
from harness.records import record
from harness.report import report
from harness.tasks import data, official
from harness.trials import spec
from harness.types import InputError
from tests.support import stored
from tests.support.commands import Call, refused
from tests.support.paths import ROOT
from tests.support.pictures import encoded_picture
from tests.support.question_files import QUESTIONS, asked, question_rows, write_parquet

SETS = ("vqav2_val", "textvqa_val", "gqa")
Change = Callable[[list[dict[str, Any]]], None]


def official_rows(task: str, images: int, start: int = 0) -> list[dict[str, Any]]:
    """Questions in a set's own columns; GQA's without images."""
    made = []
    for row in question_rows(official.DEFINITIONS[task].form, images, start):
        if task == "gqa":
            del row["image"]
            row |= {"fullAnswer": "It is.", "isBalanced": True}
        elif task == "vqav2_val":
            row |= {"multiple_choice_answer": "red", "answer_type": "other"}
        else:
            row |= {"ocr_tokens": ["stop"], "image_width": 48, "set_name": "val"}
        made.append(row)
    return made


def lay(root: Path, task: str, images: int = 6, change: Change = lambda made: None) -> str:
    """A folder as the hub has it, validation and training parts in two shards each; returns the task's name."""
    folder = root / task
    for split, train in (("validation", False), ("train", True)):
        start = 100 if train else 0
        made = official_rows(task, images, start)
        change(made)
        half = 3 * (images // 2)
        for shard, part in enumerate((made[:half], made[half:])):
            if task == "gqa":
                config = "train" if train else "testdev"
                name = f"{config}-0000{shard}-of-00002.parquet"
                write_parquet(folder / f"{config}_balanced_instructions" / name, part)
                ids = sorted({row["imageId"] for row in part})
                seen = [{"id": key, "image": encoded_picture(int(key[1:]))} for key in ids]
                write_parquet(folder / f"{config}_balanced_images" / name, seen)
            else:
                write_parquet(folder / "data" / f"{split}-0000{shard}-of-00002.parquet", part)
    return f"{task}@{folder}"


@pytest.mark.parametrize("task", SETS)
def test_a_sound_folder_is_counted(tmp_path: Path, task: str) -> None:
    name = lay(tmp_path, task)
    expected = {"path": str(tmp_path / task), "rows": 18, "images": 6, "form": task, "warnings": []}
    assert tasks.check(name) == expected
    tasks.require(asked([name], "validation"))
    if task == "vqav2_val":
        with pytest.raises(InputError, match=r"vqav2_val@.*: has no split 'calibration' here; it has: validation"):
            tasks.require(asked([name], "calibration"), 4)
    else:
        tasks.require(asked([name], "calibration"), 18)
        with pytest.raises(
            InputError, match=r"task .* must supply 19 of the 19 samples, .*'calibration' has only 18; set "
        ):
            tasks.require(asked([name], "calibration"), 19)


@pytest.mark.parametrize("task", SETS)
def test_the_official_definition_runs(tmp_path: Path, task: str) -> None:
    """Its prompt, its scorer on dicts or strings, its images wherever they lie; at most 16 tokens, no submission."""
    from harness.tasks import suite

    name = lay(tmp_path, task)
    known = official.OfficialSet.of(name)
    assert known is not None
    own: Any = suite.official(known, "validation")
    assert own.config.generation_kwargs["max_new_tokens"] == 16 and list(own.aggregation()) == ["exact_match"]
    cut = suite.restrict(own, 5)
    assert len(cut.question_ids) == 5 and len(set(cut.image_ids)) == 2
    for doc in own.eval_docs:
        (shown,) = own.doc_to_visual(doc)
        number = int(str(doc["imageId"])[1:]) if task == "gqa" else int(doc["image_id"])
        assert shown.mode == "RGB" and shown.getpixel((0, 0)) == (number * 37 % 256, number * 91 % 256, 40)
        asked = doc["question"].capitalize() if task == "textvqa_val" else doc["question"]
        assert own.doc_to_text(doc) == f"{asked}\nAnswer the question using a single word or phrase."
    right = dict(QUESTIONS)
    for doc in own.eval_docs_no_media:
        for answer, score in ((right[doc["question"]], 1.0), ("neither", 0.0)):
            assert float(own.process_results(dict(doc), [answer])["exact_match"]) == score


@pytest.mark.parametrize("task", SETS)
def test_constants_samples_and_hashes(tmp_path: Path, task: str) -> None:
    name = lay(tmp_path, task)
    floor = tasks.majority(asked([name], "validation", None))
    assert tasks.summary(floor)["mean"] == pytest.approx(1 / 3) and floor.num_rows == 18
    first = tasks.data_hash(asked([name], "validation", 6))
    assert first != tasks.data_hash(asked([name], "validation", None))
    if task != "vqav2_val":
        drawn = tasks.samples(asked([name], "calibration"), 5, seed=0)
        assert len(drawn) == 5 and {sample.answer for sample in drawn} <= {answer for _, answer in QUESTIONS}
        ids = [str(row["id" if task == "gqa" else "question_id"]) for row in official_rows(task, 6, 100)]
        assert {sample.question_id for sample in drawn} <= set(ids)  # of the training part

    def other(made: list[dict[str, Any]]) -> None:
        made[0]["question"] = "Where is it?"

    lay(tmp_path, task, change=other)
    assert tasks.data_hash(asked([name], "validation", None)) != first


def spoiled(column: str, value: Any) -> Change:
    def change(made: list[dict[str, Any]]) -> None:
        made[1][column] = value

    return change


TWINS = [{"answer": "red", "answer_confidence": "yes", "answer_id": 1}] * 10


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("vqav2_val", spoiled("answers", TWINS), "row 1: column 'answers': equal entries; .* answer_id of its own"),
        ("vqav2_val", spoiled("question", " "), "row 1: column 'question' is empty"),
        ("textvqa_val", spoiled("answers", []), "row 1: column 'answers' is an empty list"),
        ("gqa", spoiled("answer", ""), "row 1: column 'answer' holds an empty answer"),
        ("vqav2_val", lambda made: [row.pop("question") for row in made], "missing column 'question'"),
        ("vqav2_val", lambda made: [row.update(answers=["red"] * 10) for row in made], "that of mini_textvqa"),
        ("textvqa_val", spoiled("question_id", None), "row 1: column 'question_id' is null"),
        ("gqa", spoiled("id", "0-0"), "row 1: column 'id': the id '0-0' is also that of .*row 0, for the same image"),
        ("vqav2_val", lambda made: [row.update(question=b"?") for row in made], "column 'question' is binary, which"),
        ("gqa", lambda made: [row.update(answer=7.5) for row in made], "column 'answer' is double; it must be text"),
        ("textvqa_val", lambda made: [row.update(question_id=float(row["question_id"])) for row in made], "is double"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, task: str, change: Change, words: str) -> None:
    name = lay(tmp_path, task, change=change)
    with pytest.raises(InputError, match=rf"0000\d-of-00002\.parquet: .*{words}"):
        tasks.require(asked([name], "validation"))


def test_images_are_looked_for(tmp_path: Path) -> None:
    gqa, vqa = lay(tmp_path, "gqa"), lay(tmp_path, "vqav2_val")
    place = tmp_path / "gqa" / "testdev_balanced_images" / "testdev-00001-of-00002.parquet"
    table = pq.read_table(place)
    pq.write_table(table.slice(1), place)
    with pytest.raises(InputError, match="column 'imageId': no image 'i3' among the set's images"):
        tasks.require(asked([gqa], "validation"))
    broken = table.to_pylist()
    broken[0]["image"]["bytes"] = b"nonsense"
    pq.write_table(pa.Table.from_pylist(broken), place)
    tasks.require(asked([gqa], "validation"))  # a sweep does not decode every image beforehand
    with pytest.raises(InputError, match="row 0: column 'image' cannot be decoded"):
        tasks.check(gqa)
    lay(tmp_path, "vqav2_val", change=spoiled("image", {"bytes": b"nonsense", "path": None}))
    with pytest.raises(InputError, match="row 1: column 'image' cannot be decoded"):
        tasks.check(vqa)
    with pytest.raises(InputError, match=r"gqa@.*nowhere: no such folder"):
        tasks.require(asked([f"gqa@{tmp_path / 'nowhere'}"], "validation"))
    with pytest.raises(InputError, match=r"no testdev_balanced_instructions/\*\.parquet in"):
        tasks.require(asked([f"gqa@{tmp_path / 'vqav2_val'}"], "validation"))
    with pytest.raises(InputError, match="gqa: names no folder; use gqa@FOLDER"):
        tasks.check("gqa")


def test_questions_and_images_in_two_files(tmp_path: Path) -> None:
    """The smallest form of GQA's folder."""
    write_parquet(tmp_path / "testdev_balanced_instructions.parquet", official_rows("gqa", 2))
    write_parquet(
        tmp_path / "testdev_balanced_images.parquet", [{"id": f"i{i}", "image": encoded_picture(i)} for i in range(2)]
    )
    assert tasks.check(f"gqa@{tmp_path}")["rows"] == 6


def test_a_question_in_two_files_is_named(tmp_path: Path) -> None:
    for shard in range(2):
        rows = official_rows("textvqa_val", 1)
        write_parquet(tmp_path / f"validation-0000{shard}-of-00002.parquet", rows)
    with pytest.raises(InputError, match=r"00001-of-00002.parquet: row 0: .* the id '0' is also that of .*00000-of-"):
        tasks.check(f"textvqa_val@{tmp_path}")


def test_official_sets_raise_doubts_too(tmp_path: Path) -> None:
    for task in SETS:

        def change(made: list[dict[str, Any]]) -> None:
            made[1]["question"] = "What is <image>?"

        assert "the question holds <image>" in " ".join(tasks.check(lay(tmp_path, task, change=change))["warnings"])
    write_parquet(
        tmp_path / "gqa" / "testdev_balanced_images.parquet", [{"id": "i9", "image": encoded_picture(9, size=(900, 2))}]
    )
    assert any("900x2 pixels" in line for line in tasks.check(f"gqa@{tmp_path / 'gqa'}")["warnings"])


def test_data_check_says_counts_and_floor(call: Call, tmp_path: Path) -> None:
    done = call("data", "check", lay(tmp_path, "gqa"), "--json")
    assert done.code == 0, done
    assert json.loads(done.out) == {
        "path": str(tmp_path / "gqa"), "rows": 18, "images": 6, "form": "gqa", "majority": 0.3333, "warnings": [],
        "splits": {"validation": 18, "dev": 0, "calibration": 18},
    }  # fmt: skip
    refused(call("data", "check", "textvqa_val"), "textvqa_val@FOLDER")


def test_the_hub_is_asked_for_pinned_revisions() -> None:
    lines = tasks.fetched(asked(["mini_gqa", *SETS], "validation"))
    assert len(lines) == 3
    for line, task in zip(lines, SETS, strict=True):
        revision = official.DEFINITIONS[task].revision
        assert len(revision) == 40 and revision in line and line.startswith("data set lmms-lab-encoder/")


def test_the_papers_board_can_be_looked_at_offline(call: Call) -> None:
    """Six budgets, both scopes, the three official sets; what it would fetch is named, nothing is fetched."""
    done = call("sweep", "paper", "--dry-run")
    assert done.code == 0, done
    lines = [line for line in done.out.splitlines() if line.startswith("from the hub")]
    assert len(lines) == 5 and "Qwen/Qwen2-VL-7B-Instruct at revision eed1309" in lines[0]
    for line, words in zip(lines[1:], ("VQAv2", "textvqa", "GQA", "calibration of textvqa_val"), strict=True):
        assert words in line
    board = spec.read("paper")
    assert board.budgets == (0.9, 0.75, 0.5, 0.3125, 0.2, 0.1) and board.scopes == ("vision", "all")
    assert board.tasks == SETS and "577 trials to run, 0 done" in done.out
    refused(call("sweep", "paper", "--random-weights"), "metrics: accuracy", "random weights")


def test_the_papers_own_figures_stand_on_its_board(tmp_path: Path) -> None:
    stored.put(
        tmp_path / "results", stored.scores(30), board="paper", method="infoprune", budget=0.3125, scope="vision"
    )
    report(tmp_path / "results", tmp_path / "boards")
    text = (tmp_path / "boards" / "paper" / "README.md").read_text()
    told = text.partition("## Reported by papers, not measured here")[2]
    assert "3.2" in told and "1.8" in told and "2511.19518" in told
    assert "reported, not measured" in (tmp_path / "boards" / "paper" / "index.html").read_text()


@pytest.mark.slow
def test_a_board_on_the_three_official_sets(call: Call, tmp_path: Path) -> None:
    """The embedded model, its own questions in the official columns, calibration from a training part."""
    names = []
    for task in SETS:
        form = official.DEFINITIONS[task].form
        made = pq.read_table(data.REFERENCE / form / "validation.parquet").to_pylist()[:48]
        folder = tmp_path / task
        if task == "gqa":
            images = {row["imageId"]: row["image"] for row in made}
            write_parquet(
                folder / "testdev_balanced_images.parquet", [{"id": k, "image": v} for k, v in images.items()]
            )
            for row in made:
                del row["image"]
        write_parquet(
            folder / ("testdev_balanced_instructions.parquet" if task == "gqa" else "validation.parquet"), made
        )
        if task == "textvqa_val":
            more = pq.read_table(data.REFERENCE / form / "calibration.parquet").to_pylist()[:20]
            write_parquet(folder / "train.parquet", more)
        names.append(f"{task}@{folder}")
    board = {
        "name": "official",
        "model": "mini-qwen2-vl",
        "methods": ["magnitude"],
        "budgets": [0.5],
        "tasks": names,
        "metrics": ["flops", "accuracy"],
        "calibration": {"samples": 8, "tasks": [names[1]]},
        "reference_input": {"image": [96, 96]},
        "limit": 40,
    }
    Path("official.yaml").write_text(yaml.safe_dump(board))
    planned = call("sweep", "official.yaml", "--dry-run")
    assert planned.code == 0 and "2 trials to run" in planned.out and "from the hub" not in planned.out
    done = call("sweep", "official.yaml", "--inline")
    assert done.code == 0, done
    records, problems = record.load(Path("results/official"))
    assert not problems and len(records) == 2
    dense = next(made for made in records if made.trial.method == "none")
    scores = {name.partition("@")[0]: own for name, own in dense.metrics["accuracy"]["tasks"].items()}
    assert set(scores) == set(SETS) and all(own["n"] == 40 for own in scores.values())
    assert scores["vqav2_val"]["accuracy"] > 0.8 and scores["gqa"]["accuracy"] > 0.8
    assert call("report").code == 0
    assert not list(Path().rglob("*submission*"))


SHARED = Path(os.environ.get("INFOPRUNE_SHARED", ROOT.parent / "shared")) / "data" / "nlvr_train.parquet"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_file(), reason="somebody else's data set, beside the checkout where there is one")
def test_data_that_nobody_here_made() -> None:
    """Wide images with an alpha channel, sentences that the embedded model's tokenizer has not seen."""
    from harness import families, registry

    found = tasks.check(SHARED)
    assert (found["rows"], found["form"]) == (1000, "mini_textvqa")
    floor = tasks.summary(tasks.majority(asked([str(SHARED)], "validation", None)))
    assert 0.55 < floor["mean"] < 0.63  # its own card says 58.7 % over all rows
    result, answers = tasks.evaluate(families.load(registry.model("mini-qwen2-vl")), asked([str(SHARED)], limit=24))
    assert answers.num_rows == 24 and 0 <= result["mean"] <= 1
    assert {sample.answer for sample in tasks.samples(asked([str(SHARED)], "calibration"), 8, 0)} <= {"true", "false"}
