"""A method or command of another package that cannot be imported is named, ends no other command, and is no run's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.bench import performance
from harness.bench.bar import Bar
from harness.types import InputError
from tests.support.commands import Call, put, refused
from tests.support.paths import environment

# Modules that cannot be imported or are no methods, and what is said of each.
BROKEN = {
    "lacks": ("import not_installed_anywhere", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
    "halves": ("from harness.types import NothingLikeThis", "ImportError: cannot import name 'NothingLikeThis'"),
    "mistypes": ("def rank(vlm, calibration, *, seed)\n", "SyntaxError: "),
    "raises": ("raise RuntimeError('[red]no GPU\\nhere[/red]')", "RuntimeError: [red]no GPU here[/red]"),
    "leaves": ("import sys; sys.exit(3)", "ImportError: their_leaves exits: 3"),
    "does_nothing": ("x = 1", "AttributeError: "),
    "misnames": ("def rank(vlm, calibration, *, seed, a: Nothing = 1): ...", "NameError: "),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "package"
    root.mkdir()
    for name, (text, _) in BROKEN.items():
        put(root / f"their_{name}.py", text)
    put(root / "their_sound.py", '"""Sound: a method that works."""\n\n\ndef rank(vlm, calibration, *, seed): ...\n')
    info = root / "theirs-1.0.dist-info"
    info.mkdir()
    put(info / "METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    methods = "".join(f"{name} = their_{name}\n" for name in (*BROKEN, "sound"))
    commands = "broken-command = their_lacks:command\nabsent-command = their_sound:nothing\n"
    points = {
        registry.GROUP: methods,
        registry.COMMANDS: commands,
        registry.BENCHES: "broken-part = their_leaves:bars\n",
    }
    put(info / "entry_points.txt", "\n".join(f"[{group}]\n{lines}" for group, lines in points.items()))
    monkeypatch.syspath_prepend(root)
    for cached in (registry._modules, registry._named):
        cached.cache_clear()
    yield root
    for cached in (registry._modules, registry._named):
        cached.cache_clear()


def test_a_list_has_a_row_for_each(package: Path, call: Call) -> None:
    done = call("list", "methods")
    words = " ".join(done.out.split())  # lines wrap at the width of the terminal
    assert (done.code, done.err) == (0, "") and "sound Sound: a method that works" in words
    listed = {row["name"]: row for row in json.loads(call("list", "methods", "--json").out)}
    assert set(registry.methods()) == set(listed) and listed["taylor"]["role"] == "reference"
    for name, (_, reason) in BROKEN.items():
        assert f"{name} cannot be imported: {reason.strip()}" in words
        assert listed[name]["title"].startswith(f"cannot be imported: {reason}")
    assert "lacks cannot be imported" in " ".join(call("list").out.split())


def test_the_doctor_names_each_and_exits_2(package: Path, own_cache: Path, call: Call) -> None:
    done = call("doctor")
    assert done.code == 2 and done.err == ""
    for name, (_, reason) in BROKEN.items():
        assert f"no  method {name}: cannot be imported: {reason}" in done.out
    assert "no  command broken-command: cannot be imported: ModuleNotFoundError" in done.out
    assert "no  bench broken-part: cannot be imported: SystemExit: 3" in done.out
    assert "ok  model mini-qwen2-vl" in done.out  # the examination goes on
    assert {finding["ok"] for finding in json.loads(call("doctor", "--json").out)} == {True, False}


@pytest.mark.parametrize("name", ["lacks", "halves", "mistypes", "raises", "leaves"])
def test_a_run_that_uses_it_fails_with_its_error(
    package: Path, call: Call, tmp_path: Path, board: dict[str, Any], name: str
) -> None:
    kind = BROKEN[name][1].partition(":")[0]
    file = put(tmp_path / "board.yaml", {**board, "methods": ["random", name]})
    for words in (["sweep", file], ["sweep", file, "--dry-run"], ["quality", "--method", name], ["quality"]):
        with pytest.raises((ImportError, SyntaxError, RuntimeError, AttributeError)) as error:
            call(*words)
        if words != ["quality"]:
            assert type(error.value).__name__ == kind
    assert not list(Path().iterdir())


def test_a_run_that_does_not_use_it_goes_on(package: Path, call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    file = put(tmp_path / "board.yaml", {**board, "metrics": ["flops"], "methods": ["random"]})
    assert call("sweep", file, "--inline").code == 0
    with pytest.raises(InputError, match="unknown method 'lack'; did you mean 'lacks'"):
        registry.method("lack")


def test_a_broken_part_is_named_before_the_bench_measures(
    package: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is no fault of the other parts."""
    refused(call("bench"), "part broken-part of bench: cannot be imported: SystemExit: 3", "--only")
    refused(call("bench", "--only", "broken-part"), "part broken-part of bench: cannot be imported")
    monkeypatch.setattr(performance, "speed", lambda **_: [Bar("fast", 1, 2.0)])
    assert call("bench", "--only", "speed").code == 0


def test_a_broken_command_ends_no_other(package: Path) -> None:
    def run(*words: str) -> Any:
        call = [sys.executable, "-m", "harness.cli", *words]
        return subprocess.run(call, capture_output=True, text=True, env=environment(package), check=False)

    assert run("--version").returncode == 0 and "broken-command" in run("--help").stdout
    for name, reason in (("broken-command", "ModuleNotFoundError"), ("absent-command", "AttributeError")):
        for more in ([], ["word"]):
            done = run(name, *more)
            assert done.returncode == 2 and done.stdout == ""
            assert done.stderr.startswith(f"error: command {name}: cannot be imported: {reason}: ")
            assert done.stderr.count("\n") == 1
