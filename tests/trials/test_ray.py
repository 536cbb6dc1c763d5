"""Sweeps on a real Ray cluster of three nodes, one of which is killed: the same records as in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.records.record import Code
from harness.trials import spec
from harness.trials.executors.local import TrialLimits
from harness.trials.result import Result
from harness.trials.sweep import Cluster, sweep
from harness.types import Trial
from tests.support import stubs
from tests.support.kills import timeless
from tests.support.paths import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two nodes, each of one core, as processes of this machine; their workers see this code."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(RAY_USAGE_STATS_ENABLED="0").items():
            patch.setenv(key, value)
        from ray.cluster_utils import Cluster as Nodes

        small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
        made: Any = Nodes(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        made.victim = made.add_node(**small)
        made.add_node(**small)
        yield made
        made.shutdown()


class Slow(stubs.Stub):
    """Says which process it is; a kept model would be its `number`."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def run(self, trial: Trial, answers: Sequence[str] = ()) -> Result:
        import time

        time.sleep(0.5)
        self.number += 1
        result = super().run(trial)
        env = {"process": os.getpid(), "number": self.number, "adopted": self.ranking == trial.ranking}
        return result._replace(record=replace(result.record, env={**env, "answers": list(answers)}))


def slow(device: str, jobs: int, progress: Any) -> Slow:
    return Slow()


class Noting(stubs.Stub):
    """Notes on disk which trials it begins; seed 96 hangs while it is ranked."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        stubs.record_of(stubs.board(0).trials()[0])  # what is imported or hashed once is no part of a trial's time

    def share(self, trial: Trial) -> tuple[str, ...]:
        if trial.seed == 96:
            import time

            time.sleep(300)
        return super().share(trial)

    def run(self, trial: Trial, answers: Sequence[str] = ()) -> Result:
        with (Path(self.folder) / "begun").open("a") as file:
            file.write(f"{trial.seed}\n")
        return super().run(trial)


def noting(folder: str, device: str, jobs: int, progress: Any) -> Noting:
    return Noting(folder)


def records(folder: Path) -> dict[str, Any]:
    """Records and samples without times and machine."""
    return {
        name: replace(content, env={}, code=Code()) if name.endswith(".json") else content
        for name, content in timeless(folder).items()
    }


def test_a_node_dies_and_the_records_are_the_same(cluster: Any, tmp_path: Path, count: Callable[[str], None]) -> None:
    """Its tasks run again elsewhere; workers are kept, and every trial got its ranking from the task that made it."""
    board = stubs.board(*range(6))
    killed: list[int] = []

    def progress(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
        if done == 3 and not killed:
            killed.append(done)
            cluster.remove_node(cluster.victim, allow_graceful=False)

    outcome = sweep(board, tmp_path / "ray", cluster=Cluster(cluster.address), make=slow, progress=progress)
    assert (outcome.ran, outcome.failed, killed) == (12, (), [3])
    sweep(board, tmp_path / "local", inline=True, make=stubs.make)
    found = stubs.contents(tmp_path / "ray" / "made")
    assert records(tmp_path / "ray" / "made") == records(tmp_path / "local" / "made")
    machines = [one.env for name, one in timeless(tmp_path / "ray" / "made").items() if name.endswith(".json")]
    assert len(found) == 24 and all(one["adopted"] for one in machines)
    assert len({one["process"] for one in machines}) < 12 and max(one["number"] for one in machines) > 1
    count(f"{outcome.ran} trials on {len({one['process'] for one in machines})} workers, a node killed after 3")


def test_a_worker_that_keeps_dying_is_a_failure(cluster: Any, tmp_path: Path) -> None:
    """One that raises has failed too, by its own name."""
    board = stubs.board(0, 95, 98, budgets=(0.5,))
    outcome = sweep(board, tmp_path / "ray", cluster=Cluster(cluster.address), make=stubs.make)
    raised, died = sorted(outcome.failed)
    assert outcome.ran == 3 and "seed 95: worker: RuntimeError: a stub with a fault" in raised
    assert "seed 98: worker: WorkerDied: on the cluster, 4 times" in died


def test_what_ray_ends_for_memory_has_failed(tmp_path: Path) -> None:
    """On a Ray of this machine's own, to which any memory in use is too much: no trial runs for ever.

    In a process of its own: a second Ray, started beside the cluster, is no company for the tests to come.
    """
    code = (
        "import sys; from pathlib import Path; from harness.trials.sweep import Cluster, sweep;"
        "from tests.support import stubs;"
        "board = stubs.board(97, budgets=(0.5,));"
        "print(sweep(board, Path(sys.argv[1]), cluster=Cluster(), make=stubs.make).failed)"
    )
    env = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=300,
    )
    assert "seed 97: worker: WorkerDied: on the cluster, 4 times" in done.stdout, done.stderr
    assert "memory" in done.stdout


def test_what_hears_of_starts_may_die(cluster: Any, tmp_path: Path) -> None:
    """The process behind the time limit is killed in the middle: another takes its place, and no trial is lost."""
    killed: list[str] = []

    def progress(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
        if done == 2 and not killed:
            killed.extend(subprocess.check_output(["pgrep", "--full", "^ray::_Starts"], text=True).split())
            subprocess.check_call(["kill", "-KILL", *killed])

    board, limits = stubs.board(*range(4)), TrialLimits(seconds=60)
    nodes = Cluster(cluster.address)
    outcome = sweep(board, tmp_path / "ray", cluster=nodes, limits=limits, make=slow, progress=progress)
    assert (outcome.ran, outcome.failed, len(killed)) == (8, (), 1)


def test_a_trial_that_hangs_is_ended_and_the_sweep_goes_on(cluster: Any, tmp_path: Path) -> None:
    """Seed 97 hangs, its ranking being made; what queues behind it is in time. Nothing is run twice."""
    board, limits = stubs.board(97, 0, 1), TrialLimits(seconds=10)
    outcome = sweep(
        board, tmp_path / "ray", cluster=Cluster(cluster.address), limits=limits, make=partial(noting, str(tmp_path))
    )
    assert outcome.ran == 6 and len(outcome.failed) == 2
    assert all("seed 97: worker: TimeLimit: not done within 10 s" in line for line in outcome.failed)
    assert sorted((tmp_path / "begun").read_text().split()) == ["0", "0", "1", "1", "97", "97"]


def test_a_ranking_that_hangs_is_the_end_of_its_trials(cluster: Any, tmp_path: Path) -> None:
    board, limits = stubs.board(96, 0), TrialLimits(seconds=10)
    outcome = sweep(
        board, tmp_path / "ray", cluster=Cluster(cluster.address), limits=limits, make=partial(noting, str(tmp_path))
    )
    assert outcome.ran == 4 and len(outcome.failed) == 2
    assert all("seed 96: worker: TimeLimit: not done within 10 s" in line for line in outcome.failed)
    assert (tmp_path / "begun").read_text().split() == ["0", "0"]


def test_questions_are_shared_out(cluster: Any, tmp_path: Path) -> None:
    board = stubs.board(0, budgets=(0.7, 0.5))
    outcome = sweep(board, tmp_path / "ray", cluster=Cluster(cluster.address, shards=3), make=slow)
    assert outcome.ran == 2 and not outcome.failed
    for name, made in timeless(tmp_path / "ray" / "made").items():
        if name.endswith(".json"):
            assert made.env["answers"] == [f"{made.id} {k} of 3" for k in range(3)] and made.env["adopted"]


def test_real_trials_are_the_same(cluster: Any, tmp_path: Path, board: dict[str, Any]) -> None:
    """Of a low-rank method: its ranking goes through the object store, with what makes the factors."""
    own = {**board, "methods": ["svd"], "units": "ffn", "budgets": [0.8, 0.6], "metrics": ["flops", "accuracy"]}
    read = spec.check({**own, "floors": False, "limit": 4, "scopes": ["vision"]}, tmp_path / "b.yaml")
    sweep(read, tmp_path / "ray", cluster=Cluster(cluster.address))
    sweep(read, tmp_path / "shards", cluster=Cluster(cluster.address, shards=2))
    sweep(read, tmp_path / "local", inline=True)
    found = records(tmp_path / "ray" / "small")
    assert found == records(tmp_path / "local" / "small") and len(found) == 6
    assert found == records(tmp_path / "shards" / "small")
    assert {content.status for name, content in found.items() if name.endswith(".json")} == {"ok"}
