"""The command line as a user meets it: what it prints, its exit codes, and that bad input leaves nothing behind."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from harness import registry, tasks
from harness.bench import performance
from harness.checks import score_quality
from harness.reference import run as reference
from harness.trials import forecast, spec, sweep
from tests.support.commands import Call, Done, put, refused
from tests.support.paths import ROOT

SCRIPT = Path(sys.executable).with_name("infoprune")


def test_data_check(call: Call, questions: Path) -> None:
    done = call("data", "check", questions, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {
        "path": str(questions),
        "rows": 30,
        "images": 10,
        "form": "mini_vqav2",
        "majority": 0.3333,
        "warnings": [],
        "splits": {"validation": 18, "dev": 6, "calibration": 6},
    }
    assert "rows=30" in (shown := call("data", "check", questions).out) and "calibration=6" in shown


# --- folders, devices, options ------------------------------------------------------------------------------


def test_folders_that_cannot_be_written(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    """Also for root, who may write anywhere but below a regular file."""
    file, taken = put(tmp_path / "board.yaml", board), put(tmp_path / "taken", "a file")
    for results in (taken, taken / "results", Path("/proc/none/results")):
        done = call("sweep", file, "--results", results)
        assert done.code == 2 and "Traceback" not in done.err and not list(Path().iterdir())
        assert f"error: results folder {results}/small: not writable: " in done.err.splitlines()[-1]
    folder = tmp_path / "results"
    folder.mkdir()
    put(folder / "small", "a file where the board's folder has to be")
    assert f"{folder}/small: not writable" in call("sweep", file, "--results", folder).err
    refused(call("demo", "--out", taken / "demo"), f"--out {taken}/demo: not writable")
    refused(call("reference", "train", "--out", taken / "mine"), f"--out {taken}/mine: not writable")
    assert taken.read_text() == "a file"


def test_report_without_records(call: Call) -> None:
    refused(call("report", "--results", "nowhere"), "nowhere", "no board there")


def test_bad_devices(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    file = put(tmp_path / "board.yaml", board)
    refused(call("sweep", file, "--device", "tpu"), "--device tpu", "cpu, cuda or cuda:N")
    refused(call("sweep", file, "--device", "cuda:99"), "--device cuda:99", "CUDA devices")


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["sweep"], "board"),
        (["sweep", "demo", "--limti", "3"], "--limti"),
        (["sweep", "demo", "--limit", "0"], "--limit"),
        (["sweep", "demo", "--limit", "many"], "--limit"),
        (["sewep", "demo"], "sewep"),
        (["list", "method"], "method"),
        (["reference", "train"], "--out"),
        (["reference", "chekc"], "chekc"),
        (["reference", "train", "--out", "x", "--images", "0"], "--images"),
    ],
)
def test_usage_errors(call: Call, words: list[str], about: str) -> None:
    done = call(*words)
    assert done.code == 2 and done.out == ""
    assert about in done.err.lower() and done.err.count("Usage:") == 1 and "Traceback" not in done.err
    assert not list(Path().iterdir())


def test_interrupt(call: Call, tmp_path: Path, board: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep", stopped)
    done = call("sweep", put(tmp_path / "board.yaml", board))
    assert done.code == 130 and "the same command goes on" in done.err and "Traceback" not in done.err
    done = call("demo")
    assert done.code == 130 and "the same command goes on" in done.err
    monkeypatch.setattr(performance, "bars", stopped)
    monkeypatch.setattr(score_quality, "measure", stopped)
    for words in (["bench"], ["quality", "--method", "random"]):  # which keep nothing
        done = call(*words)
        assert (done.code, done.err.splitlines()[-1]) == (130, "interrupted")
    monkeypatch.setattr(reference, "run", stopped)
    done = call("reference", "train", "--out", "mine")
    assert done.code == 130 and "the same command goes on" in done.err


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["compare", LONG, LONG],
        ["gate", LONG, LONG],
        ["verdict", LONG],
        ["recommend", "--budget", "0.5", "--board", LONG],
        ["sweep", f"{LONG}.yaml"],
        ["sweep", "demo", "--dry-run", "--against", LONG],
        ["sweep", "demo", "--dry-run", "--set", f"split={LONG}"],
        ["data", "check", f"{LONG}.parquet"],
    ],
    ids=lambda words: words[0],
)
def test_what_the_system_refuses_is_no_verdict(call: Call, words: list[str]) -> None:
    refused(call(*words), LONG)


def test_what_the_system_refuses_is_named(
    call: Call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for error, words in (
        (PermissionError(errno.EACCES, "Permission denied", "my[file]"), "error: my[file]: Permission denied"),
        (OSError("no\nnetwork"), "error: OSError: no network"),
    ):
        monkeypatch.setattr(forecast, "estimate", Mock(side_effect=error))
        refused(call("sweep", "demo", "--dry-run"), words)
    caplog.clear()
    call("-vv", "sweep", "demo", "--dry-run")
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--time-limit", "inf"], "--time-limit inf: use at most 1e+06"),
        (["--memory-limit", "inf"], "--memory-limit inf: use at most"),
        (["--memory-limit", "1e300"], "--memory-limit 1e+300: use at most"),
        (["--device", "cuda:²"], "--device cuda:²: use cpu, cuda or cuda:N"),
        (["--device", f"cuda:{'9' * 5000}"], "use cpu, cuda or cuda:N"),
        (["--set", "limit=5", "--limit", "4"], "--set limit: --limit gives it, too"),
        (["--set", "random_weights=no", "--random-weights"], "--set random_weights: --random-weights gives it, too"),
    ],
    ids=lambda words: words[1][:9] if isinstance(words, list) else "",
)
def test_values_that_no_sweep_can_use(call: Call, words: list[str], says: str) -> None:
    refused(call("sweep", "demo", *words), says)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--image", "²x²", "use WIDTHxHEIGHT"),
        ("--image", f"{'9' * 5000}x1", "use WIDTHxHEIGHT"),
        ("--image", "0x448", "greater than or equal to 1"),
        ("--budget", "nan", "budgets.0"),
        ("--budget", "inf", "budgets.0"),
        ("--budget", "-1", "budgets.0"),
    ],
    ids=lambda text: text[:9],
)
def test_values_that_no_pruning_can_use(call: Call, option: str, value: str, says: str) -> None:
    given = {"--budget": "0.5", option: value}
    words = [f"{name}={text}" for name, text in given.items()]
    refused(call("prune", "mini-qwen2-vl", "--method", "random", "--out", "small", *words), says)


# --- what is there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", ["methods", "models", "tasks", "metrics", "boards"])
def test_list(call: Call, thing: str) -> None:
    listings = {
        "methods": registry.methods,
        "metrics": registry.metrics,
        "tasks": tasks.describe,
        "boards": registry.boards,
    }
    done = call("list", thing, "--json")
    assert (done.code, done.err) == (0, "")
    listed = json.loads(done.out)
    names = [row["name"] for row in listed]
    if thing in listings:
        assert names == list(listings[thing]())
    assert all(row["title"].strip() and "\n" not in row["title"] for row in listed)
    shown = call("list", thing)
    assert shown.code == 0 and all(name in shown.out for name in names)
    assert "annotation=" not in done.out  # a limit of an option, such as Field(ge=0), is no text


def test_shipped_boards_are_sound(call: Call, every_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "probe", lambda board, todo, device: None)
    for name in registry.boards():
        done = call("sweep", name, "--dry-run")
        assert (done.code, done.err) == (0, ""), name
    assert not list(Path().iterdir())


def test_dry_run_counts_and_writes_nothing(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    methods = [{"method": "random", "seeds": 3}, "magnitude"]
    file = put(tmp_path / "board.yaml", {**board, "methods": methods, "budgets": [0.5, 0.25]})
    done = call("sweep", file, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert "9 trials to run, 0 done" in done.out  # dense, 3 seeds and 1 at two budgets
    assert done.out.count("random") == 2 and done.out.count("magnitude") == 2
    assert not list(Path().iterdir())


def test_against_a_baseline_only_what_the_gate_needs_runs(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped demo's records of one method as the baseline: dense and the others are left out."""
    monkeypatch.setattr(forecast, "probe", lambda board, todo, device: None)
    shipped = ROOT / "results" / "demo"
    for path in shipped.glob("*.json"):
        if json.loads(path.read_text())["trial"]["method"] == "magnitude":
            shutil.copy(path, tmp_path)
            shutil.copy(path.with_suffix(".parquet"), tmp_path)
    done = call("sweep", "demo", "--dry-run", "--against", tmp_path)
    assert done.code == 0 and "3 trials to run, 0 done" in done.out and "random" not in done.out
    same = call("sweep", "demo", "--against", tmp_path, "--results", tmp_path)
    assert same.code == 2 and "--against" in same.err and "--results" in same.err
    none = call("sweep", "ablation", "--against", tmp_path)
    assert none.code == 2 and "nothing to compare with" in " ".join(none.err.split())


def test_help(call: Call) -> None:
    for words in ([], ["sweep"], ["report"], ["reference"], ["reference", "train"], ["list"], ["doctor"], ["data"]):
        done = call(*words, "--help")
        assert done.code == 0 and "Usage:" in done.out and done.err == ""
        assert call(*words, "-h").out == done.out


def test_doctor(call: Call, own_cache: Path) -> None:
    done = call("doctor", "--json")
    checks = json.loads(done.out)
    assert done.code == (0 if all(check["ok"] for check in checks) else 1)
    assert {"Python", "packages", "torchvision matches torch", "methods"} <= {check["check"] for check in checks}
    assert any("mini-qwen2-vl" in check["check"] and check["ok"] for check in checks)
    (built,) = [check for check in checks if check["check"] == "model dinov2-smollm2"]
    assert built["ok"] and "not built on this machine yet; run `infoprune reference build" in built["detail"]


def test_doctor_goes_on_behind_what_is_broken(
    call: Call, own_cache: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str, known: Any = importlib.metadata.version) -> str:
        return known("none-such" if name == "fvcore" else name)

    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").write_text("cut")
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(registry, "MODELS", {"broken": folder, "tiny": tiny_folder})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: 1 / 0)
    done = call("doctor")
    assert done.code == 2 and done.err == ""
    assert "no  packages: torch " in done.out and "fvcore is missing, pandas" in done.out
    assert "no  free disk: ZeroDivisionError" in done.out and "ok  methods: " in done.out
    assert "no  model broken: " in done.out and "safetensors" in done.out and "ok  model tiny: qwen2_vl" in done.out


# --- as a process -------------------------------------------------------------------------------------------


def _process(*words: object, cwd: Path) -> Done:
    made = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    return Done(made.returncode, made.stdout, made.stderr)


def test_console_script_refuses_in_one_line(tmp_path: Path, board: dict[str, Any]) -> None:
    here = tmp_path / "here"
    here.mkdir()
    file = put(tmp_path / "board.yaml", {**board, "scopes": ["langage"]})
    refused(_process(SCRIPT, "sweep", file, cwd=here), str(file), "did you mean 'language'?", left=here)
    file = put(tmp_path / "board.yaml", {**board, "budgets": [2]})
    refused(_process(sys.executable, "-m", "harness.cli", "sweep", file, cwd=here), "budgets.0", left=here)
    done = _process(SCRIPT, "sweep", "demo", "--no-such-flag", cwd=here)
    assert done.code == 2 and "--no-such-flag" in done.err and "Traceback" not in done.err


def test_json_alone_on_stdout(tmp_path: Path) -> None:
    done = _process(SCRIPT, "list", "boards", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "") and "demo" in [row["name"] for row in json.loads(done.out)]


def test_bad_models_and_help_need_no_torch(tmp_path: Path, board: dict[str, Any]) -> None:
    (tmp_path / "empty").mkdir()
    file = put(tmp_path / "board.yaml", {**board, "model": str(tmp_path / "empty")})
    code = (
        "import sys; from harness import cli; from harness.trials import spec; from harness.types import InputError\n"
        "try: spec.read(sys.argv[1])\n"
        "except InputError as error: assert 'config.json is missing' in str(error)\n"
        "else: raise SystemExit('accepted')\n"
        "sys.argv[1:] = ['--help']\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = _process(sys.executable, "-c", code, file, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")


# --- known before the run -----------------------------------------------------------------------------------


def test_sweep_and_dry_run_say_the_same_time(
    call: Call, tmp_path: Path, board: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a probe, from records, and per worker."""
    file = put(tmp_path / "board.yaml", {**board, "metrics": ["flops"]})
    results = tmp_path / "results"
    with monkeypatch.context() as patch:

        def begun(board: Any, results: Path, *, todo: Any, jobs: int, begin: Any, **settings: Any) -> Any:
            begin((), forecast.estimate(board, todo, jobs=jobs))
            return sweep.Outcome(results, 0, 0, ())

        patch.setattr(sweep, "sweep", begun)
        for seconds, jobs, line in ((7200.0, 1, "about 2.0 h"), (7200.0, 2, "about 60 min"), (None, 1, "time unknown")):
            patch.setattr(forecast, "probe", lambda board, todo, device, seconds=seconds: seconds)
            dry, run = (call("sweep", file, "--jobs", jobs, *flag) for flag in (["--dry-run"], []))
            assert f"3 trials to run, 0 done; {line}" in dry.out and f"3 trials to run, 0 done; {line}" in run.err
    assert call("sweep", file, "--results", results, "--inline").code == 0
    more = put(tmp_path / "more.yaml", {**board, "metrics": ["flops"], "methods": ["random", "magnitude", "taylor"]})
    monkeypatch.setattr(forecast, "probe", None)  # records are enough
    dry, run = (call("sweep", more, "--results", results, flag) for flag in ("--dry-run", "--inline"))
    line = "1 trials to run, 3 done; about 0 min"
    assert line in dry.out and line in run.err


@pytest.mark.parametrize("flag", ["--dry-run", "--inline"])
def test_an_estimate_that_fails_ends_no_sweep(
    call: Call, board: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    def broken(*given: Any) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr(forecast, "probe", broken)
    done = call("sweep", put(tmp_path / "board.yaml", {**board, "metrics": ["flops"]}), flag)
    assert done.code == 0 and "3 trials to run, 0 done; time unknown" in done.out + done.err


def test_an_estimate_from_records_is_that_of_each_recovery(tmp_path: Path, board: dict[str, Any]) -> None:
    from harness.records.record import Code, Cost, MethodFacts, Record

    file = put(tmp_path / "board.yaml", {**board, "budgets": [0.5, 0.25], "tuning": ["none", "bias", "refit"]})
    trials = spec.read(str(file)).trials()
    about = MethodFacts(title="", variant="", role="reference", regime="none")
    taken = {"none": 2.0, "bias": 30.0}
    finished = [
        Record(trial, about, cost=Cost(total_s=taken[trial.tuning.method]), env={}, code=Code("1", None, False))
        for trial in trials
        if trial.tuning.method in taken and trial.budget != 0.25
    ]
    todo = [trial for trial in trials if trial.budget == 0.25]
    assert [trial.tuning.method for trial in todo] == ["none", "bias", "refit"] * 2
    known = [trial for trial in todo if trial.tuning.method in taken]
    assert forecast.from_records(known, finished) == 2 * (2.0 + 30.0)
    assert (
        forecast.from_records(todo, finished) is None
    )  # no refit has finished: training may take a hundred times as long
    assert forecast.from_records(todo, []) is None


@pytest.mark.parametrize(
    ("method", "units", "ranks"),
    [("dgmr", "both", "ffn"), ("michel", "both", "heads"), ("hies", "ffn", "heads"), ("own.py", "both", "ffn")],
)
def test_a_method_that_cannot_meet_the_units_is_found_before_the_run(
    call: Call, tmp_path: Path, board: dict[str, Any], method: str, units: str, ranks: str
) -> None:
    put(tmp_path / "own.py", 'UNITS = "ffn"\n\n\ndef rank(vlm, calibration, *, seed):\n    raise RuntimeError\n')
    file = put(tmp_path / "board.yaml", {**board, "methods": ["random", method], "units": units})
    words = (f"board {file}: methods: {method.removesuffix('.py')} ranks {ranks} only", f"set units: {ranks}")
    refused(call("sweep", file), *words)
    refused(call("sweep", file, "--dry-run"), *words)
    assert call("sweep", file, "--dry-run", "--set", f"units={ranks}").code == 0
