"""Recovery is equal for all: known solutions, one budget, the dense model untouched, the same seed the same weights."""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.pruning import random_units, recovery, rounds, surgery, training
from harness.statistics.calibration import Calibration
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
    Tuning,
)
from tests.support.plans import divergence, half, low_rank, same, state
from tests.support.progress import Heard

NOTHING = Ranking({})
SHORT: dict[str, Any] = {"steps": 6, "batch": 4, "rate": 1e-2}
STEEP: dict[str, Any] = {**SHORT, "rate": 0.1}
tune = functools.partial(recovery.tune, plan=Plan({}, 1.0, 1.0))  # a training needs no plan
HOW = [Tuning("full", **SHORT), Tuning("full", loss="answers", **SHORT), Tuning("lora", rank=4, **SHORT)]
HOW += [Tuning("full", loss="answers+kl+hidden", **SHORT), Tuning("projector", **STEEP)]


# --- learning ---------------------------------------------------------------------------------------------


def test_answer_logits_are_the_models_own(lively: VLM, calibration: Calibration) -> None:
    for batch in calibration.batches():
        with torch.no_grad():
            logits, answers = training.answer_logits(lively.model, batch)
            loss = float(lively.model(**batch).loss)
        assert float(torch.nn.functional.cross_entropy(logits, answers)) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_tuning_lowers_its_loss_and_touches_nothing_else(pruned: VLM, calibration: Calibration, how: Tuning) -> None:
    before = state(calibration.vlm), state(pruned)
    said = Heard()
    tuned = tune(pruned, calibration, how, seed=0, progress=said)
    assert same(before[0], state(calibration.vlm)) and same(before[1], state(pruned))
    if how.loss != "answers":
        losses = [divergence(vlm, calibration) for vlm in (pruned, tuned.vlm)]
    else:
        losses = [Calibration(vlm, calibration.samples).answer_loss() for vlm in (pruned, tuned.vlm)]
    assert losses[1] < (0.95 if how.method == "projector" else 0.9) * losses[0]  # it has few weights
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
        found.append(state(tune(pruned, calibration, how, seed=seed).vlm))
        assert torch.equal(was, torch.get_rng_state())
    assert same(found[0], found[1]) and not same(found[0], found[2])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_steps_change_nothing(pruned: VLM, calibration: Calibration, method: Any) -> None:
    tuned = tune(pruned, calibration, Tuning(method, steps=0), seed=0)
    assert same(state(tuned.vlm), state(pruned)) and tuned.curve == () and tuned.samples == 0


def test_adapters_reach_every_linear_of_the_blocks_and_nothing_else(pruned: VLM, calibration: Calibration) -> None:
    tuned = state(tune(pruned, calibration, HOW[2], seed=0).vlm)
    moved = {name for name, value in state(pruned).items() if not torch.equal(value, tuned[name])}
    linears = {
        f"{path}.weight"
        for block in pruned.blocks
        for units in (block.heads, block.ffn)
        for path in (*(rows.module for rows in units.producers), units.consumer)
    }
    assert moved == linears


def test_the_projector_alone_is_trained(pruned: VLM, calibration: Calibration) -> None:
    tuned = state(tune(pruned, calibration, HOW[4], seed=0).vlm)
    moved = {name for name, value in state(pruned).items() if not torch.equal(value, tuned[name])}
    assert moved == {name for name in tuned if name.startswith("model.visual.merger.")}


def test_the_parts_of_a_loss_are_what_they_say(pruned: VLM, calibration: Calibration) -> None:
    batch = next(iter(calibration.batches()))
    with torch.no_grad():
        student, teacher = (training.outputs(vlm.model, batch) for vlm in (pruned, calibration.vlm))
        parts = {name: float(loss(student, teacher)) for name, loss in training.LOSSES.items()}
        states = [
            vlm.model(**{k: v for k, v in batch.items() if k != "labels"}, output_hidden_states=True).hidden_states[-1]
            for vlm in (pruned, calibration.vlm)
        ]
        asked = batch["labels"][:, 1:] != -100
        off, whole = ((value[:, :-1][asked] ** 2).sum() for value in (states[0] - states[1], states[1]))
        assert parts["answers"] == pytest.approx(float(pruned.model(**batch).loss), rel=1e-5)
    assert parts["hidden"] == pytest.approx(float(off / whole), rel=1e-5)
    assert training.LOSSES["hidden"](teacher, teacher) == training.LOSSES["kl"](teacher, teacher) == 0 < parts["kl"]


def test_a_recovery_without_training_may_come_first() -> None:
    how = Tuning("full", first="refit", rounds=2)
    assert [str(stage) for stage in how.stages] == ["refit rounds=2", "full-kl-300 rounds=2 first=refit"]
    assert Tuning().stages == () and Tuning("bias").stages == (Tuning("bias"),)
    assert "first" not in Tuning("full").content() and how.content()["first"] == "refit"  # today's ids stay
    with pytest.raises(ValueError, match="first does not apply to method refit"):
        Tuning("refit", first="bias")


def test_low_rank_models_are_tuned_whole(lively: VLM, calibration: Calibration) -> None:
    vlm = surgery.apply(lively, *low_rank(lively, 4))
    for how in (HOW[0], HOW[2]):
        tuned = tune(vlm, calibration, how, seed=0).vlm
        assert divergence(tuned, calibration) < divergence(vlm, calibration)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_weights_come_back_in_their_own_type(pruned: VLM, calibration: Calibration, dtype: torch.dtype) -> None:
    small = replace(pruned, model=copy.deepcopy(pruned.model).to(dtype))
    tuned = tune(small, calibration, HOW[1], seed=0).vlm
    assert {weight.dtype for weight in tuned.model.parameters()} == {dtype}
    assert not same(state(tuned), state(small))


def test_a_loss_that_is_not_finite_stops_it(pruned: VLM, calibration: Calibration) -> None:
    broken = replace(pruned, model=copy.deepcopy(pruned.model))
    broken.model.get_parameter("lm_head.weight").data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="after 1 step"):
        tune(broken, calibration, HOW[0], seed=0)


@given(st.integers(1, 500))
def test_the_rate_rises_then_falls(steps: int) -> None:
    rates = [training.schedule(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == 1 and min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= max(1, round(0.1 * steps))


# --- control and rounds -----------------------------------------------------------------------------------


def test_the_control_keeps_widths_and_draws_units(lively: VLM) -> None:
    plan = half(lively)
    found, ranking = random_units.redraw(lively, plan, NOTHING, seed=0)
    assert found.parts.keys() == plan.parts.keys() and ranking == NOTHING
    assert (found.requested, found.achieved) == (plan.requested, plan.achieved)
    for key, part in plan.parts.items():
        drawn = found.parts[key]
        assert isinstance(drawn, Keep) and isinstance(part, Keep)
        assert len(drawn.indices) == len(part.indices) and list(drawn.indices) == sorted(set(drawn.indices))
        assert min(drawn.indices) >= 0 and max(drawn.indices) < lively.block(key[0]).units(key[1]).count
    assert found != plan and random_units.redraw(lively, plan, NOTHING, seed=0)[0] == found
    assert random_units.redraw(lively, plan, NOTHING, seed=1)[0] != found


def test_the_control_draws_every_unit_alike(lively: VLM) -> None:
    key = (lively.blocks[0].name, cast(Kind, "heads"))
    plan = Plan({key: Keep((0,))}, 0.5, 0.5)
    drawn = [random_units.redraw(lively, plan, NOTHING, seed)[0].parts[key] for seed in range(200)]
    counts = [sum(part == Keep((i,)) for part in drawn) for i in range(4)]
    assert sum(counts) == 200 and min(counts) > 25


def test_the_control_of_factors_keeps_ranks(lively: VLM) -> None:
    plan, ranking = low_rank(lively, 4)
    found, redrawn = random_units.redraw(lively, plan, ranking, seed=0)
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
    states = [
        state(surgery.apply(lively, *random_units.redraw(lively, plan, ranking, seed=seed))) for seed in (0, 0, 1)
    ]
    assert same(states[0], states[1]) and not same(states[0], states[2])
    assert same(states[0], state(surgery.apply(lively, found, redrawn)))


def test_the_control_of_other_options_is_as_many_channels(lively: VLM) -> None:
    block = lively.blocks[0]
    weight = torch.zeros(5, 5)
    point = Option("narrow", 7 * block.ffn.token_macs, 1.0, lambda: {block.ffn.consumer: Dense(weight, None)})
    ranking = Ranking({(block.name, "ffn"): Options((Option("dense", 9999, 0.0), point))})
    found, _ = random_units.redraw(lively, Plan({(block.name, "ffn"): Choice(1, "narrow")}, 0.5, 0.5), ranking, seed=0)
    part = found.parts[block.name, "ffn"]
    assert isinstance(part, Keep) and len(part.indices) == 7


def test_two_cuts_are_one(lively: VLM) -> None:
    first = half(lively)
    once = surgery.apply(lively, first, NOTHING)
    then = Plan({("vision.0", "ffn"): Keep((1, 2, 5)), ("language.1", "heads"): Keep((0,))}, 0.5, 0.4)
    both = rounds.merged_plan(first, then)
    assert both.achieved == pytest.approx(0.2) and both.parts["vision.0", "ffn"] == Keep((2, 4, 10))
    twice = surgery.apply(once, then, NOTHING)
    assert same(state(twice), state(surgery.apply(lively, both, NOTHING)))
    assert rounds.merged_plan(Plan({}, 1.0, 1.0), first) == first
    with pytest.raises(InputError, match=r"tuning\.rounds: this method replaces Linears"):
        rounds.merged_plan(Plan({}, 1.0, 1.0), low_rank(lively, 4)[0])


def test_rounds_share_the_steps(pruned: VLM, calibration: Calibration) -> None:
    how = Tuning("full", rounds=4, **SHORT)
    assert [tune(pruned, calibration, how, seed=0, turn=turn).steps for turn in (1, 2, 3, 4)] == [1, 2, 1, 2]


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (Tuning(), "none"),
        (Tuning("refit"), "refit"),
        (Tuning("refit", rounds=2), "refit rounds=2"),
        (Tuning("full"), "full-kl-300"),
        (Tuning("lora", loss="answers", steps=50, rate=1e-3, rank=8), "lora-answers-50 rate=0.001 rank=8"),
    ],
)
def test_settings_in_words(how: Tuning, says: str) -> None:
    assert str(how) == says
