"""What every method, family and metric that is found has to keep to; a new file is tested by being there."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from test_tasks import made_sets, sets

from harness import families, record, registry, surgery
from harness.budget import TOLERANCE, solve
from harness.calibration import Calibration
from harness.runner import Context
from harness.types import (
    SCOPES,
    VLM,
    Additive,
    Budget,
    Extent,
    InputError,
    Options,
    Ordinal,
    Plan,
    Ranking,
    Sample,
    Trial,
)

__all__ = ["made_sets", "sets"]  # fixtures


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, 64, 64, 3), generator=generator, dtype=torch.uint8)
    questions = ["How many stars?", "What colour is the large circle?"] * 3
    samples = [Sample(Image.fromarray(p.numpy()), q, "two") for p, q in zip(pixels, questions, strict=True)]
    return Calibration(tiny, samples, batch_size=4)


@pytest.fixture(scope="module")
def rankings(tiny: VLM, calibration: Calibration) -> dict[str, Ranking]:
    return {name: registry.method(name).rank(tiny, calibration, seed=0, budget=ASKED) for name in registry.methods()}


# What a method that asks for the budget is ranked for.
ASKED = Budget("all", 0.5, extents={"vision": Extent(16, 256), "language": Extent(20, 400)})


def trial(**changes: Any) -> Trial:
    plain: dict[str, Any] = {
        "board": "contracts",
        "model": "tiny",
        "method": "random",
        "options": {},
        "scope": "all",
        "units": "both",
        "budget": 0.5,
        "seed": 0,
        "tasks": ("mini_gqa", "mini_textvqa"),
        "split": "validation",
        "limit": 4,
        "metrics": (),
        "calibration": {"samples": 6, "tasks": ["mini_gqa"], "split": "calibration"},
        "latency": {"batches": [1, 2], "repeats": 3},
        "reference_input": {"image": [64, 64], "text": "How many stars?"},
    }
    return Trial(**{**plain, **changes})


def values(ranking: Ranking) -> dict[Any, Any]:
    """A ranking's figures, without the functions that make factors."""
    found: dict[Any, Any] = {}
    for key, score in ranking.scores.items():
        if isinstance(score, Options):
            found[key] = [(point.label, point.token_macs, point.loss) for point in score.points]
        else:
            found[key] = score
    return found


# --- methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.methods())
def test_a_method_says_what_it_is(name: str) -> None:
    method = registry.method(name)
    assert method.role in ("studied", "reference")
    assert method.regime({}) in ("training-free", "repaired", "trained")
    assert all(len(method.notes[option]) > 20 for option in method.options)
    assert method.units in ("both", "heads", "ffn")
    assert 10 < len(method.title) < 120 and "\n" not in method.title
    parameters = inspect.signature(method.module.rank).parameters
    assert list(parameters)[:2] == ["vlm", "calibration"] and parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY
    assert json.loads(json.dumps(dict(method.options), allow_nan=False)) == dict(method.options)
    assert method.check(method.options, "") == {}  # its own defaults are valid, and are no variant
    with pytest.raises(InputError, match="no_such_option"):
        method.check({"no_such_option": 1}, "")


@pytest.mark.parametrize("name", registry.methods())
def test_a_ranking_scores_every_unit_with_a_finite_number(tiny: VLM, rankings: dict[str, Ranking], name: str) -> None:
    ranking, units = rankings[name], registry.method(name).units
    wanted = {(block.name, kind) for block, kind in tiny.select("all", cast(Any, units))}
    assert set(ranking.scores) == (set() if name == "none" else wanted)
    for (block, kind), score in ranking.scores.items():
        own = tiny.block(block).units(kind)
        if isinstance(score, Options):
            assert kind == "ffn"
            first, *rest = score.points
            assert (first.loss, first.make, first.token_macs) == (0, None, own.count * own.token_macs)
            assert rest and all(point.make and 0 < point.token_macs < first.token_macs for point in rest)
            assert len({point.label for point in score.points}) == len(score.points)
            numbers = [point.loss for point in score.points]
        else:
            numbers = list(score.damage if isinstance(score, Additive) else score.order)
            assert isinstance(score, Additive | Ordinal) and len(numbers) == own.count
        assert torch.tensor(numbers, dtype=torch.float64).isfinite().all()
        assert all(isinstance(number, int | float) for number in numbers)
    assert len({isinstance(score, Ordinal) for score in ranking.scores.values()}) <= 1
    json.dumps(dict(ranking.log), allow_nan=False)


@pytest.mark.parametrize("name", registry.methods())
def test_a_ranking_is_decided_by_its_seed(
    tiny: VLM, calibration: Calibration, rankings: dict[str, Ranking], name: str
) -> None:
    """On the same calibration, and whatever the state of the global generators."""
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = registry.method(name).rank(tiny, calibration, seed=0, budget=ASKED)
    assert values(again) == values(rankings[name]) and again.log == rankings[name].log
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", registry.methods())
@pytest.mark.parametrize("learning", [False, True])
def test_ranking_leaves_the_model_as_found(tiny: VLM, calibration: Calibration, name: str, learning: bool) -> None:
    """Weights bit for bit, gradients, requires_grad, mode and hooks, whatever they were."""
    fresh = Calibration(tiny, calibration.samples[:2])
    modules, weights = list(tiny.model.modules()), list(tiny.model.parameters())
    if learning:
        tiny.model.requires_grad_(True)
        modules[-1].training = True
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    flags, modes = [weight.requires_grad for weight in weights], [module.training for module in modules]
    try:
        registry.method(name).rank(tiny, fresh, seed=1, budget=ASKED)
        assert list(tiny.model.modules()) == modules
        assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
        assert [weight.requires_grad for weight in weights] == flags
        assert [module.training for module in modules] == modes
        assert all(weight.grad is None for weight in weights)
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not [module for module in modules for name in hooks if getattr(module, name)]
    finally:
        modules[-1].training = False
        tiny.model.requires_grad_(False)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", [name for name in registry.methods() if name != "none"])
def test_one_ranking_serves_every_budget(tiny: VLM, rankings: dict[str, Ranking], name: str, scope: Any) -> None:
    context = Context(trial(), lambda text: None)
    inputs = context.inputs(tiny)
    extents = families.family(tiny.family).extents(tiny.model, inputs)
    units = registry.method(name).units
    # Of one kind the tiny model has few units, and ranks of few multiply-adds: its steps are coarse.
    keeps, tolerance = ((0.9, 0.5, 0.3125), TOLERANCE) if units == "both" else ((0.75, 0.5), 0.03)
    for keep in keeps:
        budget = Budget(scope, keep, cast(Any, units), extents)
        plan = solve(tiny, rankings[name], budget, tolerance)
        assert abs(plan.achieved / keep - 1) <= tolerance
        assert json.loads(json.dumps(plan.to_json()))["achieved"] == plan.achieved
        pruned = surgery.apply(tiny, plan, rankings[name])
        with torch.no_grad():
            assert pruned.model(**inputs).logits.isfinite().all()


def test_dense_is_a_method_like_the_others(tiny: VLM, rankings: dict[str, Ranking]) -> None:
    plan = solve(tiny, rankings["none"], Budget("all", 1.0, extents={}))
    assert plan == Plan({}, 1.0, 1.0)
    with pytest.raises(InputError, match="does not rank"):
        extents = families.family(tiny.family).extents(tiny.model, Context(trial(), print).inputs(tiny))
        solve(tiny, rankings["none"], Budget("all", 0.5, extents=extents))


# --- families ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.names())
def test_a_family_has_the_functions_that_are_asked_of_it(name: str) -> None:
    found = families.family(name)
    assert list(inspect.signature(found.blocks).parameters) == ["model"]
    for function in (found.extents, found.stages):
        assert list(inspect.signature(function).parameters) == ["model", "inputs"]
    assert found.__doc__


def test_blocks_are_read_from_the_model_that_is_there(tiny: VLM, rankings: dict[str, Ranking]) -> None:
    found = families.family(tiny.family)
    assert found.blocks(tiny.model) == tiny.blocks
    extents = found.extents(tiny.model, Context(trial(), print).inputs(tiny))
    pruned = surgery.apply(
        tiny, solve(tiny, rankings["random"], Budget("all", 0.5, extents=extents)), rankings["random"]
    )
    assert [block.name for block in pruned.blocks] == [block.name for block in tiny.blocks]
    assert found.blocks(pruned.model) == pruned.blocks != tiny.blocks
    macs = [
        sum(b.units(k).count * b.units(k).macs(extents[b.component]) for b, k in vlm.select("all"))
        for vlm in (pruned, tiny)
    ]
    assert macs[0] / macs[1] == pytest.approx(0.5, rel=TOLERANCE)


# --- metrics ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned(tiny: VLM, rankings: dict[str, Ranking]) -> VLM:
    extents = families.family(tiny.family).extents(tiny.model, Context(trial(), print).inputs(tiny))
    return surgery.apply(tiny, solve(tiny, rankings["random"], Budget("all", 0.5, extents=extents)), rankings["random"])


@pytest.mark.parametrize("name", registry.metrics())
def test_a_metric_gives_plain_finite_json_and_touches_nothing(sets: Path, tiny: VLM, pruned: VLM, name: str) -> None:
    measure = registry.metric(name)
    assert list(inspect.signature(measure).parameters) == ["pruned", "dense", "trial", "context"]
    own = trial(metrics=(name,))
    said: list[str] = []
    before = [{key: value.clone() for key, value in vlm.model.state_dict().items()} for vlm in (tiny, pruned)]
    context = Context(own, said.append)
    found = measure(pruned, tiny, own, context)
    assert isinstance(found, dict) and found
    assert json.loads(json.dumps(found, allow_nan=False)) == found  # no tuples, no NaN, no keys but text
    for vlm, state in zip((tiny, pruned), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in vlm.model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in vlm.model.modules())
    if context.samples is not None:
        assert context.samples.num_rows == 2 * 4


@pytest.mark.parametrize("name", registry.metrics())
def test_a_record_holds_what_a_metric_gives(sets: Path, tiny: VLM, pruned: VLM, tmp_path: Path, name: str) -> None:
    from harness.runner import blank

    own = trial(metrics=(name,))
    made = json.loads(json.dumps(blank(own, "cpu")))
    made["metrics"] = {name: registry.metric(name)(pruned, tiny, own, Context(own, lambda text: None))}
    found = record.read(record.write(tmp_path, made))
    assert found["hashes"].pop("record")  # its own, made when it is written
    assert found == made
