"""The five functions of `import harness`: they do what the commands do, and load nothing before they are called."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import harness
from harness.records import record
from harness.trials import spec
from harness.types import Generation, InputError, Plan
from tests.support.commands import Call, put, refused
from tests.support.paths import ROOT, environment

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
SMALL: Any = {"samples": 4, "image": (64, 64)}


@pytest.fixture
def small(board: dict[str, Any]) -> dict[str, Any]:
    return {**board, "metrics": ["flops", "accuracy"], "floors": False}


# --- names ------------------------------------------------------------------------------------------------


def test_the_names_are_there_and_documented() -> None:
    assert set(harness.__all__) <= set(dir(harness))
    for name in harness.__all__:
        assert getattr(harness, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = harness.prun  # type: ignore[attr-defined]


def test_importing_loads_none_of_it() -> None:
    code = "import sys, harness; assert not {'torch', 'pandas', 'pydantic', 'harness.api'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_type_checkers_find_the_types() -> None:
    assert (ROOT / "harness" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()


# --- load and prune ---------------------------------------------------------------------------------------


def test_load(tiny_folder: Path) -> None:
    vlm = harness.load(str(tiny_folder), dtype="bfloat16")
    assert vlm.name == str(tiny_folder) and next(vlm.model.parameters()).dtype == torch.bfloat16
    assert harness.load("mini-geometry", random_weights=True).weights_hash == "random:0"
    wanted = Generation(no_repeat_ngram_size=2)
    assert harness.load(str(tiny_folder), generation=wanted).generation == wanted
    with pytest.raises(InputError, match=r"unknown model 'mini-qwen'; did you mean 'mini-qwen2-vl'\?"):
        harness.load("mini-qwen")
    with pytest.raises(InputError, match=r"^device tpu: use cpu, cuda or cuda:N"):
        harness.load("mini-qwen2-vl", device="tpu")


def test_prune_is_the_commands_and_writes_nothing(call: Call, tiny_folder: Path, questions: Path) -> None:
    pruned = harness.prune(
        str(tiny_folder), method="magnitude", budget=0.6, options={"norm": "l1"}, tasks=[str(questions)], **SMALL
    )
    vlm, plan = pruned
    assert (pruned.model, pruned.plan) == (vlm, plan)
    assert plan.achieved == pytest.approx(0.6, rel=0.01) and not list(Path().iterdir())
    words = ["--method", "magnitude", "--option", "norm=l1", "--budget", "0.6", "--data", questions]
    done = call("prune", tiny_folder, *words, "--samples", "4", "--image", "64x64", "--out", "out")
    assert done.code == 0, done
    stored = json.loads(Path("out/plan.json").read_text())
    assert Plan.of(stored["plan"]) == plan
    again = harness.load("out")
    assert torch.equal(
        torch.cat([weight.flatten() for weight in vlm.model.parameters()]),
        torch.cat([weight.flatten() for weight in again.model.parameters()]),
    )


def test_prune_cuts_without_training_if_no_method_is_named(tiny_folder: Path, questions: Path) -> None:
    where: Any = {"tasks": [str(questions)], **SMALL}
    by_default, by_name = (
        harness.prune(str(tiny_folder), **more, **where) for more in ({}, {"method": "infoprune_free"})
    )
    assert by_default.plan == by_name.plan


def test_units_may_be_a_list_as_on_a_board(tiny_folder: Path, questions: Path) -> None:
    plan = harness.prune(str(tiny_folder), method="magnitude", units=["ffn"], tasks=[str(questions)], **SMALL).plan  # type: ignore[arg-type]
    assert {kind for _, kind in plan.parts} == {"ffn"}


def test_prune_takes_any_key_of_a_board(tiny_folder: Path, questions: Path, call: Call) -> None:
    settings = {"method": "magnitude", "budget": 0.6, "tasks": [str(questions)], "samples": 2, "image": (64, 64)}
    config: Any = harness.prune(str(tiny_folder), **settings, attention="eager").model.model.config
    assert config._attn_implementation == "eager"
    words = ("--method", "magnitude", "--budget", 0.6, "--data", questions, "--samples", 2, "--image", "64x64")
    refused(call("prune", tiny_folder, *words, "--out", "small", "--set", "attention=egaer"), "attention", "eager")
    refused(call("prune", tiny_folder, *words, "--out", "small", "--set", "tuning=[bias, refit]"), "make 2 models")
    done = call("prune", tiny_folder, *words, "--out", "small", "--set", "attention=eager")
    assert done.code == 0, done.err


def test_where_tokens_go_the_scope_is_the_whole_model(tiny_folder: Path, questions: Path) -> None:
    plan = harness.prune(str(tiny_folder), method="pool", budget=0.97, tasks=[str(questions)], **SMALL).plan
    assert plan.tokens is not None and plan.achieved == pytest.approx(0.97, rel=0.01)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "magnitud"}, "unknown method 'magnitud'; did you mean 'magnitude'?"),
        ({"method": "none"}, "nothing to prune"),
        ({"budget": 1.5}, "budgets.0: must be less than or equal to 1 (given: 1.5)"),
        ({"scope": "langage"}, "did you mean 'language'?"),
        ({"options": {"nrm": "l1"}}, "did you mean 'norm'?"),
        ({"tasks": ["nowhere.parquet"]}, "nowhere.parquet"),
        ({"samples": 0}, "calibration.samples"),
        ({"image": (64,)}, "reference_input.image"),
        ({"device": "cuda:99"}, "device cuda:99: this machine has"),
        ({"device_mapp": "auto"}, "did you mean 'device_map'?"),
        ({"tuning": ["bias", "refit"]}, "one model is recovered in one way"),
        ({"budgets": [0.5, 0.6]}, "these settings make 2 models; prune makes one"),
    ],
)
def test_what_prune_cannot_use_is_one_line(tiny_folder: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as error:
        harness.prune(str(tiny_folder), **{"method": "magnitude", **SMALL, **wrong})
    assert "\n" not in str(error.value)


# --- sweep, results, pareto -------------------------------------------------------------------------------


def test_sweep_returns_the_records_of_the_board(tmp_path: Path, small: dict[str, Any]) -> None:
    """Of a mapping, and of the same content in a file, whose trials then have records already."""
    folder = tmp_path / "results"
    overrides: Any = {"limit": 4, "calibration.samples": 6}
    first = harness.sweep(small, results=folder, **overrides)
    assert [done.trial.method for done in first] == ["none", "random", "magnitude"]
    assert all(done.error is None and done.trial.questions.limit == 4 for done in first)
    assert {done.trial.calibration.samples for done in first} == {6}
    read = spec.check({**small, "limit": 4, "calibration": {"samples": 6}}, Path("edited.yaml"))
    assert [done.id for done in first] == [trial.id for trial in read.trials()]
    written = {path: path.stat().st_mtime_ns for path in folder.glob("small/*.json")}
    file = put(tmp_path / "board.yaml", {**small, "limit": 4, "calibration": {"samples": 6}})
    assert harness.sweep(file, results=folder) == first
    assert written == {path: path.stat().st_mtime_ns for path in folder.glob("small/*.json")}


def test_a_failed_trial_has_its_record_too(tmp_path: Path, small: dict[str, Any]) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def rank(vlm, calibration, *, seed):\n    raise RuntimeError('no idea')\n")
    records = harness.sweep({**small, "methods": [str(broken)]}, results=tmp_path / "results", limit=2)
    assert [done.status for done in records] == ["ok", "failed"]
    assert records[1].error and records[1].error.message == "no idea"
    assert list(harness.results(tmp_path / "results").status) == ["ok", "failed: RuntimeError: no idea"]


def test_what_sweep_cannot_use_is_one_line(tmp_path: Path, small: dict[str, Any]) -> None:
    cases: list[Any] = [
        ("dmeo", {}, r"did you mean 'demo'\?"),
        ({**small, "budgts": [0.5]}, {}, r"board of this mapping: unknown key 'budgts'"),
        (small, {"calibration.sampels": 3}, r"calibration: unknown key 'sampels'"),
        (small, {"name.x": 3}, r"name\.x: the board has the value 'small' there"),
    ]
    for board, more, words in cases:
        with pytest.raises(InputError, match=words):
            harness.sweep(board, results=tmp_path / "results", **more)
    assert not list((tmp_path / "results").glob("*"))


def test_the_frame_has_the_rows_of_board_csv() -> None:
    frame = harness.results(ROOT / "results" / "demo")
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    assert text == (ROOT / "leaderboards" / "demo" / "board.csv").read_text()


def test_boards_share_a_frame() -> None:
    every: Any = harness.results(ROOT / "results")
    assert len(every) == len(list((ROOT / "results").glob("*/*.json"))) == every.trial.nunique()
    single = harness.results(ROOT / "results" / "demo")
    pd.testing.assert_frame_equal(every[every.board == "demo"][single.columns].reset_index(drop=True), single)
    with pytest.raises(InputError, match="no board there"):
        harness.results(ROOT / "docs")


def test_pareto_shows_itself() -> None:
    frame = harness.results(ROOT / "results")
    some: Any = frame[frame.board.isin(["demo", "tuned-rates"])]
    figure: Any = harness.pareto(some)
    assert figure._repr_png_().startswith(b"\x89PNG")
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]
    assert "demo: Scope vision, heads and FFN, regime none" in titles and any(
        title.startswith("tuned-rates: ") for title in titles
    )
    single: Any = harness.pareto(harness.results(ROOT / "results" / "demo"))
    assert single.axes[0].get_title(loc="left") == "Scope vision, heads and FFN, regime none"
    with pytest.raises(InputError, match="no column 'scope'"):
        harness.pareto(some.drop(columns="scope"))


# --- the notebook -----------------------------------------------------------------------------------------


def test_the_notebook_is_stored_without_outputs_and_uses_all_five() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = "".join("".join(cell["source"]) for cell in code)
    assert all(f"harness.{name}(" in text for name in ("load", "prune", "sweep", "results", "pareto"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "image/png" in shown[-1].data
    assert len(record.load(tmp_path / "runs" / "notebook" / "demo")[0]) == 7
