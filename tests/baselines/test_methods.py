"""Scores of every method equal slow, literal versions on the tiny model, and ranking leaves the model as found."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from baselines import infoprune_free, magnitude, none, random, taylor
from baselines.infoprune.ffn import Ffn, factor
from baselines.infoprune.heads import Layer, Loss, score
from baselines.infoprune.spectrum import effective_rank, ks_distance, leading
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Additive, Budget, InputError, Keep, LowRank, Options, Ordinal, Ranking, Rows, Units
from tests.support.linears import inputs_of, weight_of
from tests.support.scores import scores_of

FACTOR: dict[str, Any] = {"arm": "factor"}
METHODS = ["none", "random", "magnitude", "taylor", "infoprune_free", "infoselect"]


@pytest.mark.parametrize("name", METHODS)
def test_ranking_is_whole_repeatable_and_leaves_no_trace(tiny: VLM, calibration: Calibration, name: str) -> None:
    rank = cast(Callable[..., Ranking], import_module(f"baselines.{name}").rank)
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    flags = [(weight.requires_grad, weight.grad) for weight in tiny.model.parameters()]
    modes = [module.training for module in tiny.model.modules()]
    first, second = rank(tiny, calibration, seed=3), rank(tiny, calibration, seed=3)
    expected = set() if name == "none" else {(block.name, kind) for block, kind in tiny.select("all")}
    assert set(first.scores) == expected
    for key, score_ in first.scores.items():
        other = second.scores[key]
        if isinstance(score_, Options):
            assert isinstance(other, Options)
            assert [(p.label, p.loss) for p in score_.points] == [(p.label, p.loss) for p in other.points]
        else:
            assert score_ == other
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
    assert [(weight.requires_grad, weight.grad) for weight in tiny.model.parameters()] == flags
    assert [module.training for module in tiny.model.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in tiny.model.modules())


def test_none_ranks_nothing(tiny: VLM, calibration: Calibration) -> None:
    assert none.rank(tiny, calibration, seed=0) == Ranking({})


def test_random_depends_on_the_seed_and_is_uniform(tiny: VLM, calibration: Calibration) -> None:
    draws = torch.tensor(
        [
            [
                value
                for part in random.rank(tiny, calibration, seed=seed).scores.values()
                for value in cast(Ordinal, part).order
            ]
            for seed in range(40)
        ]
    )
    assert len(draws.unique(dim=0)) == len(draws)
    deciles = torch.histc(draws, 10, 0, 1) / draws.numel()
    torch.testing.assert_close(deciles, torch.full((10,), 0.1), atol=0.01, rtol=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_magnitude_is_the_norm_of_the_weights_that_leave(tiny: VLM, calibration: Calibration, norm: Any) -> None:
    scores = magnitude.rank(tiny, calibration, seed=0, norm=norm).scores
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        literal = []
        for i in range(units.count):
            weights = [weight_of(tiny, units.consumer)[:, i * units.width : (i + 1) * units.width].flatten()]
            for rows in units.producers:
                start = rows.offset + i * rows.width
                weights.append(weight_of(tiny, rows.module)[start : start + rows.width].flatten())
            every = torch.cat(weights)
            literal.append(float(every.norm(p=2 if norm == "l2" else 1)))
        assert cast(Ordinal, scores[block.name, kind]).order == pytest.approx(literal)


@pytest.mark.parametrize("name", ["amp", "llm_pruner", "magnitude", "minitron", "osscar", "uniform", "wanda"])
def test_every_layer_keeps_half_of_its_units_the_best(tiny: VLM, calibration: Calibration, name: str) -> None:
    ranking = cast(Callable[..., Ranking], import_module(f"baselines.{name}").rank)(tiny, calibration, seed=0)
    plan = solve(tiny, ranking, Budget("all", 0.5, extents=calibration.extents))
    for block, kind in tiny.select("all"):
        kept = cast(Keep, plan.parts[block.name, kind]).indices
        assert len(kept) == block.units(kind).count // 2
        scores = scores_of(ranking, (block.name, kind))
        assert min(scores[i] for i in kept) >= max(s for i, s in enumerate(scores) if i not in kept)


@pytest.mark.parametrize("form", ["squared", "absolute"])
def test_taylor_averages_the_gate_gradients(tiny: VLM, calibration: Calibration, form: Any) -> None:
    scores = taylor.rank(tiny, calibration, seed=0, form=form).scores
    for key, gradient in calibration.gate_gradients().items():
        rows = gradient.tolist()
        damage = cast(Additive, scores[key]).damage
        for i, value in enumerate(damage):
            terms = [row[i] ** 2 if form == "squared" else abs(row[i]) for row in rows]
            assert value == pytest.approx(sum(terms) / len(terms))


# --- InfoPrune --------------------------------------------------------------------------------------------


def literal_loss(inputs: Tensor, weight: Tensor, kept: list[int], count: int, output: str, loss: Loss) -> float:
    """J by its definition: centre the activations, mask them, multiply by W_o, take the singular values."""
    width = inputs.shape[1] // count
    centred = inputs - inputs.mean(0)

    def spectrum(heads: list[int]) -> Tensor:
        parts = [centred[:, h * width : (h + 1) * width] @ weight[:, h * width : (h + 1) * width].T for h in heads]
        if not parts:
            return torch.zeros(weight.shape[1], dtype=torch.float64)
        made = sum(parts[1:], parts[0]) if output == "layer" else torch.cat(parts, 1)
        values = torch.linalg.svdvals(made) / len(inputs) ** 0.5
        return torch.nn.functional.pad(values, (0, max(0, weight.shape[1] - len(values))))[: weight.shape[1]]

    full, pruned = spectrum(list(range(count))), spectrum(kept)
    ratio = effective_rank(pruned, loss.distribution) / effective_rank(full, loss.distribution)
    k = leading(full, loss.k)
    return float(loss.alpha * ratio + loss.beta * ks_distance(full[:k], pruned[:k], loss.ks_over))


@pytest.mark.parametrize("output", ["layer", "head"])
@pytest.mark.parametrize("distribution, over, k", [("amplitude", "cumulative", 0.99), ("energy", "values", 5)])
def test_head_damage_is_the_change_of_j(
    tiny: VLM, calibration: Calibration, output: Any, distribution: Any, over: Any, k: float
) -> None:
    loss = Loss(0.5, 1.0, distribution, over, k)
    options: dict[str, Any] = {"distribution": distribution, "ks_over": over, "k": k, "output": output}
    greedy = infoprune_free.rank(tiny, calibration, seed=0, **options, **FACTOR)
    single = infoprune_free.rank(tiny, calibration, seed=0, search="leave-one-out", **options, **FACTOR)
    for block in tiny.blocks:
        count = block.heads.count
        inputs = inputs_of(tiny, calibration, block.heads.consumer)
        weight = weight_of(tiny, block.heads.consumer)

        def j(kept: list[int], count: int = count, inputs: Tensor = inputs, weight: Tensor = weight) -> float:
            return literal_loss(inputs, weight, kept, count, output, loss)

        everyone = list(range(count))
        alone = [j([h for h in everyone if h != gone]) - j(everyone) for gone in everyone]
        assert cast(Additive, single.scores[block.name, "heads"]).damage == pytest.approx(alone, abs=1e-4)

        damage, kept, highest = cast(Additive, greedy.scores[block.name, "heads"]).damage, everyone, float("-inf")
        for gone in greedy.log[block.name]["heads"]["removed"]:
            smaller = {h: j([other for other in kept if other != h]) for h in kept}
            assert smaller[gone] <= min(smaller.values()) + 1e-4  # the cheapest one left, but for rounding
            highest = max(highest, smaller[gone] - j(kept))
            assert damage[gone] == pytest.approx(highest, abs=1e-4)
            kept = [h for h in kept if h != gone]
        assert kept == []


def test_a_silent_or_copied_head_goes_first() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 4, 8, generator=generator, dtype=torch.float64)
    inputs[:, 2] = 0
    inputs[:, 1] = inputs[:, 3]
    inputs = inputs.flatten(1)
    weight = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    weight[:, 8:16] = weight[:, 24:]
    layer = Layer(torch.cov(inputs.T, correction=0), weight, 4)
    damage, log = score(layer, Loss())
    assert log["removed"][0] == 2
    assert damage[2] == pytest.approx(0, abs=1e-6)
    assert sorted(damage) == [damage[head] for head in log["removed"]]


def test_a_layer_without_variance_loses_nothing() -> None:
    damage, log = score(Layer(torch.zeros(8, 8), torch.ones(8, 8), 2), Loss(distribution="energy"))
    assert damage == [0, 0] and log["erank"] == 0


@pytest.mark.parametrize("whiten", [False, True])
def test_ffn_points_cost_and_lose_what_they_say(tiny: VLM, calibration: Calibration, whiten: bool) -> None:
    ranking = infoprune_free.rank(tiny, calibration, seed=0, whiten=whiten, **FACTOR)
    for block in tiny.blocks:
        points = cast(Options, ranking.scores[block.name, "ffn"]).points
        linears = [rows.module for rows in block.ffn.producers] + [block.ffn.consumer]
        sizes = {path: weight_of(tiny, path).numel() for path in linears}
        assert (points[0].label, points[0].loss, points[0].make) == ("dense", 0, None)
        assert points[0].token_macs == sum(sizes.values())
        costs = [point.token_macs for point in points]
        assert costs == sorted(set(costs), reverse=True)
        assert points[-1].token_macs == sum(sum(weight_of(tiny, path).shape) for path in linears)  # rank 1 everywhere
        for point in (points[1], points[len(points) // 2], points[-1]):
            assert point.make is not None
            made, lost, macs = point.make(), 0.0, 0
            for path in linears:
                weight = weight_of(tiny, path)
                if path not in made:
                    macs += sizes[path]
                    continue
                factors = made[path]
                assert isinstance(factors, LowRank)
                assert factors.down.numel() + factors.up.numel() < sizes[path]
                macs += factors.down.numel() + factors.up.numel()
                bias = tiny.model.get_submodule(path)._parameters["bias"]
                assert (factors.bias is None) == (bias is None)
                assert bias is None or (factors.bias is not bias and torch.equal(cast(Tensor, factors.bias), bias))
                error = weight - factors.up.double() @ factors.down.double()
                inputs = (
                    inputs_of(tiny, calibration, path) if whiten else torch.eye(weight.shape[1], dtype=torch.float64)
                )
                lost += float((inputs @ error.T).square().sum() / (inputs @ weight.T).square().sum())
            assert macs == point.token_macs
            assert lost == pytest.approx(point.loss, rel=1e-3, abs=1e-6)


def test_ffn_ranks_go_where_the_energy_per_multiply_add_is_least(tiny: VLM, calibration: Calibration) -> None:
    ranking = infoprune_free.rank(tiny, calibration, seed=0, whiten=False, **FACTOR)
    points = cast(Options, ranking.scores[tiny.blocks[0].name, "ffn"]).points
    fc1, fc2 = (weight_of(tiny, path) for path in (tiny.blocks[0].ffn.producers[0].module, tiny.blocks[0].ffn.consumer))
    shares = [torch.linalg.svdvals(w).square() / w.square().sum() for w in (fc1, fc2)]
    point = points[-10]
    first, second = (int(rank) for rank in point.label.removeprefix("rank ").split("/"))
    # Both Linears cost the same per rank here, so no direction that went may hold more than one that stayed.
    assert fc1.shape == fc2.T.shape
    gone = max(float(shares[0][first:].max()), float(shares[1][second:].max()))
    stayed = min(float(shares[0][:first].min()), float(shares[1][:second].min()))
    assert gone <= stayed + 1e-9


def test_options_make_the_same_factors_after_the_model_has_changed(tiny: VLM, calibration: Calibration) -> None:
    block = tiny.blocks[-1]
    point = cast(Options, infoprune_free.rank(tiny, calibration, seed=0, **FACTOR).scores[block.name, "ffn"]).points[-1]
    assert point.make is not None
    consumer = tiny.model.get_submodule(block.ffn.consumer)
    weight, before = consumer.weight, point.make()[block.ffn.consumer]
    consumer.weight = torch.nn.Parameter(torch.zeros(2, 2))
    try:
        after = point.make()[block.ffn.consumer]
    finally:
        consumer.weight = weight
    assert isinstance(before, LowRank) and isinstance(after, LowRank)
    assert torch.equal(before.down, after.down) and torch.equal(before.up, after.up)


def test_a_large_ffn_offers_fewer_points_but_both_ends() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(200, 800) for name in ("gate", "up")})
    model["down"] = torch.nn.Linear(800, 200)
    units = Units("ffn", 800, 1, (Rows("gate", 0, 1), Rows("up", 0, 1)), "down", 3 * 200, 0, gated=True)
    whole = factor(Ffn.found(model, units))[0].points
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("baselines.low_rank.POINTS", 50)
        fewer = factor(Ffn.found(model, units))[0].points
    assert 25 <= len(fewer) <= 51 < len(whole)
    assert [p.label for p in fewer] == [p.label for p in whole if p.label in {q.label for q in fewer}]
    assert (fewer[0].label, fewer[-1].label) == ("dense", "rank 1/1/1")


def test_infoprune_log_is_small_json(tiny: VLM, calibration: Calibration) -> None:
    ranking = infoprune_free.rank(tiny, calibration, seed=0)
    assert len(json.dumps(ranking.log)) < 1000 * len(tiny.blocks)
    assert set(ranking.log) == {block.name for block in tiny.blocks}


@pytest.mark.parametrize("k", [0, 0.0, 1.5, -1])
def test_infoprune_refuses_a_k_out_of_range(tiny: VLM, calibration: Calibration, k: float) -> None:
    with pytest.raises(InputError, match=f"k: {k} should be"):
        infoprune_free.rank(tiny, calibration, seed=0, k=k)
