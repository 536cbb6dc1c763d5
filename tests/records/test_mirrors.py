"""Records as runs of MLflow and Weights & Biases: the right content, once, and never at a sweep's expense."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from harness.records import mirrors, record
from harness.records.mirrors import Mirror, Run
from harness.records.record import Record
from harness.trials.sweep import sweep
from tests.support import stored, stubs
from tests.support.commands import Call, refused
from tests.support.paths import ROOT

SCORES = [1.0, 0.0, 1.0] * 3


def read(path: Path) -> Record:
    return record.read(path)


def test_a_run_says_what_a_record_does(tmp_path: Path) -> None:
    found = read(stored.put(tmp_path, SCORES, method="taylor", seed=3, options={"power": 2}, resolved={"power": 2}))
    run = Run.of(found)
    assert (run.name, run.board, run.failed) == ("taylor none vision 0.5 seed 3", "made", False)
    assert run.hash == found.hashes["record"]
    assert run.params["method"] == "taylor" and run.params["resolved.power"] == "2" and run.params["budget"] == "0.5"
    assert json.loads(run.params["tasks"]) == list(stored.TASKS)
    assert run.metrics["accuracy.mean"] == pytest.approx(2 / 3) and run.metrics["flops.kept"] == 0.5
    assert run.metrics["accuracy.tasks.mini_gqa.accuracy"] == pytest.approx(2 / 3) and run.metrics["cost.total_s"] == 1
    assert run.tags["id"] == found.id and run.tags["hashes.data"] == "d" and run.tags["code.revision"] == "a"


def test_a_failure_is_a_failed_run_with_its_reason(tmp_path: Path) -> None:
    run = Run.of(read(stored.put(tmp_path, None, error="out of\nmemory")))
    assert run.failed and run.tags["error.message"] == "out of memory" and not run.metrics.keys() - {"cost.total_s"}


def test_names_hold_only_what_services_allow(tmp_path: Path) -> None:
    run = Run.of(read(stored.put(tmp_path, SCORES, options={"a b/<c>\n": 1}, resolved={"a b/<c>\n": {"é": 1}})))
    assert run.params["resolved.a_b__c__.é"] == "1"


# --- services -----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    key: str
    value: Any
    timestamp: int = 0
    step: int = 0


class Client:
    """What of MLflow's client is used, in memory."""

    experiments: dict[str, str]
    runs: dict[str, dict[str, Any]]

    def get_experiment_by_name(self, name: str) -> Any:
        return next((_Named(experiment_id=key) for key, own in self.experiments.items() if own == name), None)

    def create_experiment(self, name: str) -> str:
        self.experiments[str(len(self.experiments))] = name
        return str(len(self.experiments) - 1)

    def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[Any]:
        key, value = query.removeprefix("tags.").replace("`", "").replace("'", "").split(" = ")
        return [run for run in self.runs.values() if run["in"] in experiments and run["tags"].get(key) == value]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        name = str(len(self.runs))
        self.runs[name] = {"in": experiment, "tags": dict(tags), "name": run_name, "params": {}, "metrics": {}}
        return _Named(info=_Named(run_id=name))

    def log_batch(self, run: str, metrics: list[Pair], params: list[Pair]) -> None:
        assert len(params) <= 100 and len(metrics) <= 1000
        self.runs[run]["metrics"] |= {pair.key: pair.value for pair in metrics}
        self.runs[run]["params"] |= {pair.key: pair.value for pair in params}

    def set_tag(self, run: str, key: str, value: str) -> None:
        self.runs[run]["tags"][key] = value

    def set_terminated(self, run: str, status: str) -> None:
        self.runs[run]["status"] = status


class _Named:
    def __init__(self, **names: Any) -> None:
        self.__dict__ |= names


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Client]]:
    Client.experiments, Client.runs = {}, {}
    package, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    package.__dict__["MlflowClient"] = Client
    entities.__dict__.update(Metric=Pair, Param=Pair)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    package.__spec__ = ModuleSpec("mlflow", None)
    monkeypatch.delitem(sys.modules, "harness.records.mirrors.mlflow", raising=False)
    yield Client
    sys.modules.pop("harness.records.mirrors.mlflow", None)


def test_mlflow_holds_each_record_once(mlflow: type[Client], tmp_path: Path, call: Call) -> None:
    stored.put(tmp_path, SCORES)
    stored.put(tmp_path, None, error="out of memory", seed=1)
    stored.put(tmp_path, SCORES, board="other", resolved={f"option{i}": i for i in range(150)})
    for _ in range(2):
        done = call("results", "mirror", "mlflow", "--results", tmp_path)
        assert done.code == 0 and done.out.startswith("3 records of"), done
    done = call("results", "mirror", "mlflow", "--results", tmp_path, "--json")
    assert json.loads(done.out) == {"records": 3, "service": "mlflow"}
    assert list(mlflow.experiments.values()) == ["made", "other"]
    assert sorted((run["in"], run["status"]) for run in mlflow.runs.values()) == [
        ("0", "FAILED"), ("0", "FINISHED"), ("1", "FINISHED")
    ]  # fmt: skip
    expected = {found.hash: found for found in map(Run.of, map(read, tmp_path.glob("*/*.json")))}
    for run in mlflow.runs.values():
        own = expected[run["tags"].pop("infoprune.record")]
        assert (run["name"], run["params"], run["metrics"], run["tags"]) == (
            own.name, own.params, own.metrics, own.tags
        )  # fmt: skip


@pytest.mark.parametrize("service", mirrors.SERVICES)
@pytest.mark.slow
def test_the_real_service_takes_records(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow into files where it is installed; Weights & Biases comes with lmms-eval, offline into files."""
    pytest.importorskip(service)
    stored.put(tmp_path / "results", SCORES)
    stored.put(tmp_path / "results", None, error="out of memory", seed=1)
    where = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": (tmp_path / "runs").as_uri()}
    where |= {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    for key, value in where.items():
        monkeypatch.setenv(key, value)
    words = ["results", "mirror", service, "made", "--results", "results"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and f"are runs in {service}" in done.stdout, done
    runs = list(tmp_path.glob("runs/[0-9]*/*/meta.yaml" if service == "mlflow" else "wandb/offline-run-*/*.wandb"))
    assert len(runs) == 2, runs


def test_what_is_not_there_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored.put(tmp_path, SCORES)
    refused(call("results", "mirror", "mlflo", "--results", tmp_path), "unknown service 'mlflo'", "mean 'mlflow'")
    refused(call("sweep", "demo", "--mirror", "nothing", "--results", "r"), "unknown service", "mlflow, wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(call("results", "mirror", "wandb", "--results", tmp_path), "pip install 'infoprune-bench[wandb]'")


# --- sweeps -------------------------------------------------------------------------------------------------


def test_a_sweep_mirrors_each_record_as_written(mlflow: type[Client], tmp_path: Path) -> None:
    said: list[str] = []
    sweep(stubs.board(0, 1), tmp_path, inline=True, make=stubs.make, mirror=Mirror("mlflow", said.append))
    hashes = {read(path).hashes["record"] for path in tmp_path.glob("made/*.json")}
    assert {run["tags"]["infoprune.record"] for run in mlflow.runs.values()} == hashes and len(hashes) == 4
    assert not said


def test_a_service_that_fails_costs_no_record_and_is_named_once(
    mlflow: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    tries: list[str] = []

    def down(self: Client, name: str) -> None:
        tries.append(name)
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(Client, "get_experiment_by_name", down)
    said: list[str] = []
    outcome = sweep(stubs.board(0, 1), tmp_path, inline=True, make=stubs.make, mirror=Mirror("mlflow", said.append))
    assert outcome.ran == 4 and not outcome.failed and len(list(tmp_path.glob("made/*.json"))) == 4
    assert len(tries) == len(said) == 1
    assert "ConnectionError: nobody there" in said[0] and "infoprune results mirror mlflow made" in said[0]
    refused(call("results", "mirror", "mlflow", "--results", tmp_path), "0 of 4 records sent", "nobody there")
