"""Sweeps on a real Ray cluster of three nodes, one of which is killed: the same records as in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stubs
from kills import timeless

from harness import spec
from harness.executors import Result
from harness.sweep import Cluster, sweep
from harness.types import Trial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two nodes, each of one core, as processes of this machine; their workers see this code."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        for key, value in {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}.items():
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
        super().__init__(lambda text: None)
        self.number = 0

    def run(self, trial: Trial) -> Result:
        import time

        time.sleep(0.5)
        self.number += 1
        made, samples = super().run(trial)
        made["env"] = {"process": os.getpid(), "number": self.number, "adopted": self.ranking == trial.ranking}
        return made, samples


def slow(device: str, jobs: int, progress: Any) -> Slow:
    return Slow()


def records(folder: Path) -> dict[str, Any]:
    """Records and samples without times and machine."""
    return {
        name: {**one, "env": {}, "code": {}} if name.endswith(".json") else one
        for name, one in timeless(folder).items()
    }


def test_a_node_dies_and_the_records_are_the_same(cluster: Any, tmp_path: Path) -> None:
    """Its tasks run again elsewhere; workers are kept, and every trial got its ranking from the task that made it."""
    board = stubs.board(*range(6))
    killed: list[int] = []

    def progress(finished: int, text: str) -> None:
        if finished == 3 and not killed:
            killed.append(finished)
            cluster.remove_node(cluster.victim, allow_graceful=False)

    outcome = sweep(board, tmp_path / "ray", cluster=Cluster(cluster.address), make=slow, progress=progress)
    assert (outcome.ran, outcome.failed, killed) == (12, (), [3])
    sweep(board, tmp_path / "local", inline=True, make=stubs.make)
    found = stubs.contents(tmp_path / "ray" / "made")
    assert records(tmp_path / "ray" / "made") == records(tmp_path / "local" / "made")
    machines = [one["env"] for name, one in timeless(tmp_path / "ray" / "made").items() if name.endswith(".json")]
    assert len(found) == 24 and all(one["adopted"] for one in machines)
    assert len({one["process"] for one in machines}) < 12 and max(one["number"] for one in machines) > 1


def test_a_worker_that_keeps_dying_is_a_failure(cluster: Any, tmp_path: Path) -> None:
    board = stubs.board(0, 98, budgets=(0.5,))
    outcome = sweep(board, tmp_path / "ray", cluster=Cluster(cluster.address), make=stubs.make)
    assert outcome.ran == 2 and len(outcome.failed) == 1 and "WorkerDied: on the cluster, 4 times" in outcome.failed[0]


def test_real_trials_are_the_same(cluster: Any, tmp_path: Path, board: dict[str, Any]) -> None:
    """Of a low-rank method: its ranking goes through the object store, with what makes the factors."""
    own = {**board, "methods": ["svd"], "units": "ffn", "budgets": [0.8, 0.6], "metrics": ["flops", "accuracy"]}
    read = spec.check({**own, "floors": False, "limit": 4, "scopes": ["vision"]}, tmp_path / "b.yaml")
    sweep(read, tmp_path / "ray", cluster=Cluster(cluster.address))
    sweep(read, tmp_path / "local", inline=True)
    found = records(tmp_path / "ray" / "small")
    assert found == records(tmp_path / "local" / "small") and len(found) == 6
    assert {one["status"] for name, one in found.items() if name.endswith(".json")} == {"ok"}
