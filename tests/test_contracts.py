"""What every method, family and metric that is found has to keep to; a new file is tested by being there."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import families, registry
from harness.checks import method_contract
from harness.machine.facts import facts
from harness.pruning import surgery
from harness.pruning.solver import TOLERANCE, solve
from harness.records import record
from harness.records.record import Record
from harness.statistics.calibration import Calibration
from harness.trials.context import Context
from harness.trials.result import code, contestant
from harness.types import (
    VLM,
    Budget,
    InputError,
    Plan,
    Ranking,
)
from tests.support.progress import Heard
from tests.support.trials import random_trial


@pytest.fixture(scope="module")
def rankings(tiny: VLM) -> dict[str, Ranking]:
    calibration = Calibration(tiny, method_contract.samples(), batch_size=4)
    return {name: registry.method(name).rank(tiny, calibration, seed=0) for name in ("none", "random")}


# --- methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.methods())
def test_a_method_says_what_it_is(name: str) -> None:
    method = registry.method(name)
    assert all(len(method.notes[option]) > 20 for option in method.options)
    assert method.module.__doc__ and 10 < len(method.title) < 120 and "\n" not in method.title
    assert method.check(method.options, "") == {}  # its own defaults are valid, and are no variant
    with pytest.raises(InputError, match="no_such_option"):
        method.check({"no_such_option": 1}, "")


@pytest.mark.parametrize("name", registry.methods())
def test_a_method_keeps_the_contract(tiny: VLM, name: str) -> None:
    """Signature, scores of every unit, one ranking a seed, every budget met, and the model left as found."""
    assert method_contract.breaches(name, registry.module(name), tiny) == []


def test_dense_is_a_method_like_the_others(tiny: VLM, rankings: dict[str, Ranking]) -> None:
    plan = solve(tiny, rankings["none"], Budget("all", 1.0, extents={}))
    assert plan == Plan({}, 1.0, 1.0)
    with pytest.raises(InputError, match="does not rank"):
        extents = families.family(tiny.family).extents(tiny.model, Context(random_trial().reference_input).inputs(tiny))
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
    extents = found.extents(tiny.model, Context(random_trial().reference_input).inputs(tiny))
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
    extents = families.family(tiny.family).extents(tiny.model, Context(random_trial().reference_input).inputs(tiny))
    return surgery.apply(tiny, solve(tiny, rankings["random"], Budget("all", 0.5, extents=extents)), rankings["random"])


@pytest.mark.parametrize("name", registry.metrics())
def test_a_metric_gives_plain_finite_json_and_touches_nothing(sets: Path, tiny: VLM, pruned: VLM, name: str) -> None:
    measure = registry.metric(name)
    assert list(inspect.signature(measure).parameters) == ["pruned", "dense", "trial", "context"]
    own = random_trial(metrics=(name,))
    said = Heard()
    before = [{key: value.clone() for key, value in vlm.model.state_dict().items()} for vlm in (tiny, pruned)]
    context = Context(own.reference_input, said)
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
    own = random_trial(metrics=(name,))
    found = registry.metric(name)(pruned, tiny, own, Context(own.reference_input))
    made = Record(own, contestant(own), metrics={name: found}, env=facts("cpu"), code=code())
    written = record.write(tmp_path, made)
    assert record.read(tmp_path / f"{made.id}.json") == written
    assert written.hashes["record"]  # its own, made when it is written
    assert replace(written, hashes={}) == made
