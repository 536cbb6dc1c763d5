"""Where commands write: refused before the work, or written whole, with `~` for the home folder."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.checkpoints import export
from tests.support.commands import Call, put, refused
from tests.support.paths import ROOT, environment

DEMO = ROOT / "results" / "demo"


@pytest.fixture
def pruned(tiny_folder: Path, questions: Path) -> list[Any]:
    """The words of a short `prune`, but for its --out."""
    words = ["prune", tiny_folder, "--method", "magnitude", "--budget", "0.5", "--image", "64x64"]
    return [*words, "--data", questions, "--samples", "2"]


def test_a_checkpoint_goes_where_the_path_leads(call: Call, pruned: list[Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for out in (tmp_path / "link", Path("."), tmp_path / ("n" * 250)):
        done = call(*pruned, "--out", out)
        assert done.code == 0, done
        assert {"config.json", "model.safetensors", export.PLAN} <= {file.name for file in out.iterdir()}
        modes = {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()}
        assert modes == {stat.S_IMODE((out / "config.json").stat().st_mode)}
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["n" * 256, "taken", "taken/below", "loop", "full"])
def test_a_bad_out_is_refused_before_the_work(
    call: Call, pruned: list[Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "taken", "a file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "full" / "a").mkdir(parents=True)
    monkeypatch.setattr(export, "Worker", None)  # the work
    plan = put(tmp_path / "plan.json", "{}")
    for words in (
        [*pruned, "--out", tmp_path / name],
        ["export", "demo/taylor/vision/0.5", tmp_path / name, "--results", ROOT / "results"],
        ["load", plan, pruned[1], tmp_path / name],
    ):
        refused(call(*words), f"folder {tmp_path / name.removesuffix('/below')}: ")


def test_prune_takes_kinds_of_units(call: Call, pruned: list[Any], tmp_path: Path) -> None:
    """Any that the method ranks; by default all of them."""
    words = ["random_layers" if word == "magnitude" else word for word in pruned]
    words = [*words, "--scope", "all"]
    for units, kinds in (("layers", {"layers"}), ("ffn+layers", {"ffn", "layers"})):
        done = call(*words, "--units", units, "--out", tmp_path / units)
        assert done.code == 0, done.err
        plan = json.loads((tmp_path / units / "plan.json").read_text())["plan"]
        assert {kind for parts in plan["blocks"].values() for kind in parts} <= kinds
        assert {"layers": []} in plan["blocks"].values()
    refused(call(*pruned, "--units", "layers", "--out", tmp_path / "none"), "magnitude ranks heads, ffn only")
    refused(call(*pruned, "--units", "layer", "--out", tmp_path / "none"), "units: unknown kind of units 'layer'")


def test_a_full_disk_is_one_line_and_leaves_nothing(pruned: list[Any], tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    code = (
        "import resource; from harness import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); cli.main()"
    )
    here = tmp_path / "here"
    here.mkdir()
    words = [sys.executable, "-c", code, *map(str, pruned), "--out", "out"]
    done = subprocess.run(words, cwd=here, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {here}/out: cannot be written: ")
    assert "Traceback" not in done.stderr and not list(here.iterdir())


def test_a_verdict_is_written_whole_or_refused_before(call: Call, tmp_path: Path) -> None:
    taken = put(tmp_path / "taken", "a file")
    for option in ("--junit", "--markdown"):
        for bad in (tmp_path, taken / "below", tmp_path / ("n" * 300)):
            refused(call("gate", DEMO, DEMO, option, bad), f"{option} {bad if bad.name != 'below' else taken}: ")
        good = tmp_path / "new" / "verdict"
        assert call("gate", DEMO, DEMO, option, good).code == 0 and good.read_text()
    refused(call("bench", "--quick", "--out", tmp_path), f"--out {tmp_path}: a folder")
    full = call("gate", DEMO, DEMO, "--markdown", "/dev/full")
    assert full.code == 2 and full.err == "error: /dev/full: cannot be written: No space left on device\n"


def test_a_home_folder_in_every_kind_of_option(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: dict[str, Any], pruned: list[Any]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(DEMO, home / "results" / "demo")
    shutil.copytree(board["model"], home / "model")
    shutil.copy(board["tasks"][0], home / "mine.parquet")
    put(home / "board.yaml", board)
    assert json.loads(call("results", "ls", "--results", "~/results", "--json").out)[0]["board"] == "demo"
    assert call("gate", "~/results", "~/results/demo", "--markdown", "~/gate.md").code == 0
    assert (home / "gate.md").is_file()
    assert json.loads(call("data", "check", "~/mine.parquet", "--json").out)["path"] == str(home / "mine.parquet")
    refused(call("data", "check", "gqa@~/nowhere"), str(home / "nowhere"))
    assert call("verdict", "~/results/demo").code in (0, 1)
    done = call("sweep", "~/board.yaml", "--dry-run", "--json", "--set", "model=~/model", "--results", "~/r")
    shown = json.loads(done.out)
    assert shown["folder"] == f"{home}/r/small" and shown["trials"][0]["model"] == str(home / "model")
    put(home / "mine.py", (ROOT / "baselines" / "magnitude.py").read_text())
    words = [word if word != "magnitude" else "~/mine.py" for word in map(str, pruned)]
    words[1] = "~/model"
    assert call(*words, "--out", "~/out").code == 0 and (home / "out" / "config.json").is_file()
    assert yaml.safe_load("~") is None  # which `--set key=~` keeps meaning
    assert not list(Path().iterdir())
