"""Boards of whole layers, from the file to records, pages and exported folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import families
from harness.checkpoints import export
from harness.records import record
from harness.records.record import Record
from harness.records.store import verify
from harness.report.leaderboards import report
from harness.trials.context import Context
from harness.types import TOLERANCE, InputError, Plan, kinds
from tests.support.boards import FinishedSweep, read_board
from tests.support.deep_configs import deep
from tests.support.family_configs import build
from tests.support.outputs import logits

pytestmark = pytest.mark.slow  # each board is a sweep
LORA = {"method": "lora", "samples": 4, "steps": 2, "batch": 2, "rank": 2}
ROUNDS = {"method": "full", "samples": 4, "steps": 2, "batch": 2, "rounds": 2}
BOTH = {"layers": 0.5, "ffn": 0.5}
BOARDS: dict[str, dict[str, Any]] = {
    "alone": {
        "units": ["layers"],
        "budgets": [0.6],
        "methods": [
            "drop_last",
            {"method": "shortgpt", "tuning": ["none", "refit", LORA]},
            {"method": "leave_one_out", "control": "random-units"},
        ],
    },
    "mixed": {
        "units": ["layers", "ffn"],
        "budgets": [0.5],
        "methods": [
            {"method": "shortgpt", "tuning": ["none", "bias", ROUNDS]},
            {"method": "shortgpt", "shares": BOTH},
            {"method": "random_layers", "control": "random-units"},
            {"method": "shortgpt", "sequential": True},
            "leave_one_out",
        ],
    },
    "weights": {"units": ["layers", "heads", "ffn"], "budgets": [0.6], "currency": "params", "methods": ["shortgpt"]},
}


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen2_5_vl", tmp_path_factory.mktemp("deep") / "checkpoint", change=deep)


@pytest.fixture(scope="module", params=BOARDS)
def run(
    request: pytest.FixtureRequest, deep_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> FinishedSweep:
    root = tmp_path_factory.mktemp(request.param)
    board = read_board(
        root, deep_folder, questions, **BOARDS[request.param],
        metrics=["flops", "accuracy"], limit=2, scopes=["all"], floors=False,
    )  # fmt: skip
    return FinishedSweep(board, root / "results", inline=True)


def pruned(run: FinishedSweep) -> list[Record]:
    found, problems = record.load(run.results / "small")
    assert not problems and not run.outcome.failed, run.outcome.failed
    return [made for made in found if made.trial.method != "none"]


def test_records_hold_what_was_measured(run: FinishedSweep) -> None:
    """The plan's share is the measured one: of a mixture within the tolerance, of layers alone at most the budget."""
    for made in pruned(run):
        plan, kept = made.plan, made.metrics["flops"]["kept"]
        assert plan is not None and plan.gone, made.trial
        if made.trial.currency == "flops":
            assert plan.achieved == pytest.approx(kept, rel=1e-9)
        off = plan.achieved / made.trial.budget - 1
        assert off <= TOLERANCE * made.trial.tuning.rounds and (abs(off) <= 2 * TOLERANCE or plan.coarse)
        assert not plan.coarse or made.trial.units == "layers"
        assert {kind for _, kind in plan.parts} <= set(kinds(made.trial.units))
        again = Record.of(json.loads(json.dumps(made.to_json())))
        assert again.plan == plan and again.id == made.id
    assert verify(run.results)[1] == []


def test_pages_and_tables_show_layers(run: FinishedSweep, tmp_path: Path) -> None:
    report(run.results, tmp_path)
    text = (tmp_path / "small" / "README.md").read_text()
    page = "".join(file.read_text() for file in (tmp_path / "small").glob("*.html"))
    assert '"removed"' in page and "layers" in text
    coarse = [made for made in pruned(run) if made.plan is not None and made.plan.coarse]
    assert ("(keeps 0." in text) == bool(coarse)


def test_every_plan_is_exported_and_made_again(run: FinishedSweep, deep_folder: Path, tmp_path: Path) -> None:
    for number, made in enumerate(pruned(run)[::2]):
        done = export.export(run.results, made.id, tmp_path / str(number))
        if made.trial.units == "layers" and made.trial.tuning.method == "none":
            assert done.form == "plain"
        again = families.load(tmp_path / str(number))
        inputs = Context(made.trial.reference_input).inputs(again)
        if made.trial.tuning.method == "none" and made.trial.control == "none":
            export.load(tmp_path / str(number) / "plan.json", str(deep_folder), tmp_path / f"{number} again")
            twice = families.load(tmp_path / f"{number} again")
            assert torch.equal(logits(twice, inputs), logits(again, inputs))


def test_a_plan_that_leaves_no_block_is_refused(run: FinishedSweep, deep_folder: Path, tmp_path: Path) -> None:
    from harness.types import short_hash

    made = next(made for made in pruned(run) if made.trial.tuning.method == "none" and made.trial.control == "none")
    content = made.to_json()
    for block, words in (("vision", "no block of vision would stay"), ("tower", "has no such block")):
        content["plan"]["blocks"] = {f"{block}.{i}": {"layers": []} for i in range(4)}
        content["hashes"]["plan"] = short_hash(content["plan"])
        file = tmp_path / f"{block}.json"
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=rf"{block}.json: plan.*{words}"):
            export.load(file, str(deep_folder), tmp_path / "out")
    assert Plan.of(made.to_json()["plan"]) == made.plan
