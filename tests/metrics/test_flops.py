"""FLOPs equal counts made by hand, both counters agree, and a plan keeps exactly what the solver said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from harness import families
from harness.metrics import _counting, flops
from harness.pruning import surgery
from harness.pruning.solver import solve
from harness.trials.context import Context
from harness.types import VLM, Budget, Ranking, ReferenceInput, Trial
from tests.support.layouts import ranking_of
from tests.support.trials import plain_trial

PATCHES, WIDTH = 12 * 12, 32  # a 96 x 96 image in patches of 8; see VISION and TEXT of method_contract for the sizes
IMAGE_TOKENS = PATCHES // 4


@pytest.fixture
def trial() -> Trial:
    return plain_trial(
        method="random", budget=0.5, metrics=("flops",), reference_input=ReferenceInput((96, 96), "How many stars?")
    )


@pytest.fixture
def context(trial: Trial) -> Context:
    return Context(trial.reference_input)


def tokens(vlm: VLM, context: Context) -> int:
    return context.inputs(vlm)["input_ids"].shape[1]


def test_the_tower_by_hand(tiny: VLM, context: Context) -> None:
    parts = _counting.profile(tiny, context.stages(tiny))["parts"]
    linear = PATCHES * (WIDTH * 3 * WIDTH + WIDTH * WIDTH)  # qkv and the output projection
    attention = 2 * PATCHES * PATCHES * WIDTH  # scores and weighted sums, over all heads
    for block in ("vision.0", "vision.1"):
        assert parts[block, "heads"] == linear + attention
        assert parts[block, "ffn"] == PATCHES * 2 * WIDTH * 2 * WIDTH


def test_the_language_model_by_hand(tiny: VLM, context: Context) -> None:
    n, hidden, inner, keys = tokens(tiny, context), 48, 64, 24
    parts = _counting.profile(tiny, context.stages(tiny))["parts"]
    linear = n * (2 * hidden * hidden + 2 * hidden * keys)  # q and o at full width, k and v at two heads of 12
    attention = 2 * n * n * hidden  # four query heads of 12; the causal mask saves nothing in the count
    for block in ("language.0", "language.1"):
        assert parts[block, "heads"] == linear + attention
        assert parts[block, "ffn"] == n * 3 * hidden * inner


def test_the_whole_and_the_fixed_cost_by_hand(tiny: VLM, context: Context) -> None:
    found = _counting.profile(tiny, context.stages(tiny))
    patch = PATCHES * 3 * 2 * 8 * 8 * WIDTH
    merger = IMAGE_TOKENS * (4 * WIDTH * 4 * WIDTH + 4 * WIDTH * 48)
    head = tiny.model.get_parameter("lm_head.weight").numel()  # last token only
    rope = found["fixed"] - patch - merger - head  # the angles of the positions: a small product of its own
    assert 0 <= rope < 0.002 * found["total"]
    assert found["total"] == found["fixed"] + sum(found["parts"].values())
    assert found["components"]["vision"] == sum(v for (name, _), v in found["parts"].items() if name[0] == "v")
    assert found["missed"] == []


def test_attention_is_not_counted_as_zero(tiny: VLM, context: Context) -> None:
    stages = context.stages(tiny)
    by_module, _ = _counting.count(tiny.model, stages["vision"])
    own = by_module["model.visual.blocks.0.attn"]
    linears = sum(by_module[f"model.visual.blocks.0.attn.{name}"] for name in ("qkv", "proj"))
    assert own - linears == 2 * PATCHES * PATCHES * WIDTH


@pytest.mark.parametrize("grouped", [False, True])
def test_both_counters_know_a_plain_attention(grouped: bool) -> None:
    q, k, v = (torch.zeros(2, heads, 5, 8) for heads in (4, 2 if grouped else 4, 2 if grouped else 4))

    def call() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)

    by_module, missed = _counting.count(torch.nn.Module(), call)
    assert by_module[""] == 2 * 4 * 5 * 5 * (8 + 8)
    assert _counting.ATTENTION not in missed


def test_a_disagreement_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.Linear(8, 8)

    def call() -> torch.Tensor:
        q = linear(torch.zeros(1, 1, 50, 8))
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert _counting.count(linear, call)[0][""] == 50 * 8 * 8 + 2 * 50 * 50 * 8
    monkeypatch.setattr(_counting, "attention_macs", lambda inputs, outputs: 0)
    with pytest.raises(RuntimeError, match="the FLOP counters disagree: fvcore 3,200 MACs, torch 43,200 MACs"):
        _counting.count(linear, call)


def test_operators_without_a_formula_are_listed() -> None:
    def call() -> torch.Tensor:
        return torch.linalg.inv(torch.eye(3))

    assert any("inv" in name for name in _counting.count(torch.nn.Module(), call)[1])


def test_counting_leaves_the_model_as_it_was(tiny: VLM, context: Context) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    _counting.profile(tiny, context.stages(tiny))
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.model.modules())


# --- against the solver -----------------------------------------------------------------------------------


def test_the_solvers_costs_are_the_counted_ones(tiny: VLM, context: Context) -> None:
    extents = families.family(tiny.family).extents(tiny.model, context.inputs(tiny))
    parts = _counting.profile(tiny, context.stages(tiny))["parts"]
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        assert parts[block.name, kind] == units.count * units.macs(extents[block.component])


@pytest.mark.parametrize(
    ("scope", "units", "shape"),
    [
        ("vision", "both", "ordinal"),
        ("language", "heads", "additive"),
        ("all", "ffn", "ordinal"),
        ("all", "both", "additive"),
    ],
)
def test_what_is_kept_is_exactly_what_the_plan_said(
    tiny: VLM, trial: Trial, context: Context, scope: Any, units: Any, shape: str
) -> None:
    extents = families.family(tiny.family).extents(tiny.model, context.inputs(tiny))
    ranking = ranking_of(tiny, shape, seed=1)
    plan = solve(tiny, ranking, Budget(scope, 0.5, units, extents=extents))
    pruned = surgery.apply(tiny, plan, ranking)
    found = flops.measure(pruned, tiny, dataclasses.replace(trial, scope=scope, units=units), context)
    assert found["kept"] == pytest.approx(plan.achieved, rel=1e-12)
    assert found["reduction"] == pytest.approx(1 / plan.achieved, rel=1e-12)
    spared = {"vision": "language", "language": "vision"}.get(scope)
    assert spared is None or found["components"][spared]["kept"] == 1.0
    sizes = [sum(p.numel() for p in vlm.model.parameters()) for vlm in (pruned, tiny)]
    assert found["params"] == {"pruned": sizes[0], "dense": sizes[1], "kept": sizes[0] / sizes[1]}
    assert found["params"]["kept"] < 1 and found["total"]["kept"] < 1


def test_factors_cost_what_their_option_says(tiny: VLM, trial: Trial, context: Context) -> None:
    from baselines.infoprune.ffn import Ffn, factor

    extents = families.family(tiny.family).extents(tiny.model, context.inputs(tiny))
    ranking = Ranking({(block.name, "ffn"): factor(Ffn.found(tiny.model, block.ffn))[0] for block in tiny.blocks})
    plan = solve(tiny, ranking, Budget("all", 0.5, "ffn", extents=extents))
    pruned = surgery.apply(tiny, plan, ranking)
    own = dataclasses.replace(trial, units="ffn")
    assert flops.measure(pruned, tiny, own, context)["kept"] == pytest.approx(plan.achieved, rel=1e-12)


def test_dense_keeps_everything(tiny: VLM, trial: Trial, context: Context) -> None:
    found = flops.measure(tiny, tiny, trial, context)
    assert found["kept"] == found["reduction"] == found["total"]["kept"] == found["params"]["kept"] == 1.0
    assert found["uncounted"] == []
