"""What a sweep takes as done, two sweeps on one folder, folders that fail it: with a worker that computes nothing."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from harness import tasks
from harness.records import record
from harness.trials import code_hash, spec, staleness
from harness.trials.locks import Claims, held
from harness.trials.result import Result
from harness.trials.sweep import plan, sweep
from harness.types import InputError
from tests.support import stubs
from tests.support.paths import ROOT, environment
from tests.support.question_files import question_rows, write_parquet


def run(board: spec.Board, results: Path, **how: Any) -> Any:
    return sweep(board, results, inline=True, make=stubs.make, **how)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A results folder with all six trials of the board of seeds 0 to 2."""
    run(stubs.board(0, 1, 2), tmp_path / "results")
    return tmp_path / "results"


# --- stale or not -------------------------------------------------------------------------------------------


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of methods `one`, which imports a helper, and `two`."""
    package = tmp_path / "contestants"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("FACTOR = 1\n")
    (package / "one.py").write_text(
        '"""One."""\nfrom contestants.helper import FACTOR\n\n\ndef rank(): return FACTOR\n'
    )
    (package / "two.py").write_text('"""Two."""\n\n\ndef rank():\n    """Ranks."""\n    return 2  # units\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(staleness.registry, "module_path", lambda name: f"contestants.{name}")
    yield package
    staleness.code.cache_clear()


def codes(*names: str) -> dict[str, str]:
    staleness.code.cache_clear()
    return {name: staleness.code(name, ("flops",), "qwen2_vl") for name in names}


@pytest.mark.parametrize(
    ("file", "old", "new", "touched"),
    [
        ("helper.py", "1", "2", {"one"}),
        ("two.py", "2  #", "3  #", {"two"}),
        ("two.py", "# units", "# things", set()),
        ("two.py", '"""Ranks."""', '"""Ranks units.\n\n    Well.\n    """', set()),
        ("two.py", "def rank", "\n\ndef rank", set()),
    ],
)
def test_code_is_what_a_method_is_made_of(methods: Path, file: str, old: str, new: str, touched: set[str]) -> None:
    before = codes("one", "two")
    assert before == codes("one", "two") and len(set(before.values())) == 2
    path = methods / file
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(1, 1))  # another time, however coarse the clock
    after = codes("one", "two")
    assert {name for name in after if after[name] != before[name]} == touched


def test_code_holds_the_trial_path_and_no_plumbing() -> None:
    asked = staleness.asked("infoprune", ("accuracy",), "qwen2_vl")
    counted = code_hash.reached(staleness.ROOTS, asked, staleness.plumbing())
    modules = {name.rpartition(".")[0] for name in counted}
    assert {"harness.pruning.solver.solve", "harness.pruning.surgery.apply", "harness.tasks.adapter.Adapter"} <= counted
    assert {"baselines.infoprune.heads.score", "baselines.linalg.eigh", "harness.families.qwen2_vl.blocks"} <= counted
    assert (
        "harness.statistics.calibration.Calibration" in counted
        and "harness.statistics.unit_weights.unit_sums" not in counted
    )
    assert "harness.types.trial.Trial" in counted  # plumbing makes it, annotations name it
    assert "harness.machine.timing.interleave" in counted  # budgets of time are priced by its clock
    assert (
        not {"baselines.taylor", "harness.metrics.roofline", "harness.families.llava", "harness.trials.sweep"} & modules
    )
    assert not set(staleness.PLUMBING) & modules


def test_plumbing_is_there() -> None:
    """A module that is renamed takes its name in the list along."""
    for name in (*staleness.ROOTS, *staleness.PLUMBING):
        assert importlib.util.find_spec(name), name


def test_how_questions_are_put_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> str:
        staleness.code.cache_clear()
        return staleness.code("random", ("accuracy",), "qwen2_vl")

    before, copy = now(), tmp_path / "mini"
    shutil.copytree(tasks.MINI, copy)
    monkeypatch.setattr(tasks, "MINI", copy)
    recipe = copy / "mini_gqa.yaml"
    recipe.write_text("# another comment\n" + recipe.read_text())
    assert now() == before
    recipe.write_text(recipe.read_text().replace("using a single word", "in a word"))
    assert now() != before
    staleness.code.cache_clear()


def _rehash(path: Path, **hashes: str | None) -> None:
    """Change a record's hashes and make it whole again; None takes one away."""
    content = json.loads(path.read_text())
    changed = {key: value for key, value in {**content["hashes"], **hashes}.items() if value is not None}
    _rewrite(path, content | {"hashes": changed})


def _rewrite(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content | {"hashes": content["hashes"] | {"record": record.content_hash(content)}}))


@pytest.mark.parametrize("key", ["code", "checkpoint", "data", "calibration"])
def test_a_stale_record_is_made_again_and_no_other(done: Path, key: str) -> None:
    board = stubs.board(0, 1, 2)
    before, chosen = stubs.contents(done / "made"), (board.trials()[3]).id
    _rehash(done / "made" / f"{chosen}.json", **{key: "0" * 16})
    todo = plan(board, done)
    assert [trial.id for trial in todo.trials] == [chosen] and (todo.done, todo.stale) == (5, 1)
    outcome = run(board, done)
    assert (outcome.ran, outcome.skipped) == (1, 5)
    assert stubs.contents(done / "made") == before


def test_a_record_that_lost_its_samples_is_made_again(done: Path) -> None:
    before = stubs.contents(done / "made")
    next((done / "made").glob("*.parquet")).unlink()
    outcome = run(stubs.board(0, 1, 2), done)
    assert (outcome.ran, outcome.skipped) == (1, 5) and stubs.contents(done / "made") == before


def test_a_record_with_the_samples_of_another_run_is_made_again(done: Path) -> None:
    before, (one, other, *_) = stubs.contents(done / "made"), sorted((done / "made").glob("*.parquet"))
    one.write_bytes(other.read_bytes() + b" ")
    outcome = run(stubs.board(0, 1, 2), done)
    assert (outcome.ran, outcome.skipped) == (1, 5) and stubs.contents(done / "made") == before


@pytest.mark.parametrize("message", ["budget: 0.1 of the FLOPs: the smallest reachable is 0.3", "mine does not rank"])
def test_a_budget_that_cannot_be_met_is_not_tried_again(done: Path, message: str) -> None:
    board, chosen = stubs.board(0, 1, 2), stubs.board(0, 1, 2).trials()[3]
    path = done / "made" / f"{chosen.id}.json"
    failure = {"type": "InputError", "message": message, "phase": "solve"}
    _rewrite(path, json.loads(path.read_text()) | {"status": "failed", "error": failure, "metrics": {}})
    assert plan(board, done).trials == (() if message.startswith("budget") else (chosen,))
    _rehash(path, code="0" * 16)
    assert plan(board, done).trials == (chosen,)


def test_records_without_a_hash_of_the_code_are_stale_and_others_may_be_missing(done: Path) -> None:
    """The code is always known, so such a record is of a version that did not note it; a hub's files may be unknown."""
    for path in (done / "made").glob("*.json"):
        _rehash(path, checkpoint=None, calibration=None)
    assert plan(stubs.board(0, 1, 2), done).trials == ()
    for path in (done / "made").glob("*.json"):
        _rehash(path, code=None)
    assert plan(stubs.board(0, 1, 2), done).stale == 6


def test_a_record_need_not_say_what_it_cost(done: Path) -> None:
    for path in done.glob("made/*.json"):
        content = json.loads(path.read_text())
        del content["cost"]
        _rewrite(path, content)
    todo = plan(stubs.board(0, 1, 2), done)
    assert todo.trials == () and todo.done == 6


def test_the_committed_records_hold(tmp_path: Path) -> None:
    todo = plan(spec.read("demo"), ROOT / "results")
    assert (todo.trials, todo.done, todo.stale) == ((), 13, 0)


def test_another_checkpoint_or_question_set_is_seen(tiny_folder: Path, questions: Path, tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "mine.parquet"
    shutil.copytree(tiny_folder, model)
    shutil.copy(questions, data)
    trial = stubs.board(0, model=str(model), tasks=(str(data),)).trials()[0]
    before = staleness.hashes(trial)
    assert before == staleness.hashes(trial) and set(before) == {"code", "checkpoint", "data", "calibration"}
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    changed = staleness.hashes(trial)
    assert {key for key in before if before[key] != changed[key]} == {"checkpoint"}
    write_parquet(data, question_rows("mini_vqav2", 9))
    assert {key for key in before if changed[key] != staleness.hashes(trial)[key]} == {"data", "calibration"}


# --- two sweeps ---------------------------------------------------------------------------------------------

OTHER = """
import sys
from pathlib import Path
from harness.trials.sweep import sweep
from tests.support import stubs

class Waits(stubs.Stub):
    def run(self, trial):
        print("begun", flush=True)
        sys.stdin.readline()
        return super().run(trial)

print(sweep(stubs.board(0, 1, 2), Path(sys.argv[1]), inline=True, make=lambda *about: Waits(about[2])), flush=True)
"""


def other(results: Path) -> subprocess.Popen[str]:
    """A second process with a sweep on this folder, in its first trial when this returns."""
    running = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(results)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout and running.stdout.readline() == "begun\n"
    return running


def test_two_sweeps_share_a_folder(tmp_path: Path, count: Callable[[str], None]) -> None:
    """Each trial is run once, and what one has begun the other leaves alone."""
    board, results = stubs.board(0, 1, 2), tmp_path / "results"
    ids = [trial.id for trial in board.trials()]
    with other(results) as running:
        assert held(results / "made", ids) == {ids[0]}
        outcome = run(board, results)
        assert (outcome.ran, outcome.elsewhere) == (5, 1)
        said, _ = running.communicate("\n")
    assert "ran=1" in said and "elsewhere=5" in said
    assert held(results / "made", ids) == set()
    run(board, tmp_path / "alone")
    assert stubs.contents(results / "made") == stubs.contents(tmp_path / "alone" / "made")
    count(f"{outcome.ran} trials by one sweep, {outcome.elsewhere} by the other, none twice")


def test_what_a_killed_sweep_had_claimed_is_free(tmp_path: Path) -> None:
    board, results = stubs.board(0, 1, 2), tmp_path / "results"
    with other(results) as running:
        mine = (board.trials()[0]).id
        yours = (board.trials()[1]).id
        left = [results / "made" / f".{name}.json.1.tmp" for name in (mine, yours)]
        for path in left:
            path.write_text("{")
        with Claims(results / "made") as claims:
            claims.tidy()
        assert [path.exists() for path in left] == [True, False]  # the first one's writer lives
        running.kill()
        running.wait()
    outcome = run(board, results)
    assert (outcome.ran, outcome.elsewhere) == (6, 0) and not left[0].exists()


def test_who_only_asks_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a folder, read-only or not, locks for an instant; a sweep that wants the trial just then gets it."""
    name = (stubs.board(0).trials()[0]).id
    asks = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'rb'), fcntl.LOCK_SH); print(flush=True); input()"
    with (
        Claims(tmp_path) as claims,
        subprocess.Popen([sys.executable, "-c", asks, str(tmp_path / ".claims")], stdin=PIPE, stdout=PIPE) as asking,
    ):
        assert asking.stdout
        asking.stdout.readline()
        monkeypatch.setattr("harness.trials.locks.time.sleep", lambda seconds: asking.communicate(b"done\n"))
        assert claims.take(name)
        monkeypatch.undo()
    (tmp_path / ".claims").chmod(0o400)
    assert held(tmp_path, [name]) == set()


# --- folders that fail --------------------------------------------------------------------------------------


class Spoils(stubs.Stub):
    """Does something to the results folder when the third trial ends."""

    def __init__(self, deed: Any) -> None:
        super().__init__()
        self.deed, self.number = deed, 0

    def run(self, trial: Any, answers: Any = ()) -> Result:
        self.number += 1
        if self.number == 3:
            self.deed()
        return super().run(trial, answers)


def spoilt(results: Path, deed: Any) -> str:
    with pytest.raises(InputError) as error:
        sweep(stubs.board(0, 1, 2), results, inline=True, make=lambda *about: Spoils(deed))
    assert "\n" not in str(error.value)
    return str(error.value)


def full(*anything: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["pyarrow.parquet.write_table", "os.fsync", "os.replace", "pathlib.Path.write_text"])
def test_full_disk(tmp_path: Path, call: str) -> None:
    """Whichever call meets it: one line, and the two trials before it are whole; afterwards the sweep goes on."""
    results = tmp_path / "results"
    with pytest.MonkeyPatch.context() as patch:
        said = spoilt(results, lambda: patch.setattr(call, full))
    assert "No space left on device" in said and str(results) in said
    found, problems = record.load(results / "made")
    assert (len(found), problems) == (2, []) and not list((results / "made").glob(".*.tmp"))
    assert run(stubs.board(0, 1, 2), results).ran == 4


def test_full_disk_for_real(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(results)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts a small file system")
    try:
        said = spoilt(results, lambda: fill(results))
        assert "No space left on device" in said
        found, problems = record.load(results / "made")
        assert (len(found), problems) == (2, []) and not list((results / "made").glob(".*.tmp"))
    finally:
        subprocess.run(["umount", "--lazy", str(results)], check=True)


def fill(folder: Path) -> None:
    """Use up what is left of a file system."""
    with (folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"0" * 512):
            pass


def test_folder_that_vanishes_or_can_no_longer_be_written(tmp_path: Path) -> None:
    gone, moved = tmp_path / "gone", tmp_path / "moved"
    assert "vanished" in spoilt(gone, lambda: shutil.rmtree(gone / "made"))
    assert not (gone / "made").exists()
    assert "vanished" in spoilt(moved, lambda: (moved / "made").rename(moved / "elsewhere"))
    assert len(record.load(moved / "elsewhere")[0]) == 2

    def forbid(*anything: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.MonkeyPatch.context() as patch:
        said = spoilt(tmp_path / "fixed", lambda: patch.setattr("pyarrow.parquet.write_table", forbid))
    assert "Read-only file system" in said and len(record.load(tmp_path / "fixed" / "made")[0]) == 2


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlockable(*anything: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", unlockable)
    with pytest.raises(InputError, match="cannot lock: No locks available"):
        run(stubs.board(0), tmp_path / "results")


# --- what a watcher sees ------------------------------------------------------------------------------------


def test_status_of_a_running_and_of_a_finished_sweep(tmp_path: Path, call: Any) -> None:
    board, results = stubs.board(0, 1, 2), tmp_path / "results"
    with other(results) as running:
        (row,) = json.loads(call("status", results, "--json").out)
        first = (board.trials()[0]).id
        assert row == {"board": "made", "done": 0, "failed": 0, "running": [first], "left": 6, "end": None}
        running.kill()
        running.wait()
    (row,) = json.loads(call("status", results, "--json").out)
    assert (row["running"], row["left"]) == ([], None)  # begun, but by nobody who lives
    with (results / "made" / "sweep.log").open("a") as log:
        log.write('{"time": 1, "event": "be')
    run(board, results)
    assert "made" in call("status", results / "made").out
    events = [line for line in (results / "made" / "sweep.log").read_text().splitlines() if '"end"' in line]
    assert len(events) >= 5 and json.loads(call("status", results, "--json").out)[0]["done"] == 6
    done = call("status", tmp_path / "nowhere")
    assert done.code == 2 and f"{tmp_path / 'nowhere'}: no such folder; give a board's folder" in done.err
