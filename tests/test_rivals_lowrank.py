"""Low-rank rivals: factors equal the papers' formulas, points cost what they say, ranks land as published."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from baselines import asvd, d_rank, svd, svd_llm
from baselines.low_rank import Factorable, equal_shares, factorables, low_rank
from harness import surgery
from harness.budget import aligned, solve
from harness.calibration import Calibration
from harness.families._pruned import LowRankLinear
from harness.prompts import encode
from harness.types import (
    VLM,
    Budget,
    Choice,
    Extent,
    InputError,
    LowRank,
    Option,
    Options,
    Ranking,
    Rows,
    Sample,
    Units,
)


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (7, 56, 84, 3), generator=generator, dtype=torch.uint8)
    samples = [Sample(Image.fromarray(p.numpy()), "How many stars?"[: 9 + i], "two") for i, p in enumerate(pixels)]
    return Calibration(tiny, samples, batch_size=3)


def inputs_of(vlm: VLM, calibration: Calibration, path: str) -> Tensor:
    """What the Linear reads, each sample run alone and so without padding; float64."""
    seen: list[Tensor] = []
    hook = vlm.model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for s in calibration.samples:
            vlm.model(**encode(vlm.processor, [[s.image]], [s.question], [s.answer]))
    hook.remove()
    return torch.cat([rows.flatten(0, -2) for rows in seen]).double()


def weight_of(vlm: VLM, path: str) -> Tensor:
    return vlm.model.get_parameter(f"{path}.weight").detach().double()


def paths_of(units: Units) -> list[str]:
    return [*(rows.module for rows in units.producers), units.consumer]


def points_of(ranking: Ranking, block: str) -> tuple[Option, ...]:
    return cast(Options, ranking.scores[block, "ffn"]).points


def ranks_of(point: Option, linears: int) -> list[int | None]:
    if point.label == "dense":
        return [None] * linears
    return [None if word == "dense" else int(word) for word in point.label.removeprefix("rank ").split("/")]


METHODS: dict[str, Any] = {"svd": svd, "svd_llm": svd_llm, "asvd": asvd, "d_rank": d_rank}


def scaling(name: str, inputs: Tensor) -> Tensor:
    """S of the paper, with W S what is decomposed: nothing, a Cholesky factor, or a diagonal."""
    if name == "svd":
        return torch.eye(inputs.shape[1], dtype=torch.float64)
    if name == "asvd":
        return inputs.abs().mean(0).sqrt().diag()
    second = inputs.T @ inputs / len(inputs)
    return torch.linalg.cholesky(second + 1e-9 * second.diagonal().mean() * torch.eye(len(second)))


@pytest.mark.parametrize("name", METHODS)
def test_points_are_the_papers_factors_at_what_they_cost(tiny: VLM, calibration: Calibration, name: str) -> None:
    few = {"samples": 2} if name == "asvd" else {}
    ranking = METHODS[name].rank(tiny, calibration, seed=0, **few)
    assert set(ranking.scores) == {(block.name, "ffn") for block in tiny.blocks}
    for block in (tiny.blocks[0], tiny.blocks[-1]):
        points, paths = points_of(ranking, block.name), paths_of(block.ffn)
        assert (points[0].label, points[0].loss, points[0].make) == ("dense", 0, None)
        assert points[-1].label == "rank " + "/".join("1" for _ in paths)
        assert [p.token_macs for p in points] == sorted({p.token_macs for p in points}, reverse=True)
        assert [p.loss for p in points] == sorted({p.loss for p in points})
        for point in (points[len(points) // 3], points[-1]):
            assert point.make is not None
            made, macs = point.make(), 0
            for path, rank in zip(paths, ranks_of(point, len(paths)), strict=True):
                weight = weight_of(tiny, path)
                if rank is None:
                    assert path not in made
                    macs += weight.numel()
                    continue
                pair = cast(LowRank, made[path])
                assert pair.down.shape == (rank, weight.shape[1]) and pair.up.shape == (weight.shape[0], rank)
                macs += pair.down.numel() + pair.up.numel()
                s = scaling(name, inputs_of(tiny, calibration, path))
                u, values, vt = torch.linalg.svd(weight @ s, full_matrices=False)
                literal = u[:, :rank] * values[:rank] @ vt[:rank] @ torch.linalg.inv(s)
                torch.testing.assert_close(
                    pair.up.double() @ pair.down.double(), literal, atol=1e-3 * float(literal.abs().max()), rtol=1e-3
                )
                bias = tiny.model.get_submodule(path)._parameters["bias"]
                assert (pair.bias is None) == (bias is None)
                assert bias is None or (pair.bias is not bias and torch.equal(cast(Tensor, pair.bias), bias))
            assert macs == point.token_macs


@pytest.mark.parametrize("name, options", [("svd", {}), ("svd_llm", {}), ("asvd", {"allocation": "uniform"})])
@pytest.mark.parametrize("tokens", [1, 3])
def test_every_linear_keeps_the_same_share(
    tiny: VLM, calibration: Calibration, name: str, options: dict[str, Any], tokens: int
) -> None:
    """Whatever the components' numbers of tokens are."""
    extents = dict(calibration.extents)
    extents["vision"] = replace(extents["vision"], tokens=extents["vision"].tokens * tokens)
    ranking = METHODS[name].rank(tiny, calibration, seed=0, **options)
    for keep in (0.7, 0.4):
        plan = solve(tiny, ranking, Budget("all", keep, "ffn", extents), tolerance=0.03)
        for block in tiny.blocks:
            choice = cast(Choice, plan.parts[block.name, "ffn"])
            point = points_of(ranking, block.name)[choice.position]
            for path, rank in zip(paths_of(block.ffn), ranks_of(point, 9), strict=False):
                one = sum(weight_of(tiny, path).shape) / weight_of(tiny, path).numel()
                assert rank is not None and abs(rank * one - keep) <= 2 * one


def test_a_cut_model_computes_what_the_factors_say(tiny: VLM, calibration: Calibration) -> None:
    ranking = svd_llm.rank(tiny, calibration, seed=0)
    plan = solve(tiny, ranking, Budget("all", 0.5, "ffn", calibration.extents), tolerance=0.03)
    pruned = surgery.apply(tiny, plan, ranking)
    for block in tiny.blocks:
        point = points_of(ranking, block.name)[cast(Choice, plan.parts[block.name, "ffn"]).position]
        assert point.make is not None
        for path, pair in point.make().items():
            x = torch.randn(3, weight_of(tiny, path).shape[1], generator=torch.Generator().manual_seed(0))
            assert isinstance(pair, LowRank)
            expected = x @ pair.down.T @ pair.up.T + (0 if pair.bias is None else pair.bias)
            torch.testing.assert_close(pruned.model.get_submodule(path)(x), expected, atol=1e-5, rtol=1e-4)


def test_d_rank_gives_ranks_by_the_square_root_of_effective_rank_over_cost(tiny: VLM, calibration: Calibration) -> None:
    """k = budget * sqrt(R / w) / sum(sqrt(R w)), as in the released code, where no Linear stays dense."""
    ranking = d_rank.rank(tiny, calibration, seed=0)
    blocks = [block for block in tiny.blocks if block.component == "language"]
    effective, costs, found = [], [], []
    plan = solve(tiny, ranking, Budget("language", 0.4, "ffn", calibration.extents))
    for block in blocks:
        point = points_of(ranking, block.name)[cast(Choice, plan.parts[block.name, "ffn"]).position]
        found += ranks_of(point, 3)
        for path in paths_of(block.ffn):
            weight, inputs = weight_of(tiny, path), inputs_of(tiny, calibration, path)
            energy = torch.linalg.svdvals(weight @ inputs.T).square()
            p = energy / energy.sum()
            effective.append(float(torch.special.entr(p).sum().exp()))
            costs.append(sum(weight.shape))
            logged = ranking.log["effective_rank"][block.name][path.rsplit(".", 1)[-1]]
            assert logged == pytest.approx(effective[-1], rel=1e-2)
    budget = plan.achieved * sum(weight_of(tiny, path).numel() for block in blocks for path in paths_of(block.ffn))
    total = sum(math.sqrt(r * w) for r, w in zip(effective, costs, strict=True))
    for rank, r, w in zip(found, effective, costs, strict=True):
        assert rank == pytest.approx(budget * math.sqrt(r / w) / total, abs=1.5)


def test_asvd_measures_each_linear_alone(tiny: VLM, calibration: Calibration) -> None:
    few = Calibration(tiny, calibration.samples[:2])
    ranking = asvd.rank(tiny, calibration, seed=0, samples=2)
    block = tiny.blocks[-1]
    linear = factorables(tiny.model, block.ffn)[-1]
    scaled = inputs_of(tiny, calibration, linear.path).abs().mean(0).sqrt()
    u, s, vt = torch.linalg.svd(linear.weight.double() * scaled, full_matrices=False)
    shares, literal = [], []
    for share in asvd.SHARES:
        rank = int(share * linear.weight.numel() / sum(linear.weight.shape))
        shares.append(rank * sum(linear.weight.shape) / linear.weight.numel())
        cut = (u[:, :rank] * s[:rank] @ vt[:rank] / scaled).float()
        parameter, before = tiny.model.get_parameter(f"{linear.path}.weight"), linear.weight.clone()
        parameter.data = cut
        literal.append(few.answer_loss())
        parameter.data = before
    found = ranking.log["rise"][block.name][linear.path.rsplit(".", 1)[-1]]
    assert found == pytest.approx([value - few.answer_loss() for value in literal], abs=2e-5, rel=6e-3)
    with pytest.raises(InputError, match="samples: 0 should be"):
        asvd.rank(tiny, calibration, seed=0, samples=0)


@given(st.lists(st.floats(-1, 5), min_size=2, max_size=9))
def test_the_hull_is_convex_below_the_rises_and_touches_their_envelope(values: list[float]) -> None:
    shares = [(i + 1) / (len(values) + 1) for i in range(len(values))]
    rises = list(zip(shares, values, strict=True))
    loss = asvd.interpolated(rises)
    monotone = [max(0.0, *values[i:]) for i in range(len(values))]  # none below one of a larger share
    assert loss(1.0) == pytest.approx(0)
    for share, value in zip(shares, monotone, strict=True):
        assert loss(share) <= value + 2 * asvd.FREE
    grid = [0.01 * i for i in range(1, 101)]
    drops = [loss(a) - loss(b) for a, b in itertools.pairwise(grid)]
    assert all(drop > 0 for drop in drops)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(drops))
    corners = sum(abs(loss(s) - v) < 1e-5 for s, v in zip([*shares, 1.0], [*monotone, 0.0], strict=True))
    assert corners >= 2  # a hull has its ends


def test_a_large_ffn_offers_fewer_points_but_both_ends() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(60, 90) for name in ("gate", "up")})
    model["down"] = torch.nn.Linear(90, 60, bias=False)
    units = Units("ffn", 90, 1, (Rows("gate", 0, 1), Rows("up", 0, 1)), "down", 3 * 60, 0, gated=True)
    found = factorables(model, units)
    whole = low_rank(units, found, map(equal_shares, found)).points
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("baselines.low_rank.POINTS", 20)
        fewer = low_rank(units, found, map(equal_shares, found)).points
    assert 10 <= len(fewer) <= 21 < len(whole)
    assert (fewer[0].label, fewer[-1].label) == ("dense", "rank 1/1/1")
    assert {p.label for p in fewer} <= {p.label for p in whole}


def test_factors_are_made_of_the_weights_as_they_were(tiny: VLM, calibration: Calibration) -> None:
    block = tiny.blocks[0]
    point = points_of(svd.rank(tiny, calibration, seed=0), block.name)[-1]
    assert point.make is not None
    consumer = tiny.model.get_submodule(block.ffn.consumer)
    weight, before = consumer.weight, cast(LowRank, point.make()[block.ffn.consumer])
    consumer.weight = torch.nn.Parameter(torch.zeros(2, 2))
    try:
        after = cast(LowRank, point.make()[block.ffn.consumer])
    finally:
        consumer.weight = weight
    assert torch.equal(before.down, after.down) and torch.equal(before.up, after.up)


def test_a_pair_never_costs_as_much_as_its_linear() -> None:
    for out, inner in [(8, 8), (6, 12), (7, 5), (2, 2)]:
        linear = Factorable("x", torch.ones(out, inner), None, None)
        assert linear.limit * (out + inner) < out * inner <= (linear.limit + 1) * (out + inner)


@pytest.mark.parametrize("name", METHODS)
def test_aligned_ranks_are_multiples_and_land(tiny: VLM, calibration: Calibration, name: str) -> None:
    ranking = METHODS[name].rank(tiny, calibration, seed=0)
    fitting = aligned(ranking, 2)
    for block in tiny.blocks:
        found = len(paths_of(block.ffn))
        ranks = [rank for point in points_of(fitting, block.name) for rank in ranks_of(point, found)]
        assert all(rank is None or rank % 2 == 0 for rank in ranks) and set(ranks) > {None}
        costs = [point.token_macs for point in points_of(fitting, block.name)]
        assert costs == sorted(set(costs), reverse=True)
    extents = dict.fromkeys(("vision", "language"), Extent(64, 0))
    plan = solve(tiny, fitting, Budget("all", 0.5, "ffn", extents=extents, align=2))
    cut = surgery.apply(tiny, plan, fitting)
    made = [module for module in cut.model.modules() if isinstance(module, LowRankLinear)]
    assert made and all(cast(Any, module.down).out_features % 2 == 0 for module in made)
