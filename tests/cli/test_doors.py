"""The small doors of the command line: help of everything, version, loudness, completion, `--set`, JSON of a sweep."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from harness import cli, families, progress, registry
from harness.cli.catalogue import Thing
from harness.trials import spec
from tests.support.commands import Call, put, refused
from tests.support.paths import ROOT, environment

# --- help -------------------------------------------------------------------------------------------------


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(cli.app))), ids=" ".join)
def test_every_command_has_its_help(call: Call, words: tuple[str, ...]) -> None:
    done = call(*words, "--help")
    assert (done.code, done.err) == (0, "") and re.search(rf"Usage: .*{' '.join(words)} \[OPTIONS\]", done.out)


def test_help_shows_brackets_as_they_are(call: Call) -> None:
    assert "BOARD/METHOD/SCOPE/BUDGET[/SEED]" in call("export", "--help").out


# --- version and loudness ---------------------------------------------------------------------------------


def test_version_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--version']\n"
        "from harness.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    code_of_here = registry.code()
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(
        f"infoprune-bench {code_of_here['version']}"
    )
    assert (code_of_here["revision"] or "") in done.stdout and done.stdout.count("\n") == 1


def test_quiet_draws_no_bar_and_gives_no_hint(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    file = put(tmp_path / "board.yaml", {**board, "metrics": ["flops"]})
    results = tmp_path / "results"
    done = call("--quiet", "sweep", file, "--results", results, "--inline")
    assert (done.code, done.err) == (0, "") and done.out.startswith("3 trials run, 0 already done, 0 failed: ")
    assert progress.progress_bar().disable
    shutil.rmtree(results)
    done = call("sweep", file, "--results", results, "--inline")
    assert done.code == 0 and "small: 3 trials to run, 0 done" in done.err and "3/3" in done.err
    done = call("-q", "prune", "none", "--method", "magnitude", "--budget", "0.5", "--out", "x")
    refused(done, "model")  # an error is said all the same


def test_verbose_logs_what_is_done(tmp_path: Path, board: dict[str, Any]) -> None:
    file = put(tmp_path / "board.yaml", {**board, "metrics": ["flops"]})
    for flags, logged in (([], False), (["-v"], True)):
        words = [
            sys.executable,
            "-m",
            "harness.cli",
            *flags,
            "sweep",
            str(file),
            "--inline",
            "--results",
            "".join(flags),
        ]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment())
        assert done.returncode == 0, done.stderr
        assert ("random vision 0.5: rank" in done.stderr) == logged and "3 trials run" in done.stdout


# --- completion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sweep ref", lambda: [name for name in registry.boards() if name.startswith("ref")]),
        ("report de", lambda: ["demo"]),
        ("check-method mag", lambda: ["magnitude"]),
        ("quality --method mag", lambda: ["magnitude"]),
        ("prune mini-q", lambda: ["mini-qwen2-vl"]),
        ("load plan.json mini-q", lambda: ["mini-qwen2-vl"]),
        ("prune x --method mag", lambda: ["magnitude"]),
        ("swe", lambda: ["sweep"]),
    ],
)
def test_a_shell_completes_names(words: str, offered: Any) -> None:
    count = str(len(words.split()))
    told = {"COMP_WORDS": f"infoprune {words}", "COMP_CWORD": count, "_INFOPRUNE_COMPLETE": "complete_bash"}
    code = (
        "import sys; sys.argv = ['infoprune']\n"
        "from harness.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(**told))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == offered()


# --- list and report --------------------------------------------------------------------------------------


def test_list_lists_everything(call: Call) -> None:
    listed = json.loads(call("list", "--json").out)
    assert list(listed) == list(get_args(Thing))
    assert [row["name"] for row in listed["families"]] == families.names()
    for kind in ("boards", "methods", "tasks"):
        assert listed[kind] == json.loads(call("list", kind, "--json").out)
    shown = call("list")
    assert shown.code == 0 and all(row["name"] in shown.out for rows in listed.values() for row in rows)


def test_report_of_some_boards(call: Call) -> None:
    done = call("report", "demo", "ffn", "--results", ROOT / "results", "--out", "out")
    assert done.code == 0 and {path.name for path in Path("out").iterdir()} == {"demo", "ffn"}
    assert Path("out/demo/board.csv").read_bytes() == (ROOT / "leaderboards" / "demo" / "board.csv").read_bytes()
    assert "out/ffn/index.html" in done.out and "out/index.html" not in done.out
    shutil.rmtree("out")
    refused(call("report", "dmeo", "--results", ROOT / "results"), "unknown board 'dmeo'", "did you mean 'demo'?")


# --- sweep: --set and --json --------------------------------------------------------------------------------


def ids(call: Call, *words: object) -> list[str]:
    done = call("sweep", *words, "--dry-run", "--json")
    assert (done.code, done.err) == (0, ""), done
    return [trial["id"] for trial in json.loads(done.out)["trials"]]


@pytest.mark.parametrize(
    ("settings", "edited"),
    [
        (["calibration.samples=6"], {"calibration": {"samples": 6}}),
        (["budgets=[0.25]", "limit=3"], {"budgets": [0.25], "limit": 3}),
        (["scopes=[language, all]", "floors=no"], {"scopes": ["language", "all"], "floors": False}),
        (["tuning.method=refit", "tuning.rounds=2"], {"tuning": {"method": "refit", "rounds": 2}}),
        (["methods.1.options.norm=l1"], {"methods": ["random", {"method": "magnitude", "options": {"norm": "l1"}}]}),
        (["reference_input.image.0=32"], {"reference_input": {"image": [32, 64]}}),
    ],
)
def test_a_set_key_is_an_edited_file(
    call: Call, tmp_path: Path, board: dict[str, Any], settings: list[str], edited: dict[str, Any]
) -> None:
    file, other = put(tmp_path / "board.yaml", board), put(tmp_path / "edited.yaml", {**board, **edited})
    words = [word for setting in settings for word in ("--set", setting)]
    assert ids(call, file, *words) == ids(call, other) != ids(call, file)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("budgts=[0.5]", ["unknown key 'budgts'", "did you mean 'budgets'?"]),
        ("budgets=[2]", ["budgets.0", "(given: 2)"]),
        ("calibration.sampels=3", ["calibration: unknown key 'sampels'", "did you mean 'samples'?"]),
        ("methods.7.seeds=3", ["methods.7.seeds", "'7' is not a position", "0 to 1"]),
        ("methods.0.options.x=3", ["unknown option", "'x'"]),
        ("name.more=3", ["name.more", "'small'"]),
        ("budgets", ["--set budgets", "name=value"]),
        ("budgets=[0.5", ["--set budgets=[0.5", "not YAML"]),
        ("methods=[!!python/object:os.system x]", ["--set", "not YAML"]),
        ("limit=!!bool x", ["--set limit=!!bool x", "'x' is no bool"]),
        ("calibration={samples: 3, samples: 4}", ["--set calibration=", "give the key 'samples' once"]),
        (f"methods.{'9' * 5000}.seeds=3", ["is not a position", "0 to 1"]),
    ],
)
def test_a_set_key_is_validated_as_the_file_is(
    call: Call, tmp_path: Path, board: dict[str, Any], setting: str, words: list[str]
) -> None:
    refused(call("sweep", put(tmp_path / "board.yaml", board), "--dry-run", "--set", setting), *words)


def test_json_of_a_dry_run(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    file = put(tmp_path / "board.yaml", board)
    done = call("sweep", file, "--dry-run", "--json")
    assert (done.code, done.err) == (0, "")
    shown = json.loads(done.out)
    trials = spec.read(str(file)).trials()
    assert [trial["id"] for trial in shown.pop("trials")] == [trial.id for trial in trials]
    assert shown.pop("seconds") > 0
    assert shown == {"board": "small", "folder": "results/small", "done": 0, "stale": 0, "fetched": [], "notes": []}


def test_json_of_a_sweep(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    (tmp_path / "broken.py").write_text("def rank(vlm, calibration, *, seed):\n    raise RuntimeError('no idea')\n")
    (tmp_path / "leaves.py").write_text("def rank(vlm, calibration, *, seed):\n    exit(0)\n")
    methods = ["magnitude", "broken.py", "leaves.py"]
    file = put(tmp_path / "board.yaml", {**board, "metrics": ["flops"], "methods": methods})
    done = call("sweep", file, "--inline", "--json", "--profile")
    shown = json.loads(done.out)
    assert done.code == 1 and shown["folder"] == "results/small" and (shown["ran"], shown["skipped"]) == (4, 0)
    assert sorted(shown["ids"]) == sorted(path.stem for path in Path("results/small").glob("*.json"))
    broken, leaves = shown["failed"]
    assert broken.startswith("broken ") and "no idea" in broken
    assert leaves.startswith("leaves ") and "the method exits: 0" in leaves
    assert {phase["phase"] for phase in shown["phases"]} >= {"load", "ranking"}
    again = json.loads(call("sweep", file, "--inline", "--json").out)
    assert (again["ran"], again["skipped"], len(again["ids"])) == (2, 2, 2) and "phases" not in again
