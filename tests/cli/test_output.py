"""What commands print, wherever it goes: narrow terminals, pipes, ASCII, readers that leave, full disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Call, Done
from tests.support.paths import ROOT, environment

DEMO = ROOT / "results" / "demo"
METHODS = {"infoprune_free", "magnitude", "random", "taylor"}
COMMANDS: list[list[Any]] = [
    ["gate", DEMO, DEMO],
    ["gate", DEMO, DEMO, "--json"],
    ["compare", DEMO, DEMO],
    ["recommend", "--budget", "0.5", "--scope", "vision", "--results", DEMO],
    ["results", "ls", "--results", ROOT / "results"],
    ["status", ROOT / "results"],
    ["list", "methods"],
    ["sweep", "geometry-mini", "--dry-run"],
    ["export", "--help"],
    ["--version"],
]


def process(*words: Any, redirect: str = "", **variables: str) -> Done:
    """A command as a shell runs it, its output redirected."""
    call = ["bash", "-c", f'exec "$@" {redirect}', "bash", sys.executable, "-m", "harness.cli", *map(str, words)]
    done = subprocess.run(call, capture_output=True, env=environment(**variables), check=False)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


# --- help -----------------------------------------------------------------------------------------------------

WALK = """
import contextlib, io, sys, typer
from harness import cli

def walk(command, words=()):
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*words, name))

for words in walk(typer.main.get_command(cli.app)):
    sys.argv = ["infoprune", *words, "--help"]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, words
    print("end of", *words)
"""


@pytest.mark.parametrize(
    "variables",
    [{}, {"COLUMNS": "40"}, {"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "40", "PYTHONIOENCODING": "ascii"}],
    ids=["as it is", "narrow", "ascii", "narrow ascii"],
)
def test_every_help(variables: dict[str, str]) -> None:
    """Of each command and group, nested ones too, with the whole name of every option."""
    done = subprocess.run([sys.executable, "-c", WALK], capture_output=True, env=environment(**variables), check=False)
    text = done.stdout.decode("ascii" if "PYTHONIOENCODING" in variables else "utf-8")
    assert (done.returncode, done.stderr) == (0, b"")
    pages = text.split("end of")
    assert len(pages) > 25 and all("Usage:" in page for page in pages[:-1])
    for option in ("--memory-limit", "--dry-run", "--install-completion", "--samples"):
        assert option in text


# --- ASCII, readers that leave, full disks ------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(map(str, words[:2])))
def test_where_output_cannot_go_is_no_verdict(words: list[Any]) -> None:
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "harness.cli", *map(str, words)]
    gone = subprocess.run(call, stdout=write, stderr=subprocess.PIPE, env=environment(), check=False)
    os.close(write)
    assert (gone.returncode, gone.stderr) == (141, b"")
    full = process(*words, redirect="> /dev/full")
    assert full == Done(74, "", "error: stdout: cannot be written: No space left on device\n")
    ascii_only = process(*words, PYTHONIOENCODING="ascii")
    assert (ascii_only.code, ascii_only.err) == (0, "") and ascii_only.out.isascii() and ascii_only.out


def test_without_stderr_a_command_goes_on() -> None:
    assert process("list", "nothing-of-this-name", redirect="2> /dev/full").code == 2
    done = process("-v", "list", "boards", redirect="2> /dev/full")
    assert done.code == 0 and "demo" in done.out
    assert process("list", "boards", redirect="2>&-").code == 0
    assert process("list", "boards", redirect=">&-").code == 0


def test_a_sign_and_a_foreign_name_in_ascii(tmp_path: Path) -> None:
    board = tmp_path / "größe"
    board.mkdir()
    for path in DEMO.iterdir():
        (board / path.name).write_bytes(path.read_bytes())
    done = process("gate", board, board, PYTHONIOENCODING="ascii")
    assert done.code == 0 and "+ 0.0" in done.out and "?" not in done.out
    wrong = process("results", "show", "0", "--results", tmp_path / "größe2", PYTHONIOENCODING="ascii")
    assert wrong.code == 2 and "gr\\xf6\\xdfe2" in wrong.err


# --- widths -------------------------------------------------------------------------------------------------


def tables(call: Call, monkeypatch: pytest.MonkeyPatch, width: int | None) -> dict[str, str]:
    from harness.cli import screen

    monkeypatch.delenv("COLUMNS", raising=False)
    for console in (screen.out, screen.err):
        monkeypatch.setattr(console, "_width", width)
    results = ROOT / "results"
    shown = {
        "gate": call("gate", DEMO, DEMO),
        "compare": call("compare", DEMO, DEMO),
        "verdict": call("verdict", DEMO),
        "ls": call("results", "ls", "--results", results),
        "status": call("status", results),
        "dry-run": call("sweep", "demo", "--dry-run", "--results", results),
    }
    assert all(done.code in (0, 1) for done in shown.values())
    return {name: done.out for name, done in shown.items()}


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_names_wrap_and_are_never_cut(call: Call, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for name, text in tables(call, monkeypatch, width).items():
        assert "…" not in text and "..." not in text, name
        if name in ("gate", "compare", "ls") and width <= 40:
            assert all(method in "".join(text.split()) for method in METHODS), name


def test_what_is_piped_is_not_cut(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tables(call, monkeypatch, None)
    assert all("…" not in text for text in shown.values())
    demo = next(line.strip() for line in shown["ls"].splitlines() if line.strip().startswith("demo "))
    assert demo.endswith("infoprune_free, magnitude, none, random, taylor")
    assert any("infoprune_free vision 0.3125" in line and line.count("✓") == 3 for line in shown["gate"].splitlines())
