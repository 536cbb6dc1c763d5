"""The paper's figures: known scores on made layers, damage against the model itself, and files that can be remade."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from baselines.infoprune import figures, inspect
from baselines.infoprune.heads import Layer, Loss, score
from baselines.infoprune.moments import regularised_moments
from baselines.infoprune_free import rank
from harness import tasks
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Additive, Budget, Choice, Keep, Options, Plan, Ranking
from tests.support.commands import Call
from tests.support.question_files import asked


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return Calibration(tiny, tasks.samples(asked(tasks.names(), "calibration"), 12, 0))


@pytest.fixture(scope="module")
def rows(tiny: VLM, calibration: Calibration) -> inspect.Rows:
    return inspect.heads(tiny, calibration)


def entropy(values: Tensor) -> float:
    share = values / values.sum()
    return float(torch.special.entr(share).sum())


def test_there_is_a_row_a_head_in_order(tiny: VLM, rows: inspect.Rows) -> None:
    expected = [(block.name, head) for block in tiny.blocks for head in range(block.heads.count)]
    assert [(row["block"], row["head"]) for row in rows] == expected


def test_entropy_is_that_of_a_heads_own_contribution(tiny: VLM, calibration: Calibration, rows: inspect.Rows) -> None:
    for block in (tiny.blocks[0], tiny.blocks[-1]):
        path = block.heads.consumer
        covariance = regularised_moments(calibration, [path])[0][path].covariance
        weight = tiny.model.get_parameter(f"{path}.weight").detach().double()
        for head in (0, block.heads.count - 1):
            own = slice(head * block.heads.width, (head + 1) * block.heads.width)
            made = weight[:, own] @ covariance[own, own] @ weight[:, own].T
            expected = entropy(torch.linalg.eigvalsh(made).clamp(min=0).sqrt())
            row = next(row for row in rows if (row["block"], row["head"]) == (block.name, head))
            assert row["entropy"] == pytest.approx(expected, rel=1e-4)


def test_importance_falls_with_entropy_from_1_to_0_in_each_component(rows: inspect.Rows) -> None:
    for component in ("vision", "language"):
        own = sorted((row for row in rows if row["component"] == component), key=lambda row: row["entropy"])
        assert (own[0]["importance"], own[-1]["importance"]) == (1, 0)
        assert [row["importance"] for row in own] == sorted((row["importance"] for row in own), reverse=True)


def test_damage_is_the_rise_of_the_loss_without_the_head(
    tiny: VLM, calibration: Calibration, rows: inspect.Rows
) -> None:
    block = tiny.blocks[1]
    path, head = block.heads.consumer, 2
    weight = tiny.model.get_parameter(f"{path}.weight")
    kept = weight.detach().clone()
    dense = calibration.answer_loss()
    try:
        weight.data[:, head * block.heads.width : (head + 1) * block.heads.width] = 0
        without = calibration.answer_loss()
    finally:
        weight.data.copy_(kept)
    row = next(row for row in rows if (row["block"], row["head"]) == (block.name, head))
    assert row["damage"] == pytest.approx(without - dense, abs=1e-6)
    gradient = calibration.gate_gradients()[block.name, "heads"][:, head]
    assert row["taylor"] == pytest.approx(float(gradient.square().mean()))


def test_j_and_the_greedy_score_are_the_methods_own(tiny: VLM, calibration: Calibration, rows: inspect.Rows) -> None:
    block = tiny.blocks[0]
    layer = Layer.of(tiny, block, regularised_moments(calibration, [block.heads.consumer])[0])
    own = [row for row in rows if row["block"] == block.name]
    assert [row["j"] for row in own] == score(layer, Loss(), "leave-one-out")[0]
    ranking = rank(tiny, calibration, seed=0)
    for block in tiny.blocks:
        own = [row["score"] for row in rows if row["block"] == block.name]
        assert own == pytest.approx(cast(Additive, ranking.scores[block.name, "heads"]).damage)


def test_agreement_of_planted_scores() -> None:
    rows = [
        {"component": "vision", "importance": i, "j": i**3, "score": -i, "taylor": 1.0, "damage": (i * 7) % 5}
        for i in range(5)
    ]
    found = inspect.agreement([*rows, {"component": "language"}], "vision")
    assert found["importance", "j"]["spearman"] == pytest.approx(1)
    assert found["importance", "score"]["spearman"] == pytest.approx(-1)
    assert found["importance", "taylor"]["spearman"] is None
    assert found["j", "damage"]["n"] == 5


def test_row_density_counts_rows_that_are_not_sparse() -> None:
    matrix = torch.zeros(4, 20)
    matrix[0, 0] = 1.0  # an L1 norm of 5 % of 20: dense
    matrix[1] = -0.04  # 0.8 in all: sparse
    matrix[2] = -0.06
    assert inspect.row_density(matrix) == 0.5


def test_ffn_rows_hold_what_the_plan_chose(tiny: VLM) -> None:
    parts: dict[Any, Any] = {(tiny.blocks[0].name, "ffn"): Keep((1, 2, 3))}
    scores: dict[Any, Any] = {(block.name, "ffn"): Additive((0.0,)) for block in tiny.blocks}
    plan = Plan(parts, 0.5, 0.5)
    rows = inspect.ffn(tiny, Ranking(scores), {"vision": plan, "language": plan})
    first, gated = tiny.blocks[0], tiny.blocks[-1]
    own = [row for row in rows if row["block"] == first.name]
    assert [row["matrix"] for row in own] == ["fc1", "fc2", "product"]
    assert {row["chosen"] for row in own} == {"channels 3"} and own[0]["kept"] == 3 / first.ffn.count
    assert [row["matrix"] for row in rows if row["block"] == gated.name] == ["gate_proj", "up_proj", "down_proj"]
    assert {row["chosen"] for row in rows if row["block"] == gated.name} == {"dense"}
    weights = [tiny.model.get_parameter(f"{path}.weight").double() for path in (
        first.ffn.producers[0].module, first.ffn.consumer)]  # fmt: skip
    exact = torch.linalg.svdvals(weights[1] @ weights[0])
    assert own[2]["spectrum"][0] == pytest.approx(1)
    assert own[2]["spectrum"][-1] == pytest.approx(float(exact[-1] / exact[0]), abs=1e-6)
    assert own[2]["l1"] == pytest.approx(float((weights[1] @ weights[0]).abs().mean()))


def test_chosen_options_are_named_with_their_share_of_the_cost(tiny: VLM, calibration: Calibration) -> None:
    ranking = rank(tiny, calibration, seed=0)
    plan = solve(tiny, ranking, Budget("vision", 0.5, "ffn", calibration.extents))
    rows = inspect.ffn(tiny, ranking, {"vision": plan, "language": Plan({}, 1, 1)})
    for block in tiny.blocks:
        row = next(row for row in rows if row["block"] == block.name)
        part, points = plan.parts.get((block.name, "ffn")), ranking.scores[block.name, "ffn"]
        if isinstance(part, Choice) and isinstance(points, Options):
            assert row["chosen"] == part.label == points.points[part.position].label
            assert row["kept"] == points.points[part.position].token_macs / points.points[0].token_macs
        else:
            assert (row["chosen"], row["kept"]) == ("dense", 1) and block.component == "language"


def test_survivors_and_their_overlap(tiny: VLM) -> None:
    scores: dict[Any, Any] = {(block.name, "heads"): Additive(tuple(range(block.heads.count))) for block in tiny.blocks}
    ranking = Ranking(scores)
    kept = {"a": (0, 1), "b": (1, 2)}
    plans = {
        (task, part): Plan({(block.name, "heads"): Keep(kept[task]) for block in tiny.blocks if part == "vision"}, 1, 1)
        for task in kept
        for part in ("vision", "language")
    }
    rows = inspect.survivors(tiny, {"a": ranking, "b": ranking}, plans)
    vision = [row for row in rows if row["block"] == tiny.blocks[0].name]
    assert [(row["task"], row["head"]) for row in vision if row["kept"]] == [("a", 0), ("a", 1), ("b", 1), ("b", 2)]
    assert [row["damage"] for row in vision] == [0, 1, 2, 3] * 2
    assert all(row["kept"] for row in rows if row["component"] == "language")
    assert inspect.overlap(rows, "vision") == {("b", "a"): pytest.approx(1 / 3)}
    assert inspect.overlap(rows, "language") == {("b", "a"): 1}


@pytest.mark.parametrize("figure", ["heads", "ffn", "survivors"])
def test_the_command_writes_picture_and_csv_and_remakes_them(
    call: Call, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, figure: str
) -> None:
    words = ("inspect", figure, "--model", tiny_folder, "--samples", 6, "--out", "here")
    done = call(*words)
    assert done.code == 0, done.err
    assert [Path(line).name for line in done.out.split()] == [f"{figure}.{kind}" for kind in ("png", "csv", "json")]
    record = json.loads(Path(f"here/{figure}.json").read_text())
    with Path(f"here/{figure}.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    with Image.open(f"here/{figure}.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(2**24) or []) > 20
    files = {path.name: path.read_bytes() for path in Path("here").iterdir()}

    def never(*args: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(inspect, figure, never)
    again = call(*words)
    assert again.code == 0 and "measured before" in again.err
    assert {path.name: path.read_bytes() for path in Path("here").iterdir()} == files
    assert json.loads(call(*words, "--json").out) == record
    with pytest.raises(AssertionError, match="measured again"):
        call(*words[:4], "--samples", 9, "--out", "here")


def test_a_model_of_one_component_is_drawn(tmp_path: Path, rows: inspect.Rows) -> None:
    vision = [row for row in rows if row["component"] == "vision"]
    record = {"model": "m", "weights": "w", "samples": 1, "rows": vision}
    figures.heads(record, tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 10_000


def test_an_unreachable_budget_is_one_line(call: Call, tiny_folder: Path) -> None:
    done = call("inspect", "survivors", "--model", tiny_folder, "--samples", 6, "--budget", 0.01)
    assert done.code == 2 and done.err.splitlines()[-1].startswith("error:") and "budget" in done.err
