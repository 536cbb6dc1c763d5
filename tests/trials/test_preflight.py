"""What cannot work is refused before anything runs, by a sweep and a dry run alike, and costs no pass of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from harness import api, families, registry
from harness.pruning import solver
from harness.trials import preflight, spec
from harness.trials.context import Context
from harness.trials.pruner import in_params
from harness.trials.worker import Worker
from harness.types import SCOPES, VLM, Budget, InputError, ReferenceInput
from tests.support.commands import Call, put, refused
from tests.support.layouts import ranking_of

SMALL = ReferenceInput((64, 64))


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is read, no pass is made."""

    def fail(*given: Any, **settings: Any) -> None:
        raise AssertionError("the model is not needed for this")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    monkeypatch.setattr(torch.nn.Linear, "forward", fail)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"budgets": [0.5, 0.001]},
            ["budgets: 0.001 of the FLOPs of both in scope vision", "smallest reachable is 0."],
        ),
        ({"budgets": [0.01], "scopes": ["vision", "all"]}, ["0.01 of the FLOPs of both in scope"]),
        ({"budgets": [0.2], "units": "heads"}, ["0.2 of the FLOPs of heads in scope vision", "reachable is 0.25"]),
        ({"budgets": [0.01], "units": "ffn"}, ["0.01 of the FLOPs of ffn in scope vision"]),
        ({"budgets": [0.001], "currency": "params"}, ["0.001 of the FLOPs of both"]),
        ({"align": 1000}, ["0.5 of the FLOPs of both", "widths in multiples of 1000", "reachable is 1.0"]),
        (
            {
                "budgets": [0.001],
                "methods": [{"method": "random", "tuning": {"method": "full", "rounds": 3, "samples": 4}}],
            },
            ["0.001"],
        ),
        ({"attention": "flash_attention_2"}, ["attention: flash_attention_2 needs"]),
        ({"methods": ["dgmr"]}, ["dgmr ranks ffn only", "units: both"]),
        ({"tuning": {"method": "full", "samples": 10**6}}, ["tuning.samples"]),
        ({"generation": {"suppress_tokens": [10**7]}}, ["generation.suppress_tokens: 10000000 is no token"]),
    ],
)
@pytest.mark.parametrize("flag", ["--dry-run", "--inline", "--jobs=2"])
def test_failures_known_beforehand(
    never_run: None,
    call: Call,
    tmp_path: Path,
    board: dict[str, Any],
    change: dict[str, Any],
    words: list[str],
    flag: str,
) -> None:
    file = put(tmp_path / "board.yaml", {**board, **change})
    refused(call("sweep", file, flag), *words)
    if flag == "--inline":
        with pytest.raises(InputError, match=words[0].split(":")[0]):
            api.sweep({**board, **change}, results="results")
        assert not list(Path().iterdir())


def test_prune_finds_a_budget_out_of_reach_before_it_ranks(
    call: Call, tiny_folder: Path, tmp_path: Path, questions: Path
) -> None:
    put(tmp_path / "slow.py", "def rank(vlm, calibration, *, seed):\n    raise AssertionError('hours')\n")
    words = ("prune", tiny_folder, "--method", tmp_path / "slow.py", "--data", questions, "--samples", 2)
    for budget in ("0.001", "params=0.001"):
        refused(call(*words, "--budget", budget, "--out", "out"), "0.001 of the FLOPs", "smallest reachable is 0.")


@pytest.mark.parametrize("name", registry.boards())
def test_shipped_boards_have_budgets_within_reach(name: str, every_model: None) -> None:
    board = spec.read(name)
    assert preflight.check(board, board.trials(), fetch=False) == ()


def test_a_model_without_weights_is_measured_as_with_them(tiny: VLM, tiny_folder: Path) -> None:
    shapes = families.load(tiny_folder, device="meta", random_weights=True)
    assert all(weight.is_meta for weight in shapes.model.parameters())
    assert shapes.blocks == tiny.blocks
    assert Context(SMALL).extents(shapes) == Context(SMALL).extents(tiny)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("units", ["both", "heads", "ffn"])
@pytest.mark.parametrize("currency", ["flops", "params"])
def test_what_is_refused_is_what_no_plan_meets(tiny: VLM, scope: Any, units: Any, currency: str) -> None:
    """Just above the smallest reachable budget the solver has a plan, just below it has none."""
    budget = Budget(scope, 1e-6, units, Context(SMALL).extents(tiny))
    budget = in_params(budget) if currency == "params" else budget
    with pytest.raises(InputError, match="smallest reachable is") as error:
        solver.check(tiny, budget)
    least = float(str(error.value).rsplit(" ", 1)[-1])
    ranking = ranking_of(tiny, "additive")
    above, below = replace(budget, keep=1.005 * least), replace(budget, keep=0.97 * least)
    solver.check(tiny, above)
    assert solver.solve(tiny, ranking, above).achieved == pytest.approx(least, rel=0.01)
    for call in (lambda: solver.check(tiny, below), lambda: solver.solve(tiny, ranking, below)):
        with pytest.raises(InputError, match="smallest reachable is"):
            call()


def test_budgets_of_time_are_left_to_the_run(board: dict[str, Any]) -> None:
    checked = spec.check({**board, "currency": "latency", "budgets": [0.001]}, Path("board.yaml"))
    assert preflight.check(checked, checked.trials()) == ()
    record = Worker("cpu").run(checked.trials()[1]).record
    assert record.error and record.error.phase == "prices" and record.cost.ranking_s is None


def test_a_finished_board_needs_no_model(board: dict[str, Any]) -> None:
    checked = spec.check({**board, "budgets": [0.001]}, Path("board.yaml"))
    assert preflight.check(checked, []) == ()


def test_a_changed_checkpoint_is_looked_at_anew(board: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    checked = spec.check({**board, "model": str(folder)}, Path("board.yaml"))
    assert preflight.check(checked, checked.trials()) == ()
    put(folder / "generation_config.json", '{"min_new_tokens": 6}')
    assert "min_new_tokens=6" in preflight.check(checked, checked.trials())[0]
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="chat_template"):
        preflight.check(checked, checked.trials())
