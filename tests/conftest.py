"""A tiny random Qwen2-VL in the real classes, made once per test session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest

from harness import registry
from harness.types import VLM
from tests.support.commands import Call, Done
from tests.support.question_files import question_rows, write_parquet

# How long an example takes depends on what else the machine does, and is no verdict on the code. Where CI is set, every
# run has the same examples, so that a run fails for what changed; elsewhere each run tries new ones.
hypothesis.settings.register_profile(
    "any-machine",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from harness.checks.method_contract import TEXT, VISION
    from harness.reference.model import build

    return build(tmp_path_factory.mktemp("tiny") / "checkpoint", vision=VISION, text=TEXT)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> VLM:
    from harness.families import load

    return load(tiny_folder, name="tiny")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """The console script's function in this process and in an empty folder."""
    from harness import cli

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["infoprune", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return Done(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of the family of those that `infoprune reference build` makes, with wide FFNs as theirs."""
    from tests.support.family_configs import build

    def wide(config: Any) -> Any:
        for part in (config.vision_config, config.text_config):
            part.intermediate_size = 16 * part.hidden_size
        return config

    return build("internvl", tmp_path_factory.mktemp("built") / "model", change=wide)


@pytest.fixture
def every_model(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is built on a machine, shipped boards can be read: `stand_in` is there instead."""
    for name in registry.BUILT:
        monkeypatch.setitem(registry.MODELS, name, stand_in)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this machine's measured rates are kept, empty."""
    from harness.machine import limits

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limits._cached.cache_clear()
    return tmp_path / "cache" / "infoprune-bench"


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says how much a test has tried; shown at the end of the run, whichever process the test ran in."""
    return lambda text: record_property("count", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for text in (text for name, text in report.user_properties if name == "count"):
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {text}")


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("questions") / "mine.parquet", question_rows("mini_vqav2", 10))


@pytest.fixture(scope="session")
def made_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three shipped names with small made sets behind them: 8 images per split, none shared."""
    from harness import tasks

    root = tmp_path_factory.mktemp("sets")
    for place, split in enumerate(tasks.SPLITS):
        for form in tasks.names():
            write_parquet(root / form / f"{split}.parquet", question_rows(form, 8, start=100 * place))
    return root


@pytest.fixture
def sets(made_sets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from harness.tasks import data

    monkeypatch.setattr(data, "REFERENCE", made_sets)
    return made_sets


@pytest.fixture
def board(tiny_folder: Path, questions: Path) -> dict[str, Any]:
    """A board that would run: two methods on a tiny model and a made parquet file."""
    return {
        "name": "small",
        "model": str(tiny_folder),
        "methods": ["random", "magnitude"],
        "budgets": [0.5],
        "tasks": [str(questions)],
        "calibration": {"samples": 4},
        "reference_input": {"image": [64, 64]},
    }
