"""Input of every malformed kind ends in one clear line and exit code 2: no traceback, no writing, no waiting."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records import record
from harness.trials import spec
from harness.types import InputError
from tests.support import malformed_files
from tests.support.commands import Call, Done
from tests.support.paths import environment

SECONDS, GROWTH = 10, 600 << 20  # that any one may take on a busy machine; bytes that all together may


def complaint(done: Done) -> str:
    """What is wrong with how a command ended; empty if nothing."""
    *before, last = done.err.splitlines() or [""]
    if done.code != 2:
        return f"exit code {done.code}"
    if "Traceback" in done.err or not last.startswith("error: ") or before or done.out:
        return "not one line on stderr"
    if not last.isprintable():
        return "control characters"
    return "a line too long to read" if len(last) > 2000 else ""


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(root.rglob("*"))}


@pytest.mark.slow
def test_the_corpus(
    call: Call, tmp_path: Path, tiny_folder: Path, board: dict[str, Any], count: Callable[[str], None]
) -> None:
    call("sweep", "no-such-board")  # what is imported is not counted below
    cases, faults = list(malformed_files.cases(tiny_folder, board)), []
    assert len({case.name for case in cases}) == len(cases)
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for number, case in enumerate(cases):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        words = case.make(folder)
        before, begun = listing(folder), time.monotonic()
        try:
            done = call(*words)
        except Exception as error:
            faults.append(f"{case.name}: {type(error).__name__}: {str(error)[:300]}")
            continue
        if said := complaint(done):
            faults.append(f"{case.name}: {said}: {done!r:.300}")
        if (took := time.monotonic() - begun) > SECONDS:
            faults.append(f"{case.name}: {took:.0f} s")
        if listing(folder) != before or list(Path().iterdir()):
            faults.append(f"{case.name}: something was written")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    count(f"{len(cases)} malformed inputs, {time.monotonic() - start:.0f} s, {grown >> 20} MiB more at the peak")
    assert not faults, "\n".join([f"{len(faults)} faults", *faults])
    assert len(cases) >= 300 and grown < GROWTH


@pytest.mark.slow
def test_a_few_in_processes_of_their_own(tmp_path: Path, tiny_folder: Path, board: dict[str, Any]) -> None:
    """Nothing that a test session brings along (warnings as errors, what is imported) is what makes them end well."""
    wanted = ("board bomb", "record deep map", "parquet bomb within PIL's own limit", "model weights header of 2^63")
    cases = {case.name: case for case in malformed_files.cases(tiny_folder, board)}
    for name in wanted:
        folder = tmp_path / name.replace(" ", "-").replace("'", "")
        folder.mkdir()
        ran = subprocess.run(
            [sys.executable, "-m", "harness.cli", *cases[name].make(folder)],
            capture_output=True, text=True, cwd=folder, env=environment(), timeout=120,
        )  # fmt: skip
        assert complaint(Done(ran.returncode, ran.stdout, ran.stderr)) == "", (name, ran)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="there is no atheris for this platform")
@pytest.mark.parametrize(("target", "runs"), [("board", 500), ("record", 1000), ("report", 300)])
def test_fuzzing_finds_nothing(target: str, runs: int, tmp_path: Path, count: Callable[[str], None]) -> None:
    own = ["-seed=1", "-rss_limit_mb=0"]  # its peak memory would be that of this process, too, which may be large
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzz", target, str(runs), *own],
        capture_output=True, text=True, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert ran.returncode == 0 and f"Done {runs} in" in ran.stderr, ran.stdout + ran.stderr[-1000:]
    assert not list(tmp_path.iterdir()), "an input that crashed"
    count(f"{target}: {runs} inputs fuzzed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
KEYS = st.sampled_from([*spec.Board.model_fields, "x"])


def refused_or_whole(call: Any, *given: Any) -> None:
    try:
        call(*given)
    except InputError as error:
        assert str(error) and "\n" not in str(error)


@settings(max_examples=300)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_record_or_refused(content: bytes) -> None:
    refused_or_whole(record.parse, content, Path("0123456789abcdef.json"))


@settings(max_examples=300)
@given(st.dictionaries(KEYS, JSON, max_size=8))
def test_any_mapping_is_a_board_or_refused(content: dict[str, Any]) -> None:
    refused_or_whole(spec.check, {"name": "a", "methods": ["random"], "budgets": [0.5], "model": "mini-qwen2-vl",
                                  "tasks": ["mini_gqa"], **content}, Path("board.yaml"))  # fmt: skip
