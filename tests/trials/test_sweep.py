"""A small board run for real: in this process and in a worker process, with methods that fail, resumed, reported."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from harness import cli, registry
from harness.metrics import flops
from harness.records import record
from harness.report import report
from harness.trials.executors import local
from harness.trials.sweep import plan
from tests.support.boards import FinishedSweep, read_board
from tests.support.commands import Call
from tests.support.paths import environment
from tests.support.question_files import question_rows, write_parquet

# Methods of another package, as entry points: each goes wrong in its own way.
METHODS = {
    "breaks": "raise RuntimeError('no ranking today,\\nnor tomorrow')",
    "dies": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "mumbles": "from harness.types import Ranking; return Ranking({}, log={'loss': float('nan')})",
    "sleeps": "import time; time.sleep(300)",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installed package that adds METHODS; a worker process finds it on the path it inherits."""
    root = tmp_path_factory.mktemp("package")
    points = ["[infoprune.methods]"]
    for name, body in METHODS.items():
        text = f'"""A method that {name}."""\n\n\ndef rank(vlm, calibration, *, seed):\n    {body}\n'
        (root / f"made_{name}.py").write_text(text)
        points.append(f"{name} = made_{name}")
    info = root / "made_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(points) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        registry._modules.cache_clear()
        yield root
    registry._modules.cache_clear()
    registry._named.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data") / "mine.parquet", question_rows("mini_vqav2", 8))


@pytest.fixture(scope="module")
def inline(package: Path, tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    root = tmp_path_factory.mktemp("inline")
    board = read_board(root, tiny_folder, data, ["random", "breaks", "mumbles", "magnitude"])
    return FinishedSweep(board, root / "results", inline=True)


@pytest.fixture(scope="module")
def process(package: Path, tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    root = tmp_path_factory.mktemp("process")
    board = read_board(root, tiny_folder, data, ["random", "breaks", "dies", "mumbles", "magnitude"])
    return FinishedSweep(board, root / "results", inline=False)


def test_every_trial_leaves_a_record(inline: FinishedSweep, process: FinishedSweep) -> None:
    for run, failures in ((inline, {"breaks", "mumbles"}), (process, {"breaks", "mumbles", "dies"})):
        records = run.records()
        ids = {trial.id: trial.method for trial in run.board.trials()}
        assert {made.id: method for method, made in records.items()} == ids
        assert {method for method, made in records.items() if made.status == "failed"} == failures
        assert (run.outcome.ran, run.outcome.skipped, len(run.outcome.failed)) == (len(ids), 0, len(failures))
        folder = run.results / "small"
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            [".claims", "sweep.log", *(f"{i}.json" for i in ids)]
            + [f"{i}.parquet" for i, method in ids.items() if method not in failures]
        )
        done = [step for step, _ in run.steps]
        assert done == sorted(done) and done[-1] == len(ids)
        assert {"random vision 0.5: ranking", "random vision 0.5: metric accuracy"} <= {text for _, text in run.steps}


def test_failures_say_what_happened_and_hold_no_figures(process: FinishedSweep) -> None:
    records = process.records()
    expected = {
        "breaks": ("RuntimeError", "ranking", "no ranking today"),
        "mumbles": ("InputError", "solve", "does not rank"),
        "dies": ("WorkerDied", "worker", "killed by signal 9"),
    }
    for method, (kind, phase, words) in expected.items():
        made = records[method]
        assert made.error is not None
        assert (made.error.type, made.error.phase) == (kind, phase) and words in made.error.message
        assert not made.metrics and not made.log and made.plan is None
        line = next(line for line in process.outcome.failed if line.startswith(method))
        assert kind in line and "\n" not in line
    assert records["magnitude"].status == "ok"  # in a new worker, after the one that died


def test_inline_and_process_agree(inline: FinishedSweep, process: FinishedSweep) -> None:
    ours, theirs = inline.records(), process.records()
    for method in ("none", "random", "magnitude"):
        a, b = ours[method], theirs[method]
        assert a.id == b.id and a.trial == b.trial
        # A record's own hash covers its times as well.
        assert {**a.hashes, "record": ""} == {**b.hashes, "record": ""}
        assert a.plan == b.plan and a.log == b.log
        assert set(a.metrics) == set(b.metrics) >= {"flops", "latency", "accuracy"}
        for name in set(a.metrics) - {"latency"}:
            assert a.metrics[name] == b.metrics[name]
        tables = [pq.read_table(run.results / "small" / f"{a.id}.parquet") for run in (inline, process)]
        assert tables[0].equals(tables[1]) and tables[0].num_rows == a.metrics["accuracy"]["tasks"].popitem()[1]["n"]


def test_budget_is_met_and_dense_is_whole(inline: FinishedSweep) -> None:
    records = inline.records()
    for method in ("random", "magnitude"):
        flops, plan = records[method].metrics["flops"], records[method].plan
        assert flops["kept"] == pytest.approx(0.5, rel=0.01)
        assert flops["kept"] == pytest.approx(plan and plan.achieved, rel=1e-6)
        assert flops["components"]["language"]["kept"] == 1
    dense = records["none"].metrics
    assert dense["flops"]["kept"] == 1 and dense["flops"]["params"]["kept"] == 1
    assert "blank" in dense["floors"] and "floors" not in records["random"].metrics


def test_resume_runs_what_is_missing_or_failed(
    inline: FinishedSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(inline.results, results)
    records, folder = inline.records(), results / "small"
    for suffix in (".json", ".parquet"):
        (folder / f"{records['random'].id}{suffix}").unlink()
    (folder / f"{records['magnitude'].id}.json").write_text("{")  # cut off by a full disk, say
    todo = plan(inline.board, results)
    assert [trial.method for trial in todo.trials] == ["random", "breaks", "magnitude"]
    assert todo.done == 2 and todo.seconds is not None and todo.seconds > 0
    kept = {path: path.stat().st_mtime_ns for path in folder.glob(f"{records['none'].id}.*")}

    board = tmp_path / "small.yaml"
    board.write_text((inline.results.parent / "small.yaml").read_text())
    monkeypatch.setattr(sys, "argv", ["infoprune", "sweep", str(board), "--results", str(results), "--inline"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1  # one trial failed again; the others are there
    shown = capsys.readouterr()
    assert "3 trials run, 2 already done, 1 failed" in shown.out
    assert "failed: breaks" in shown.err and "Traceback" not in shown.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again = {made.trial.method: made for made in record.load(folder)[0]}
    for method in ("random", "magnitude"):
        assert again[method].metrics["accuracy"] == records[method].metrics["accuracy"]
    assert [trial.method for trial in plan(inline.board, results).trials] == ["breaks"]


def test_what_a_record_cannot_hold_is_a_failure(package: Path, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """A NaN in a method's log, where the method itself gets through."""
    board = read_board(tmp_path, tiny_folder, data, ["mumbles"], budgets=[1.0], metrics=["flops"])
    run = FinishedSweep(board, tmp_path / "results", inline=True)
    made = run.records()["mumbles"]
    assert made.error and made.error.phase == "record" and "JSON" in made.error.message


def test_what_a_metric_returns_that_no_record_can_hold_is_a_failure_with_its_name(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flops, "measure", lambda *parts: {"kept": 1.0, "widths": torch.ones(2)})
    board = read_board(tmp_path, tiny_folder, data, ["random"], budgets=[1.0], metrics=["flops"])
    made = FinishedSweep(board, tmp_path / "results", inline=True).records()["random"]
    assert made.error and made.error.phase == "metric flops"
    assert made.error.message.startswith("metric flops: widths is no plain JSON value")


@pytest.mark.slow
def test_worker_that_died_idle_is_replaced(
    process: FinishedSweep, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    board = read_board(tmp_path, tiny_folder, data, ["random", "magnitude"], metrics=["flops"])
    found, before = [], set(multiprocessing.active_children())
    with local.workers() as begun:
        for made, _ in local.run(board.trials(), begun):
            found.append(made)
            if len(found) == 1:
                (worker,) = set(multiprocessing.active_children()) - before
                worker.kill()
                worker.join()
    assert [made.status for made in found] == ["ok", "failed", "ok"]
    assert found[1].error and "killed by signal 9" in found[1].error.message


def test_report_has_a_row_a_trial_and_the_same_bytes_twice(process: FinishedSweep, tmp_path: Path) -> None:
    made = [report(process.results, tmp_path / out) for out in ("first", "second")]
    assert [file.read_bytes() for file in made[0]] == [file.read_bytes() for file in made[1]]
    with (tmp_path / "first" / "small" / "board.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    records = process.records()
    assert sorted(row["method"] for row in table) == sorted(records)
    for row in table:
        own = records[row["method"]]
        if own.status == "ok":
            assert row["status"] == "ok"
            assert float(row["accuracy"]) == pytest.approx(own.metrics["accuracy"]["mean"], abs=1e-5)
            assert float(row["flops_kept"]) == pytest.approx(own.metrics["flops"]["kept"], rel=1e-5)
        else:
            assert row["status"].startswith("failed: ") and row["accuracy"] == ""


@pytest.mark.slow
def test_interrupt_ends_quickly_and_cleanly(package: Path, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the worker too; neither prints a traceback, and what was finished is kept."""
    read_board(tmp_path, tiny_folder, data, ["sleeps"], metrics=["flops"])
    command = [sys.executable, "-m", "harness.cli", "sweep", "small.yaml"]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(package),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job's children inherit that interrupts are ignored; a user's terminal does not ignore them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob("results/small/*.json")) and time.monotonic() < until and running.poll() is None:
        time.sleep(0.1)
    if running.poll() is not None:
        pytest.fail(f"ended by itself, code {running.returncode}, before the interrupt:\n{running.communicate()[1]}")
    time.sleep(1)  # dense is done, the second trial sleeps
    os.killpg(running.pid, signal.SIGINT)
    start = time.monotonic()
    _, err = running.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert running.returncode == 130, err
    assert "Traceback" not in err and "what was finished is kept" in err
    assert [json.loads(p.read_text())["trial"]["method"] for p in tmp_path.glob("results/small/*.json")] == ["none"]


@pytest.mark.gpu
def test_sweep_on_a_gpu_names_it(tiny_folder: Path, data: Path, tmp_path: Path, call: Call) -> None:
    import torch

    file = tmp_path / "small.yaml"
    read_board(tmp_path, tiny_folder, data, ["random", "infoprune"])
    done = call("sweep", file, "--results", tmp_path / "r", "--device", "cuda")
    assert done.code == 0, done.err
    found, problems = record.load(tmp_path / "r" / "small")
    assert len(found) == 3 and not problems
    for made in found:
        assert made.status == "ok" and made.env["device"].startswith("cuda")
        assert made.env["gpu"] == torch.cuda.get_device_name(0) and made.env["gpu_memory_bytes"] > 0
        assert made.env.get("gpu_clock_mhz", 1) > 0  # absent where NVML refuses it
        assert (made.cost.peak_memory_bytes or 0) > 0
