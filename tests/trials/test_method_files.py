"""A method in a file that no package holds: on a board, in `prune` and `quality`, in worker processes, in records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import harness
from harness import method_files, registry
from harness.records import record
from harness.report import details
from harness.trials import spec, staleness
from harness.types import VLM, InputError
from tests.support.commands import Call, put, refused
from tests.support.paths import ROOT

METHOD = '''"""Largest weights stay (an example)."""

from __future__ import annotations

from dataclasses import dataclass

from harness.types import Ordinal, Ranking


@dataclass
class Power:
    of: float


def rank(vlm, calibration, *, seed, power: float = 2.0):
    scores = {}
    for block, kind in vlm.select("all"):
        units = block.units(kind)
        columns = vlm.model.get_parameter(f"{units.consumer}.weight").abs().pow(Power(power).of).sum(0)
        scores[block.name, kind] = Ordinal(tuple(columns.unflatten(0, (units.count, -1)).sum(1).tolist()))
    return Ranking(scores)
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return put(tmp_path / "mine" / "power.py", METHOD)


@pytest.fixture
def small(board: dict[str, Any]) -> dict[str, Any]:
    return {**board, "metrics": ["flops"], "methods": ["magnitude", "./power.py"]}


# --- names and paths --------------------------------------------------------------------------------------


def test_a_file_is_a_method_named_by_its_stem(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = registry.method(str(file))
    assert (method.name, method.title, dict(method.options)) == (
        "power",
        "Largest weights stay (an example)",
        {"power": 2.0},
    )
    assert not [name for name in sys.modules if name.startswith(method_files.PREFIX)]
    monkeypatch.chdir(file.parent)
    assert registry.method("power.py").module.__file__ == registry.method("./power.py").module.__file__
    assert "power" not in registry.methods()


def test_a_file_is_read_again_when_it_changed(file: Path) -> None:
    first = registry.method(str(file))
    assert registry.method(str(file)) is first
    file.write_text(METHOD.replace("2.0", "3.0"))
    os.utime(file, ns=(1, 1))
    assert registry.method(str(file)).options == {"power": 3.0}


def test_the_same_path_in_another_folder_is_another_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = put(file.parent.parent / "power.py", METHOD.replace("2.0", "3.0"))
    for folder, power in ((file.parent, 2.0), (other.parent, 3.0), (file.parent, 2.0)):
        monkeypatch.chdir(folder)
        assert registry.method("power.py").options == {"power": power}


def test_a_file_does_not_shadow_what_it_imports(tmp_path: Path) -> None:
    put(tmp_path / "json.py", METHOD + "\nimport json\n\nTEXT = json.dumps({})\n")
    assert registry.method(str(tmp_path / "json.py")).name == "json" and sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing.py", None, "no such file"),
        ("folder.py", "", "a folder, not a Python file"),
        ("wrong.py", "def rank(vlm,\n", "cannot be imported: SyntaxError"),
        ("needs.py", "import not_installed_anywhere\n", "No module named 'not_installed_anywhere'"),
        ("nothing.py", "x = 1\n", "the file has no function `rank`"),
        ("hints.py", "def rank(vlm, calibration, *, seed, a: 'Nowhere' = 1): ...\n", "NameError"),
        ("taylor.py", METHOD, "'taylor' is the name of a registered method"),
    ],
)
def test_a_file_that_is_no_method_is_one_line(
    call: Call, tmp_path: Path, board: dict[str, Any], name: str, text: str | None, words: str
) -> None:
    path = tmp_path / name
    if text:
        path.write_text(text)
    elif text is not None:
        path.mkdir()
    with pytest.raises(InputError, match=rf"method .*{name}: .*{words}"):
        registry.method(str(path))
    board = {**board, "methods": [name]}
    refused(call("sweep", put(tmp_path / "board.yaml", board), "--dry-run"), name, words)
    refused(call("prune", board["model"], "--method", path, "--budget", "0.5", "--out", "out"), name, words)
    refused(call("quality", "--method", path), name, words)


def test_functions_of_a_file_reach_processes_that_never_saw_it(file: Path) -> None:
    """By value, as Ray sends rankings with what makes their factors."""
    sent = cloudpickle.dumps(registry.method(str(file)).module.rank)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).__name__)"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, cwd=ROOT)
    assert done.stdout == b"rank\n", done.stderr


# --- on a board -------------------------------------------------------------------------------------------


def test_a_board_names_files_from_its_own_folder(
    call: Call, file: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same ids wherever it is run from; the record says where the file was."""
    path = put(file.parent / "board.yaml", small)
    here = Path.cwd()
    trials = spec.read(str(path)).trials()
    assert [trial.method for trial in trials] == ["none", "magnitude", "power"]
    assert trials[2].method_file == "../mine/power.py" and trials[1].method_file is None
    monkeypatch.chdir(file.parent)
    again = spec.read("board.yaml").trials()
    assert again[2].method_file == "power.py"
    assert [trial.id for trial in again] == [trial.id for trial in trials]
    monkeypatch.chdir(here)
    done = call("sweep", path, "--inline")
    assert done.code == 0, done
    stored = record.read(Path("results/small") / f"{trials[2].id}.json")
    assert (stored.trial.method, stored.contestant.file) == ("power", "../mine/power.py")
    assert stored.contestant.title == "Largest weights stay (an example)"
    assert stored.trial == trials[2] and stored.trial.id == stored.id
    assert "../mine/power.py" in details.repeat(stored)
    assert "0 trials run, 3 already done" in call("sweep", path, "--inline").out
    assert call("report", "--results", "results", "--out", "out").code == 0
    assert "| power" in Path("out/small/README.md").read_text()
    done = call("export", "small/power/vision/0.5", "exported")
    assert done.code == 0, done


def test_a_changed_file_makes_its_records_stale_and_no_others(call: Call, file: Path, small: dict[str, Any]) -> None:
    path = put(file.parent / "board.yaml", small)
    assert call("sweep", path, "--inline").code == 0

    def left() -> list[str]:
        return [trial["method"] for trial in json.loads(call("sweep", path, "--dry-run", "--json").out)["trials"]]

    assert left() == []
    file.write_text(METHOD + "\n# a remark\n")
    assert left() == []
    file.write_text(METHOD.replace(".abs()", ".abs().sqrt()"))
    assert left() == ["power"]
    file.write_text(METHOD)
    shutil.copytree(file.parent, file.parent.parent / "moved")
    assert call("sweep", file.parent.parent / "moved" / "board.yaml", "--dry-run").out.count("power") == 0


def test_the_hash_covers_what_the_file_uses_of_ours(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "contestants").mkdir()
    helper = put(tmp_path / "contestants" / "helper.py", "FACTOR = 1\n")
    put(tmp_path / "contestants" / "__init__.py", "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "BUILT_IN", "contestants")
    file.write_text(METHOD.replace(".abs()", ".abs().mul(FACTOR)") + "\n\nfrom contestants.helper import FACTOR\n")

    def code() -> str:
        staleness.code.cache_clear()
        return staleness.code(str(file), ("flops",), "qwen2_vl")

    before = code()
    helper.write_text("FACTOR = 1  # a remark\n")
    assert code() == before
    helper.write_text("FACTOR = 2\n")
    assert code() != before


def test_worker_processes_find_the_file(call: Call, file: Path, small: dict[str, Any]) -> None:
    done = call("sweep", put(file.parent / "board.yaml", small), "--json")
    assert done.code == 0 and json.loads(done.out)["ran"] == 3, done


def test_set_names_files_from_the_current_folder(call: Call, file: Path) -> None:
    shutil.copy(file, "power.py")
    done = call(
        "sweep", "demo", "--dry-run", "--json", "--set", "methods=[random, ./power.py]", "--set", "budgets=[0.5]"
    )
    assert done.code == 0, done
    assert [trial["method"] for trial in json.loads(done.out)["trials"]] == ["none", "random", "power"]


def test_two_files_of_one_name_are_refused(call: Call, file: Path, small: dict[str, Any]) -> None:
    shutil.copy(file, file.parent.parent / "power.py")
    board = {**small, "methods": ["./power.py", "../power.py"]}
    done = call("sweep", put(file.parent / "board.yaml", board), "--dry-run")
    refused(done, "../mine/power.py and ../power.py would both be called 'power'; rename one")
    twice = {**small, "methods": ["./power.py", "power.py"]}
    refused(call("sweep", put(file.parent / "board.yaml", twice), "--dry-run"), "named twice with the same options")


# --- costs that are not true --------------------------------------------------------------------------------

CLAIMS = '''"""Half the FLOPs, says it (an example)."""

from harness.types import Option, Options, Ranking

UNITS = "ffn"


def rank(vlm, calibration, *, seed):
    return Ranking({(block.name, "ffn"): costs(block.ffn) for block in vlm.blocks})


def costs(units):
    full = units.count * units.token_macs
    return Options((Option("dense", full, 0.0), Option("half", full // 2, 1.0, dict)))
'''


def test_a_cost_that_is_only_claimed_is_a_failure_and_no_result(
    call: Call, small: dict[str, Any], tmp_path: Path
) -> None:
    """Also where the board does not measure FLOPs."""
    put(tmp_path / "claims.py", CLAIMS)
    for metrics in (["flops"], ["fidelity"]):
        board = {**small, "methods": ["./claims.py"], "units": "ffn", "budgets": [0.5], "metrics": metrics}
        put(tmp_path / "board.yaml", json.dumps(board))
        done = call("sweep", tmp_path / "board.yaml", "--results", tmp_path / metrics[0])
        says = "its plan states 0.5000 of the FLOPs of ffn in scope vision, but 1.0000 are measured"
        assert done.code == 1 and says in " ".join(done.err.split()), done
        stored = [record.read(path) for path in (tmp_path / metrics[0]).glob("*/*.json")]
        (failed,) = [each for each in stored if each.trial.method == "claims"]
        assert failed.error and failed.error.phase == "cost" and says in failed.error.message and not failed.metrics
    checked = call("check-method", tmp_path / "claims.py")
    assert checked.code == 1 and "states 0.5000" in checked.out and "1.0000 are measured" in checked.out


# --- in the other commands --------------------------------------------------------------------------------


def test_prune_takes_a_file(call: Call, file: Path, tiny_folder: Path, questions: Path) -> None:
    words = ["--budget", "0.5", "--scope", "all", "--data", questions, "--samples", "4", "--image", "64x64"]
    done = call("prune", tiny_folder, "--method", file, *words, "--option", "power=1.0", "--out", "small", "--json")
    assert done.code == 0, done
    stored = json.loads(Path("small/plan.json").read_text())
    assert (stored["trial"]["method"], stored["trial"]["options"]) == ("power", {"power": 1.0})
    assert "power" in Path("small/README.md").read_text()
    where: Any = {"scope": "all", "tasks": [str(questions)], "samples": 4, "image": (64, 64)}
    plan = harness.prune(str(tiny_folder), method=str(file), options={"power": 1.0}, **where).plan
    assert plan.to_json() == stored["plan"]
    assert call("load", "small/plan.json", tiny_folder, "twin").code == 0


def test_quality_takes_a_file(call: Call, file: Path, tiny_folder: Path, tiny: VLM) -> None:
    words = ["quality", "--model", tiny_folder, "--questions", "2", "--channels", "4", "--out", "out"]
    done = call(*words, "--method", file, "--method", "magnitude", "--json")
    assert done.code == 0, done
    assert list(json.loads(done.out)["methods"]) == ["power", "magnitude"]
    shutil.rmtree("out")
    refused(call("quality", "--method", file, "--method", file), "2 methods are called 'power'")


def test_check_method_takes_it_too(call: Call, file: Path) -> None:
    assert call("check-method", file).out.startswith("ok  power: ")
