"""Bad boards, models and question sets: one line that names file and key, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.commands import Call, put, refused
from tests.support.pictures import encoded_picture
from tests.support.question_files import question_rows

# --- board files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("# nothing but a comment\n", ["empty"]),
        ("[1, 2]", ["not a mapping"]),
        ("random", ["not a mapping"]),
        ("name: [", ["not YAML"]),
        ("name: 2024-13-45", ["not YAML"]),
        ("a: !!python/object:os.system {}", ["not YAML"]),
        (b"\x00\x01\xff", ["not YAML"]),
        ("name: x", ["model", "is missing"]),
        ("name: x\nmodel: !!bool z", ["not YAML: 'z' is no bool", "line 2"]),
        ("budgets: [0.5]\nname: x\nbudgets: [0.9]", ["give the key 'budgets' once", "line 3"]),
    ],
)
def test_what_is_no_board(call: Call, tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    refused(call("sweep", put(tmp_path / "board.yaml", content)), "board.yaml", *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methdos": ["random"]}, ["unknown key 'methdos'", "did you mean 'methods'?"]),
        ({"calibration": {"sample": 3}}, ["calibration", "unknown key 'sample'", "did you mean 'samples'?"]),
        ({"methods": [{"method": "random", "seed": 3}]}, ["methods", "unknown key 'seed'", "did you mean 'seeds'?"]),
        ({"methods": ["magnitud"]}, ["methods", "unknown method 'magnitud'", "did you mean 'magnitude'?", "taylor"]),
        ({"methods": [{"method": "magnitude", "options": {"nrom": "l2"}}]}, ["magnitude", "option", "'nrom'"]),
        ({"methods": ["random", {"method": "random", "seeds": 2}]}, ["methods", "random is named twice"]),
        ({"methods": "random"}, ["methods", "list", "'random'"]),
        ({"methods": []}, ["methods", "at least 1"]),
        ({"model": "mini-qwen-vl"}, ["unknown model 'mini-qwen-vl'", "did you mean 'mini-qwen2-vl'?"]),
        ({"model": "/no/such/folder"}, ["model /no/such/folder: no such folder"]),
        ({"model": "./folder"}, ["model ./folder: no such folder"]),
        ({"tasks": ["mini_vqa"]}, ["task 'mini_vqa'", "unknown", "did you mean mini_vqav2?"]),
        ({"tasks": ["nothere.parquet"]}, ["nothere.parquet", "no such file"]),
        ({"tasks": ["mini_gqa", "mini_gqa"]}, ["tasks", "mini_gqa is named twice"]),
        ({"tasks": ["mini_gqa"], "split": "test"}, ["mini_gqa", "no split 'test'", "calibration, dev, validation"]),
        ({"split": "dve"}, ["split 'dve'", "dev"]),
        (
            {"calibration": {"samples": 500}},
            ["must supply 500 of the 500 samples", "has only 6"],
        ),
        ({"calibration": {"samples": 0}}, ["calibration.samples", "given: 0"]),
        ({"metrics": ["flosp"]}, ["metrics", "unknown metric 'flosp'", "did you mean 'flops'?", "latency"]),
        ({"scopes": ["visoin"]}, ["scopes.0", "'visoin'", "did you mean 'vision'?", "all, language, vision"]),
        ({"scopes": []}, ["scopes", "at least 1"]),
        ({"units": "head"}, ["units", "'head'", "did you mean 'heads'?"]),
        ({"dtype": "float31"}, ["dtype", "'float31'", "did you mean 'float32'?"]),
        ({"budgets": [0.5, 0]}, ["budgets.1", "greater than 0", "given: 0"]),
        ({"budgets": [1.5]}, ["budgets.0", "less than or equal to 1", "given: 1.5"]),
        ({"budgets": [-0.5]}, ["budgets.0", "given: -0.5"]),
        ({"budgets": [float("nan")]}, ["budgets.0", "nan"]),
        ({"budgets": ["half"]}, ["budgets.0", "number", "'half'"]),
        ({"budgets": 0.5}, ["budgets", "a list", "0.5"]),
        ({"budgets": [0.5, 0.5]}, ["budgets", "0.5 is named twice"]),
        ({"name": "../elsewhere"}, ["name", "'../elsewhere'"]),
        ({"limit": 0}, ["limit", "given: 0"]),
        ({"latency": 3}, ["latency", "a mapping of keys", "given: 3"]),
        ({"latency": {"batches": []}}, ["latency.batches", "at least 1"]),
    ],
)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "run"])
def test_bad_boards(
    call: Call, tmp_path: Path, board: dict[str, Any], change: dict[str, Any], words: list[str], dry: bool
) -> None:
    file = put(tmp_path / "board.yaml", {**board, **change})
    refused(call("sweep", file, *(["--dry-run"] if dry else [])), f"board {file}: ", *words)


def test_board_that_is_not_there(call: Call, tmp_path: Path) -> None:
    refused(call("sweep", "dmeo"), "unknown board 'dmeo'", "did you mean 'demo'?")
    refused(call("sweep", tmp_path / "no.yaml"), "no.yaml", "no such file")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    refused(call("sweep", folder), "folder.yaml", "no such file")


# --- models -------------------------------------------------------------------------------------------------


def _config(**change: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    return edit


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), ["config.json is missing"]),
        (lambda f: (f / "config.json").write_text("{"), ["config.json", "not a transformers config"]),
        (_config(model_type=None), ["config.json", "unknown model_type 'None'", "qwen2_vl"]),
        (_config(model_type="qwen2_v"), ["config.json", "'qwen2_v'", "did you mean 'qwen2_vl'?"]),
        (_config(model_type="gpt2"), ["config.json", "unknown model_type 'gpt2'", "choose from: ", "qwen2_vl"]),
        (lambda f: (f / "processor_config.json").unlink(), ["no processor", "processor_config.json is missing"]),
        (lambda f: (f / "tokenizer.json").unlink(), ["no tokenizer", "tokenizer.json is missing"]),
        (lambda f: (f / "model.safetensors").unlink(), ["no *.safetensors weights"]),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs"),
            ["model.safetensors", "not a complete safetensors file"],
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            ["model.safetensors", "not a complete safetensors file"],
        ),
    ],
)
def test_bad_model_folders(
    call: Call,
    tmp_path: Path,
    tiny_folder: Path,
    board: dict[str, Any],
    spoil: Callable[[Path], object],
    words: list[str],
) -> None:
    """Known before anything runs or is written."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    spoil(folder)
    file = put(tmp_path / "board.yaml", {**board, "model": str(folder)})
    refused(call("sweep", file), f"board {file}: ", str(folder), *words)


def test_mistyped_folder_is_not_taken_for_a_hub_id(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    (Path.cwd().parent / "models").mkdir()
    file = put(tmp_path / "board.yaml", {**board, "model": "models/mine"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path.cwd().parent)
        done = call("sweep", file, "--results", "results")
    refused(done, "model models/mine: no such folder")
    assert not (tmp_path / "results").exists()


def test_model_that_the_hub_does_not_give(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    """Offline here: not there either way, and said before anything else."""
    file = put(tmp_path / "board.yaml", {**board, "model": "nobody-there/no-such-model"})
    done = call("sweep", file)
    refused(done, "error: model nobody-there/no-such-model: no such folder, and not found on the hub")
    assert not list(Path().iterdir())


# --- question sets ------------------------------------------------------------------------------------------


def _without(column: str) -> Callable[[list[dict[str, Any]]], object]:
    return lambda table: [row.pop(column) for row in table]


def _replace(place: int, column: str, value: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda table: table[place].update({column: value})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("question"), ["missing column 'question'"]),
        (_without("answers"), ["missing column 'answers'"]),
        (_without("image"), ["missing column 'image'"]),
        (
            _replace(4, "image", {"bytes": encoded_picture(1)["bytes"][:60], "path": "cut.png"}),
            ["row 4", "'image'", "cannot be decoded"],
        ),
        (_replace(2, "image", {"bytes": b"", "path": "none.png"}), ["row 2", "'image'", "no bytes"]),
        (_replace(5, "answers", []), ["row 5", "'answers'", "empty list"]),
        (_replace(3, "question", " "), ["row 3", "'question'", "empty"]),
        (lambda table: table.clear(), ["no rows"]),
    ],
)
def test_bad_parquet(
    call: Call,
    tmp_path: Path,
    board: dict[str, Any],
    spoil: Callable[[list[dict[str, Any]]], object],
    words: list[str],
) -> None:
    """The same line whoever reads the file: a sweep, the check of data, training."""
    whole = question_rows("mini_textvqa", 3)
    table = [dict(row) for row in whole]
    spoil(table)
    data = tmp_path / "mine.parquet"
    pq.write_table(pa.Table.from_pylist(table) if table else pa.Table.from_pylist(whole)[:0], data)
    file = put(tmp_path / "board.yaml", {**board, "tasks": [str(data)]})
    refused(call("sweep", file), f"board {file}: ", str(data), *words)
    refused(call("data", "check", data), str(data), *words)
    refused(call("reference", "train", "--out", "trained", "--data", data), str(data), *words)


def test_data_that_is_no_parquet_file(call: Call, tmp_path: Path) -> None:
    data = put(tmp_path / "mine.parquet", "question,answer\n")
    for words in (["data", "check", data], ["reference", "train", "--out", "trained", "--data", data]):
        refused(call(*words), str(data), "not a parquet file")
    refused(call("data", "check", "none.parquet"), "none.parquet", "no such file")
    refused(call("reference", "train", "--out", "trained", "--data", "none.parquet"), "none.parquet", "no such file")
