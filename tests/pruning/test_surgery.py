"""Surgery removes what the plan does not keep and nothing else: pruned equals masked, whole equals dense."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from harness.families import encode
from harness.families._pruned import LowRankLinear
from harness.pruning import surgery
from harness.statistics import linears
from harness.types import (
    SCOPES,
    VLM,
    WIDTHS,
    Choice,
    InputError,
    Keep,
    Kind,
    LowRank,
    Option,
    Options,
    Plan,
    Ranking,
)

NOTHING = Ranking({})


@pytest.fixture(scope="module")
def lively(tiny: VLM) -> VLM:
    """The tiny model with biases that are not zero, so that a lost or misplaced bias shows."""
    model = copy.deepcopy(tiny.model)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(0, 0.3, generator=generator)
    return dataclasses.replace(tiny, model=model)


@pytest.fixture(scope="module")
def inputs(tiny: VLM) -> dict[str, Tensor]:
    """Two prompts of different length with images of different size."""
    generator = torch.Generator().manual_seed(1)
    images = [
        Image.fromarray(torch.randint(256, size, generator=generator, dtype=torch.uint8).numpy())
        for size in ((64, 64, 3), (96, 64, 3))
    ]
    texts = ["How many stars?", "What colour is the large circle left of the square?"]
    return encode(tiny.processor, [[image] for image in images], texts)


def logits(vlm: VLM, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return vlm.model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def some(vlm: VLM, scope: Any, units: Any, seed: int, share: float = 0.5) -> Plan:
    """A random plan: of every (block, kind) about this share stays, at least one unit."""
    rng = random.Random(seed)
    parts: dict[tuple[str, Kind], Keep | Choice] = {}
    for block, kind in vlm.select(scope, units):
        count = block.units(kind).count
        number = max(1, min(count, round(count * share) + rng.choice([-1, 0, 1])))
        parts[block.name, kind] = Keep(tuple(sorted(rng.sample(range(count), number))))
    return Plan(parts, share, share)


@contextmanager
def masked(vlm: VLM, plan: Plan) -> Iterator[None]:
    """The dense model with the consumers' input columns of all units that go set to zero."""
    hooks = []
    for (name, kind), part in plan.parts.items():
        units = vlm.block(name).units(kind)
        mask = torch.zeros(units.count)
        mask[list(cast(Keep, part).indices)] = 1
        columns = mask.repeat_interleave(units.width)
        consumer = vlm.model.get_submodule(units.consumer)
        hooks.append(consumer.register_forward_pre_hook(lambda _, args, columns=columns: (args[0] * columns,)))
    yield
    for hook in hooks:
        hook.remove()


def test_a_plan_that_keeps_everything_is_the_identity(lively: VLM, inputs: dict[str, Tensor]) -> None:
    whole = {(b.name, k): Keep(tuple(range(b.units(k).count))) for b, k in lively.select("all")}
    for parts in ({}, whole):
        same = surgery.apply(lively, Plan(cast(Any, parts), 1.0, 1.0), NOTHING)
        assert same.blocks == lively.blocks
        assert torch.equal(logits(same, inputs), logits(lively, inputs))
        for (name, weight), (other, dense) in zip(
            same.model.named_parameters(), lively.model.named_parameters(), strict=True
        ):
            assert name == other and weight is dense


def test_dense_by_choice_is_the_identity(lively: VLM, inputs: dict[str, Tensor]) -> None:
    options = Options((Option("dense", 1, 0.0),))
    ranking = Ranking({(block.name, "ffn"): options for block in lively.blocks})
    plan = Plan({(block.name, "ffn"): Choice(0, "dense") for block in lively.blocks}, 1.0, 1.0)
    assert torch.equal(logits(surgery.apply(lively, plan, ranking), inputs), logits(lively, inputs))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("units", ("both", *WIDTHS))
def test_pruned_equals_masked_dense(lively: VLM, inputs: dict[str, Tensor], scope: Any, units: Any) -> None:
    dense = logits(lively, inputs)
    for seed in range(3):
        plan = some(lively, scope, units, seed)
        pruned = logits(surgery.apply(lively, plan, NOTHING), inputs)
        with masked(lively, plan):
            expected = logits(lively, inputs)
        torch.testing.assert_close(pruned, expected, atol=1e-5, rtol=0)
        assert (expected - dense).abs().max() > 1e-3  # the plan does change the model


def test_one_unit_of_each_kind_is_enough(lively: VLM, inputs: dict[str, Tensor]) -> None:
    plan = Plan({(b.name, k): Keep((b.units(k).count - 1,)) for b, k in lively.select("all")}, 0.1, 0.1)
    with masked(lively, plan):
        expected = logits(lively, inputs)
    torch.testing.assert_close(logits(surgery.apply(lively, plan, NOTHING), inputs), expected, atol=1e-5, rtol=0)


def test_cutting_twice_is_cutting_once(lively: VLM, inputs: dict[str, Tensor]) -> None:
    """A pruned model is described by its blocks as well as a dense one, so it can be cut again."""
    first = some(lively, "all", "both", 0, 0.8)
    once = surgery.apply(lively, first, NOTHING)
    second = some(once, "all", "both", 1, 0.5)
    both = Plan(
        {
            key: Keep(tuple(cast(Keep, first.parts[key]).indices[i] for i in cast(Keep, part).indices))
            for key, part in second.parts.items()
        },
        0.4,
        0.4,
    )
    twice = surgery.apply(once, second, NOTHING)
    at_once = surgery.apply(lively, both, NOTHING)
    assert twice.blocks == at_once.blocks
    assert torch.equal(logits(twice, inputs), logits(at_once, inputs))


def test_modules_are_smaller_and_sizes_follow(lively: VLM) -> None:
    plan = some(lively, "all", "both", 2)
    pruned = surgery.apply(lively, plan, NOTHING)
    for (name, kind), part in plan.parts.items():
        kept, units = len(cast(Keep, part).indices), lively.block(name).units(kind)
        assert pruned.block(name).units(kind).count == kept
        consumer = pruned.model.get_submodule(units.consumer)
        assert consumer.in_features == kept * units.width == cast(Tensor, consumer.weight).shape[1]
        for path, group in itertools.groupby(units.producers, key=lambda rows: rows.module):
            rows = kept * sum(part.width for part in group)
            producer = pruned.model.get_submodule(path)
            assert producer.out_features == rows == cast(Tensor, producer.weight).shape[0]
            assert producer.bias is None or cast(Tensor, producer.bias).shape == (rows,)
        for path, attribute, amount in units.sizes:
            assert getattr(pruned.model.get_submodule(path), attribute) == kept * amount
    vision = pruned.model.get_submodule("model.visual.blocks.0.attn")
    assert vision.num_heads == len(cast(Keep, plan.parts["vision.0", "heads"]).indices)
    language = pruned.model.get_submodule("model.language_model.layers.0.self_attn")
    groups = len(cast(Keep, plan.parts["language.0", "heads"]).indices)
    assert (language.num_heads, language.num_key_value_heads) == (2 * groups, groups)


def test_the_dense_model_is_left_as_it_was(lively: VLM, inputs: dict[str, Tensor]) -> None:
    before = {name: value.clone() for name, value in lively.model.state_dict().items()}
    modules, expected = dict(lively.model.named_modules()), logits(lively, inputs)
    sizes = [lively.model.get_submodule(path) for b in lively.blocks for path, _, _ in b.heads.sizes]
    counts = [vars(module).copy() for module in sizes]
    pruned = surgery.apply(lively, some(lively, "all", "both", 3), NOTHING)
    assert dict(lively.model.named_modules()) == modules
    assert [vars(module) for module in sizes] == counts
    for weight in pruned.model.parameters():
        assert not weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in lively.model.state_dict().items())
    assert torch.equal(logits(lively, inputs), expected)


def test_what_is_not_named_is_shared_and_what_is_cut_is_not(lively: VLM) -> None:
    pruned = surgery.apply(lively, some(lively, "vision", "ffn", 4), NOTHING)
    dense = dict(lively.model.named_parameters())
    cut = {
        path for b in lively.blocks if b.component == "vision" for path in (b.ffn.consumer, b.ffn.producers[0].module)
    }
    storages = {weight.untyped_storage().data_ptr() for weight in dense.values()}
    for name, weight in pruned.model.named_parameters():
        if name.rpartition(".")[0] in cut:
            assert weight.untyped_storage().data_ptr() not in storages
        else:
            assert weight is dense[name]


# --- factors ----------------------------------------------------------------------------------------------


def factors(linear: nn.Module, rank: int | None) -> LowRank:
    assert isinstance(linear, nn.Linear)
    u, s, v = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
    down, up = s[:rank, None] * v[:rank], u[:, :rank]
    return LowRank(down.float(), up.float(), None if linear.bias is None else linear.bias.detach())


def factored(vlm: VLM, rank: int | None) -> tuple[Plan, Ranking]:
    """Every Linear of attention and FFNs as two factors of this rank (None: its full rank)."""
    scores: dict[Any, Any] = {}
    for block, kind in vlm.select("all"):
        paths = linears(block.units(kind))

        def make(paths: list[str] = paths) -> dict[str, LowRank]:
            return {path: factors(vlm.model.get_submodule(path), rank) for path in paths}

        scores[block.name, kind] = Options((Option("dense", 2, 0.0), Option("low", 1, 1.0, make)))
    return Plan({key: Choice(1, "low") for key in scores}, 0.5, 0.5), Ranking(scores)


def test_full_rank_factors_reproduce_the_model(lively: VLM, inputs: dict[str, Tensor]) -> None:
    pruned = surgery.apply(lively, *factored(lively, None))
    for block, kind in lively.select("all"):
        for path in linears(block.units(kind)):
            assert isinstance(pruned.model.get_submodule(path), LowRankLinear)
    assert pruned.blocks == lively.blocks
    torch.testing.assert_close(logits(pruned, inputs), logits(lively, inputs), atol=1e-4, rtol=0)


def test_factors_compute_up_down_and_bias(lively: VLM) -> None:
    pruned = surgery.apply(lively, *factored(lively, 3))
    for path in (path for block, kind in lively.select("all") for path in linears(block.units(kind))):
        dense, low = lively.model.get_submodule(path), pruned.model.get_submodule(path)
        assert isinstance(dense, nn.Linear) and isinstance(low, LowRankLinear)
        assert (low.in_features, low.out_features) == (dense.in_features, dense.out_features)
        assert low.down.weight.shape == (3, dense.in_features) and low.up.weight.shape == (dense.out_features, 3)
        x = torch.randn(5, dense.in_features, generator=torch.Generator().manual_seed(0))
        made = factors(dense, 3)
        expected = x @ made.down.T @ made.up.T + (0 if made.bias is None else made.bias)
        torch.testing.assert_close(low(x), expected)


def test_factors_follow_the_models_dtype(lively: VLM) -> None:
    half = dataclasses.replace(lively, model=copy.deepcopy(lively.model).bfloat16())
    plan, ranking = factored(lively, 3)
    assert {weight.dtype for weight in surgery.apply(half, plan, ranking).model.parameters()} == {torch.bfloat16}


def test_an_option_that_is_not_there_is_an_error(lively: VLM) -> None:
    plan, _ = factored(lively, 3)
    with pytest.raises(KeyError):
        surgery.apply(lively, plan, NOTHING)


# --- use --------------------------------------------------------------------------------------------------


def test_a_factored_model_generates_as_without_a_cache(lively: VLM, inputs: dict[str, Tensor]) -> None:
    model = cast(Any, surgery.apply(lively, *factored(lively, 3)).model)
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    cached, anew = (model.generate(**inputs, **options, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached, anew)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_pruned_model_generates_as_the_masked_one(lively: VLM, inputs: dict[str, Tensor], scope: Any) -> None:
    """With a key-value cache: its size has to follow the groups that are left."""
    plan = some(lively, scope, "both", 5)
    pruned = surgery.apply(lively, plan, NOTHING)
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    made = cast(Any, pruned.model).generate(**inputs, **options)
    with masked(lively, plan):
        expected = cast(Any, lively.model).generate(**inputs, **options)
    assert torch.equal(made, expected)


def test_a_pruned_model_survives_a_copy_and_its_weights_a_round_trip(lively: VLM, inputs: dict[str, Tensor]) -> None:
    pruned = surgery.apply(lively, some(lively, "all", "both", 6), NOTHING)
    twin = copy.deepcopy(pruned.model)
    for weight in twin.parameters():
        weight.data.zero_()
    twin.load_state_dict(pruned.model.state_dict())
    assert torch.equal(logits(dataclasses.replace(pruned, model=twin), inputs), logits(pruned, inputs))


@pytest.mark.parametrize("kind", ["heads", "ffn"])
def test_what_was_factored_cannot_be_cut_again(tiny: VLM, kind: Kind) -> None:
    block = tiny.blocks[0]
    again = surgery.apply(tiny, *factored(tiny, 2))
    first = block.units(kind).producers[0].module
    with pytest.raises(InputError, match=f"{first} is a LowRankLinear"):
        surgery.apply(again, Plan({(block.name, kind): Keep((0,))}, 1, 1), NOTHING)
