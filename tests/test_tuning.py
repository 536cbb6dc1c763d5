"""Recovery is equal for all: known solutions, one budget, the dense model untouched, the same seed the same weights."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from harness import control, surgery, tuning
from harness.calibration import Calibration
from harness.types import (
    VLM,
    Choice,
    Dense,
    InputError,
    Keep,
    Kind,
    LowRank,
    Option,
    Options,
    Plan,
    Ranking,
    Sample,
    Tuning,
)

NOTHING = Ranking({})
SHORT: dict[str, Any] = {"steps": 6, "batch": 4, "rate": 1e-2}
HOW = [Tuning("full", **SHORT), Tuning("full", loss="answers", **SHORT), Tuning("lora", rank=4, **SHORT)]


@pytest.fixture(scope="module")
def lively(tiny: VLM) -> VLM:
    """The tiny model with larger weights and biases that are not zero, so that what it says depends on what it sees."""
    model = copy.deepcopy(tiny.model)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data.mul_(2)
        if name.endswith("bias"):
            weight.data.normal_(0, 0.3, generator=generator)
    return replace(tiny, model=model)


@pytest.fixture(scope="module")
def calibration(lively: VLM) -> Calibration:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (12, 64, 64, 3), generator=generator, dtype=torch.uint8)
    asked = zip(
        pixels, itertools.cycle(["How many stars?", "What colour is it?"]), itertools.cycle(["two", "red", "7"])
    )
    return Calibration(lively, [Sample(Image.fromarray(p.numpy()), q, a) for p, q, a in asked], batch_size=4)


def half(vlm: VLM) -> Plan:
    """Every other unit goes."""
    parts: dict[tuple[str, Kind], Keep | Choice] = {
        (block.name, kind): Keep(tuple(range(0, block.units(kind).count, 2))) for block, kind in vlm.select("all")
    }
    return Plan(parts, 0.5, 0.5)


@pytest.fixture(scope="module")
def pruned(lively: VLM) -> VLM:
    return surgery.apply(lively, half(lively), NOTHING)


def state(vlm: VLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def divergence(vlm: VLM, calibration: Calibration) -> float:
    """KL from the dense model per answer token, over all samples."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in calibration.batches():
            dense, other = (tuning.answer_logits(v.model, batch)[0].log_softmax(-1) for v in (calibration.vlm, vlm))
            total += float((dense.exp() * (dense - other)).sum())
            count += len(dense)
    return total / count


# --- learning ---------------------------------------------------------------------------------------------


def test_answer_logits_are_the_models_own(lively: VLM, calibration: Calibration) -> None:
    for batch in calibration.batches():
        with torch.no_grad():
            logits, answers = tuning.answer_logits(lively.model, batch)
            loss = float(lively.model(**batch).loss)
        assert float(torch.nn.functional.cross_entropy(logits, answers)) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_tuning_lowers_its_loss_and_touches_nothing_else(pruned: VLM, calibration: Calibration, how: Tuning) -> None:
    before = state(calibration.vlm), state(pruned)
    said: list[str] = []
    tuned = tuning.tune(pruned, calibration, how, seed=0, progress=said.append)
    assert same(before[0], state(calibration.vlm)) and same(before[1], state(pruned))
    if how.loss == "kl":
        losses = [divergence(vlm, calibration) for vlm in (pruned, tuned.vlm)]
    else:
        losses = [Calibration(vlm, calibration.samples).answer_loss() for vlm in (pruned, tuned.vlm)]
    assert losses[1] < 0.9 * losses[0]
    assert (tuned.steps, tuned.samples) == (6, 24) and said
    assert [point["step"] for point in tuned.curve] == [1, 2, 3, 4, 5, 6]
    json.dumps(tuned.curve, allow_nan=False)
    # An ordinary model again, of the same modules and without anything to learn.
    model = tuned.vlm.model
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in pruned.model.named_modules()]
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    assert not any(module.training for module in model.modules())
    assert tuned.vlm.blocks == pruned.blocks


@pytest.mark.parametrize("how", HOW, ids=str)
def test_the_same_seed_gives_the_same_bytes(pruned: VLM, calibration: Calibration, how: Tuning) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))  # the state of the process has no say, and keeps its state
        was = torch.get_rng_state()
        found.append(state(tuning.tune(pruned, calibration, how, seed=seed).vlm))
        assert torch.equal(was, torch.get_rng_state())
    assert same(found[0], found[1]) and not same(found[0], found[2])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_steps_change_nothing(pruned: VLM, calibration: Calibration, method: Any) -> None:
    tuned = tuning.tune(pruned, calibration, Tuning(method, steps=0), seed=0)
    assert same(state(tuned.vlm), state(pruned)) and tuned.curve == () and tuned.samples == 0


def test_adapters_reach_every_linear_of_the_blocks_and_nothing_else(pruned: VLM, calibration: Calibration) -> None:
    tuned = state(tuning.tune(pruned, calibration, HOW[2], seed=0).vlm)
    moved = {name for name, value in state(pruned).items() if not torch.equal(value, tuned[name])}
    linears = {
        f"{path}.weight"
        for block in pruned.blocks
        for units in (block.heads, block.ffn)
        for path in (*(rows.module for rows in units.producers), units.consumer)
    }
    assert moved == linears


def test_low_rank_models_are_tuned_whole(lively: VLM, calibration: Calibration) -> None:
    vlm = surgery.apply(lively, *low_rank(lively, 4))
    for how in (HOW[0], HOW[2]):
        tuned = tuning.tune(vlm, calibration, how, seed=0).vlm
        assert divergence(tuned, calibration) < divergence(vlm, calibration)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_weights_come_back_in_their_own_type(pruned: VLM, calibration: Calibration, dtype: torch.dtype) -> None:
    small = replace(pruned, model=copy.deepcopy(pruned.model).to(dtype))
    tuned = tuning.tune(small, calibration, HOW[1], seed=0).vlm
    assert {weight.dtype for weight in tuned.model.parameters()} == {dtype}
    assert not same(state(tuned), state(small))


def test_a_loss_that_is_not_finite_stops_it(pruned: VLM, calibration: Calibration) -> None:
    broken = replace(pruned, model=copy.deepcopy(pruned.model))
    broken.model.get_parameter("lm_head.weight").data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="after 1 step"):
        tuning.tune(broken, calibration, HOW[0], seed=0)


@given(st.integers(1, 500))
def test_the_rate_rises_then_falls(steps: int) -> None:
    rates = [tuning.schedule(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1 and min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= max(1, round(0.1 * steps))


# --- refit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [True, False])
def test_least_squares_is_lstsq(biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 6, generator=generator, dtype=torch.float64) + 1
    wanted = torch.randn(200, 3, generator=generator, dtype=torch.float64) + inputs[:, :3]
    bias = torch.zeros(3) if biased else None
    found, offset = tuning.least_squares(inputs, wanted, torch.randn(3, 6, generator=generator), bias, damping=1e-12)
    design = torch.cat([inputs, torch.ones(200, 1, dtype=torch.float64)], 1) if biased else inputs
    solution = torch.linalg.lstsq(design, wanted).solution
    assert torch.allclose(found.T, solution[:6])
    assert (offset is None) == (not biased)
    if offset is not None:
        assert torch.allclose(offset, solution[6])


def test_least_squares_leaves_what_the_data_do_not_say() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 4, generator=generator)
    inputs[:, 2] = 0
    weight = torch.randn(3, 4, generator=generator)
    found, _ = tuning.least_squares(inputs, inputs[:, :3], weight, None)
    assert torch.allclose(found[:, 2], weight[:, 2].double())
    exact, _ = tuning.least_squares(inputs, inputs @ weight.T, weight, None)
    assert torch.allclose(exact, weight.double(), atol=1e-6)


def test_refit_is_least_squares_on_what_each_linear_reads(lively: VLM, calibration: Calibration) -> None:
    """One cut: its consumer is lstsq's on the pruned model's inputs and the dense one's outputs, the rest untouched."""
    block = lively.blocks[1]
    plan = Plan({(block.name, "ffn"): Keep(tuple(range(0, block.ffn.count, 3)))}, 0.5, 0.5)
    pruned = surgery.apply(lively, plan, NOTHING)
    path = block.ffn.consumer
    tuned = tuning.tune(pruned, calibration, Tuning("refit"), seed=0)
    inputs = Calibration(pruned, calibration.samples, 4).rows([path], tuning.ROWS)[path].double()
    dense = lively.model.get_submodule(path).double()(calibration.rows([path], tuning.ROWS)[path].double()).detach()
    lively.model.get_submodule(path).float()
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(design, dense).solution
    best = float((design @ solution - dense).square().sum() / dense.square().sum())
    assert [point["module"] for point in tuned.curve] == [path]
    assert best <= tuned.curve[0]["after"] < 1.05 * best + 1e-6 < tuned.curve[0]["before"]
    after, before = state(tuned.vlm), state(pruned)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {f"{path}.weight", f"{path}.bias"}


def test_refit_follows_every_cut_and_brings_the_model_back(pruned: VLM, lively: VLM, calibration: Calibration) -> None:
    before = state(lively), state(pruned)
    tuned = tuning.tune(pruned, calibration, Tuning("refit"), seed=0)
    assert same(before[0], state(lively)) and same(before[1], state(pruned))
    consumers = [units.consumer for block in lively.blocks for units in (block.heads, block.ffn)]
    assert [point["module"] for point in tuned.curve] == consumers
    assert all(point["after"] <= point["before"] + 1e-6 for point in tuned.curve)
    assert divergence(tuned.vlm, calibration) < divergence(pruned, calibration)
    assert same(state(tuned.vlm), state(tuning.tune(pruned, calibration, Tuning("refit"), seed=1).vlm))


def test_refit_fits_the_second_of_two_factors(lively: VLM, calibration: Calibration) -> None:
    vlm = surgery.apply(lively, *low_rank(lively, 4))
    tuned = tuning.tune(vlm, calibration, Tuning("refit"), seed=0)
    after, before = state(tuned.vlm), state(vlm)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved and all(".up." in name for name in moved)
    assert {point["module"] for point in tuned.curve} == {name.partition(".up.")[0] for name in moved}


# --- control and rounds -----------------------------------------------------------------------------------


def low_rank(vlm: VLM, rank: int) -> tuple[Plan, Ranking]:
    """Both FFN Linears of each vision block, cut to their leading singular directions."""
    scores, parts = {}, {}
    for block in vlm.blocks:
        if block.component == "vision":
            made = {}
            for path in (block.ffn.producers[0].module, block.ffn.consumer):
                linear: Any = vlm.model.get_submodule(path)
                u, s, v = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
                made[path] = LowRank(v[:rank], u[:, :rank] * s[:rank], linear.bias)
            points = (Option("dense", 9999, 0.0), Option(f"rank {rank}", 99, 1.0, lambda made=made: made))
            scores[block.name, "ffn"] = Options(points)
            parts[block.name, "ffn"] = Choice(1, f"rank {rank}")
    return Plan(parts, 0.5, 0.5), Ranking(scores)


def test_the_control_keeps_widths_and_draws_units(lively: VLM) -> None:
    plan = half(lively)
    found, ranking = control.redraw(lively, plan, NOTHING, seed=0)
    assert found.parts.keys() == plan.parts.keys() and ranking == NOTHING
    assert (found.requested, found.achieved) == (plan.requested, plan.achieved)
    for key, part in plan.parts.items():
        drawn = found.parts[key]
        assert isinstance(drawn, Keep) and isinstance(part, Keep)
        assert len(drawn.indices) == len(part.indices) and list(drawn.indices) == sorted(set(drawn.indices))
        assert min(drawn.indices) >= 0 and max(drawn.indices) < lively.block(key[0]).units(key[1]).count
    assert found != plan and control.redraw(lively, plan, NOTHING, seed=0)[0] == found
    assert control.redraw(lively, plan, NOTHING, seed=1)[0] != found


def test_the_control_draws_every_unit_alike(lively: VLM) -> None:
    key = (lively.blocks[0].name, cast(Kind, "heads"))
    plan = Plan({key: Keep((0,))}, 0.5, 0.5)
    drawn = [control.redraw(lively, plan, NOTHING, seed)[0].parts[key] for seed in range(200)]
    counts = [sum(part == Keep((i,)) for part in drawn) for i in range(4)]
    assert sum(counts) == 200 and min(counts) > 25


def test_the_control_of_factors_keeps_ranks(lively: VLM) -> None:
    plan, ranking = low_rank(lively, 4)
    found, redrawn = control.redraw(lively, plan, ranking, seed=0)
    assert found == plan
    for score in redrawn.scores.values():
        assert isinstance(score, Options)
        dense, point = score.points
        assert dense.make is None and point.make and (point.label, point.token_macs) == ("rank 4", 99)
        for path, new in point.make().items():
            assert isinstance(new, LowRank)
            weight = lively.model.get_parameter(f"{path}.weight").double()
            assert new.down.shape == (4, weight.shape[1]) and new.up.shape == (weight.shape[0], 4)
            inside = new.up @ new.down  # the weight, projected
            side = new.down.T if weight.shape[0] >= weight.shape[1] else new.up
            assert torch.allclose(side.T @ side, torch.eye(4, dtype=torch.float64))
            projected = weight @ side @ side.T if weight.shape[0] >= weight.shape[1] else side @ side.T @ weight
            assert torch.allclose(inside, projected)
    states = [state(surgery.apply(lively, *control.redraw(lively, plan, ranking, seed=seed))) for seed in (0, 0, 1)]
    assert same(states[0], states[1]) and not same(states[0], states[2])
    assert same(states[0], state(surgery.apply(lively, found, redrawn)))


def test_the_control_of_other_options_is_as_many_channels(lively: VLM) -> None:
    block = lively.blocks[0]
    weight = torch.zeros(5, 5)
    point = Option("narrow", 7 * block.ffn.token_macs, 1.0, lambda: {block.ffn.consumer: Dense(weight, None)})
    ranking = Ranking({(block.name, "ffn"): Options((Option("dense", 9999, 0.0), point))})
    found, _ = control.redraw(lively, Plan({(block.name, "ffn"): Choice(1, "narrow")}, 0.5, 0.5), ranking, seed=0)
    part = found.parts[block.name, "ffn"]
    assert isinstance(part, Keep) and len(part.indices) == 7


def test_two_cuts_are_one(lively: VLM) -> None:
    first = half(lively)
    once = surgery.apply(lively, first, NOTHING)
    then = Plan({("vision.0", "ffn"): Keep((1, 2, 5)), ("language.1", "heads"): Keep((0,))}, 0.5, 0.4)
    both = tuning.together(first, then)
    assert both.achieved == pytest.approx(0.2) and both.parts["vision.0", "ffn"] == Keep((2, 4, 10))
    twice = surgery.apply(once, then, NOTHING)
    assert same(state(twice), state(surgery.apply(lively, both, NOTHING)))
    assert tuning.together(Plan({}, 1.0, 1.0), first) == first
    with pytest.raises(InputError, match=r"tuning\.rounds: only units"):
        tuning.together(Plan({}, 1.0, 1.0), low_rank(lively, 4)[0])


def test_rounds_share_the_steps(pruned: VLM, calibration: Calibration) -> None:
    how = Tuning("full", rounds=4, **SHORT)
    assert [tuning.tune(pruned, calibration, how, seed=0, turn=turn).steps for turn in (1, 2, 3, 4)] == [1, 2, 1, 2]


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (Tuning(), "none"),
        (Tuning("refit"), "refit"),
        (Tuning("refit", samples=64, rounds=2), "refit samples=64 rounds=2"),
        (Tuning("full"), "full-kl-300"),
        (Tuning("lora", loss="answers", steps=50, rate=1e-3, rank=8), "lora-answers-50 rate=0.001 rank=8"),
    ],
)
def test_settings_in_words(how: Tuning, says: str) -> None:
    assert str(how) == says
