"""What must hold of every family: its units are the model's, a cut is a mask, costs are counted, answers come out."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers.generation.configuration_utils import DYNAMIC_CACHE_IMPLEMENTATIONS, STATIC_CACHE_IMPLEMENTATIONS

from harness import families, registry, tasks
from harness.families import encode
from harness.metrics import _counting
from harness.pruning import surgery
from harness.pruning.solver import TOLERANCE, solve
from harness.statistics.calibration import Calibration, linears
from harness.tasks import adapter
from harness.trials.pruner import Pruner
from harness.types import (
    SCOPES,
    VLM,
    WIDTHS,
    Budget,
    Choice,
    InputError,
    Keep,
    Kind,
    Ordinal,
    Plan,
    Ranking,
    Sample,
)
from tests.support.family_configs import TINY
from tests.support.outputs import Inputs, generate, logits
from tests.support.pictures import noise_picture
from tests.support.question_files import asked, question_rows, write_parquet
from tests.support.trials import latency_trial

NOTHING = Ranking({})


@pytest.fixture(scope="module")
def inputs(vlm: VLM) -> Inputs:
    """Two prompts of different length with images of different size."""
    images = [[noise_picture(0, 64, 64)], [noise_picture(1, 96, 64)]]
    return encode(vlm.processor, images, ["How many stars?", "What colour is the star?"])


@pytest.fixture(scope="module")
def family(vlm: VLM) -> Any:
    return families.family(vlm.family)


def some(vlm: VLM, scope: Any, units: Any, seed: int = 0) -> Plan:
    """A random plan: of every (block, kind) about half stays."""
    rng = random.Random(seed)
    parts: dict[tuple[str, Kind], Keep | Choice] = {}
    for block, kind in vlm.select(scope, units):
        count = block.units(kind).count
        parts[block.name, kind] = Keep(tuple(sorted(rng.sample(range(count), max(1, count // 2)))))
    return Plan(parts, 0.5, 0.5)


def masked(vlm: VLM, plan: Plan, inputs: Inputs) -> Tensor:
    """The logits at the old size, with the columns of the units that leave at zero."""
    gates = {}
    for (name, kind), part in plan.parts.items():
        gate = torch.zeros(vlm.block(name).units(kind).count)
        gate[list(cast(Keep, part).indices)] = 1
        gates[name, kind] = gate
    with Calibration(vlm, [Sample(noise_picture(0, 64, 64), "?", "!")]).gated(gates):
        return logits(vlm, inputs)


def test_every_family_has_a_tiny_config() -> None:
    assert sorted(TINY) == families.names()


# --- units ------------------------------------------------------------------------------------------------


def test_units_cover_their_linears_and_name_what_the_modules_hold(vlm: VLM, family: Any) -> None:
    assert [b.name for b in vlm.blocks] == ["vision.0", "vision.1", "language.0", "language.1"]
    for block, kind in vlm.select("all"):
        units = block.units(kind)
        consumer = vlm.model.get_submodule(units.consumer)
        assert isinstance(consumer, nn.Linear) and consumer.in_features == units.count * units.width
        owned: dict[str, list[int]] = {}
        for rows in units.producers:
            assert rows.module.startswith(block.path)
            owned.setdefault(rows.module, []).extend(range(rows.offset, rows.offset + units.count * rows.width))
        for path, rows in owned.items():
            producer = vlm.model.get_submodule(path)
            assert isinstance(producer, nn.Linear) and sorted(rows) == list(range(producer.out_features))
        paths = [*owned, units.consumer]
        assert units.count * units.token_macs == sum(vlm.model.get_parameter(f"{p}.weight").numel() for p in paths)
        for path, attribute, amount in units.sizes:
            assert getattr(vlm.model.get_submodule(path), attribute) == amount * units.count
        assert kind == "heads" or isinstance(vlm.model.get_submodule(units.activation), nn.Module)
    assert family.blocks(vlm.model) == vlm.blocks


def test_every_unit_matters(vlm: VLM) -> None:
    """The answer loss depends on each unit of each block: none is dead, and none is counted twice or left out."""
    samples = [Sample(noise_picture(i, 64, 64), "What is it?", "a star") for i in range(2)]
    for gradient in Calibration(vlm, samples, batch_size=2).gate_gradients().values():
        assert gradient.isfinite().all() and (gradient != 0).all()


# --- surgery ----------------------------------------------------------------------------------------------


def test_nothing_cut_is_the_dense_model_bit_for_bit(vlm: VLM, inputs: Inputs) -> None:
    whole: dict[tuple[str, Kind], Keep | Choice] = {
        (b.name, k): Keep(tuple(range(b.units(k).count))) for b, k in vlm.select("all")
    }
    for parts in ({}, whole):
        same = surgery.apply(vlm, Plan(parts, 1.0, 1.0), NOTHING)
        assert torch.equal(logits(same, inputs), logits(vlm, inputs)) and same.blocks == vlm.blocks


def test_pruned_is_masked(vlm: VLM, family: Any, inputs: Inputs) -> None:
    """For every scope and unit kind."""
    dense = logits(vlm, inputs)
    for scope in SCOPES:
        for units in ("both", *WIDTHS):
            plan = some(vlm, scope, units)
            pruned = surgery.apply(vlm, plan, NOTHING)
            found = logits(pruned, inputs)
            torch.testing.assert_close(found, masked(vlm, plan, inputs), rtol=1e-5, atol=1e-5)
            assert (found - dense).abs().max() > 1e-2, (scope, units)
            assert pruned.blocks == family.blocks(pruned.model) != vlm.blocks
    assert torch.equal(logits(vlm, inputs), dense)


def test_a_cut_of_a_cut_is_one_cut(vlm: VLM, inputs: Inputs) -> None:
    first = surgery.apply(vlm, some(vlm, "all", "both"), NOTHING)
    plan = some(first, "all", "both", seed=1)
    again = surgery.apply(first, plan, NOTHING)
    torch.testing.assert_close(logits(again, inputs), masked(first, plan, inputs), rtol=1e-5, atol=1e-5)


def test_dense_survives_the_disk(vlm: VLM, inputs: Inputs, tmp_path: Path) -> None:
    cast(Any, vlm.model).save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    families.check_folder(tmp_path)
    again = families.load(tmp_path)
    assert again.weights_hash == vlm.weights_hash and torch.equal(logits(again, inputs), logits(vlm, inputs))
    fresh = encode(again.processor, [[noise_picture(0, 64, 64)]], ["How many stars?"])
    assert all(
        torch.equal(fresh[k], v)
        for k, v in encode(vlm.processor, [[noise_picture(0, 64, 64)]], ["How many stars?"]).items()
    )


@pytest.mark.slow
def test_every_method_prunes_every_scope(vlm: VLM, family: Any, inputs: Inputs) -> None:
    calibration = Calibration(
        vlm, [Sample(noise_picture(i, 64, 64), "How many?", "two") for i in range(4)], batch_size=2
    )
    extents = family.extents(vlm.model, inputs)
    for method in (registry.method(name) for name in registry.methods()):
        if method.name == "none" or method.units == "tokens":
            continue
        options = {"steps": 4} if method.steps({}) else {}  # enough to run the training
        ranking = None
        for scope in SCOPES:
            budget = Budget(scope, 0.5, cast(Any, method.units), extents)
            if ranking is None or method.per_budget:
                ranking = method.rank(vlm, calibration, seed=0, budget=budget, **options)
            plan = solve(vlm, ranking, budget, tolerance=0.2)  # a head more or less is much at these sizes
            assert logits(surgery.apply(vlm, plan, ranking), inputs).isfinite().all(), (method.name, scope)


# --- costs ------------------------------------------------------------------------------------------------


def in_order(vlm: VLM) -> Ranking:
    return Ranking({(b.name, k): Ordinal(tuple(map(float, range(b.units(k).count)))) for b, k in vlm.select("all")})


def test_costs_are_the_counted_ones(vlm: VLM, family: Any, inputs: Inputs) -> None:
    """Of the dense and of a pruned model, by two counters that agree within a percent; nothing is left uncounted."""
    extents = family.extents(vlm.model, inputs)
    ranking = in_order(vlm)
    plan = solve(vlm, ranking, Budget("all", 0.5, extents=extents))
    totals = []
    for model in (vlm, surgery.apply(vlm, plan, ranking)):
        found = _counting.profile(model, family.stages(model.model, inputs))
        assert found["parts"] == {
            (b.name, k): b.units(k).count * b.units(k).macs(extents[b.component]) for b, k in model.select("all")
        }
        totals.append(sum(found["components"].values()))
    assert totals[1] / totals[0] == pytest.approx(plan.achieved, rel=1e-12) == pytest.approx(0.5, rel=TOLERANCE)


def test_low_rank_attention_and_ffns_are_described_counted_and_stored(
    vlm: VLM, family: Any, inputs: Inputs, tmp_path: Path
) -> None:
    """Attention products and units stay; what the counters count is what the plan says; answers survive the disk."""
    extents = family.extents(vlm.model, inputs)
    calibration = Calibration(vlm, [Sample(noise_picture(0, 64, 64), "How many?", "two")])
    ranking = registry.method("svd").rank(vlm, calibration, seed=0)
    plan = solve(vlm, ranking, Budget("all", 0.6, extents=extents))
    pruned = surgery.apply(vlm, plan, ranking)
    assert pruned.blocks == vlm.blocks == family.blocks(pruned.model)
    totals = [
        sum(_counting.profile(model, family.stages(model.model, inputs))["components"].values())
        for model in (vlm, pruned)
    ]
    assert totals[1] / totals[0] == pytest.approx(plan.achieved, rel=1e-12) == pytest.approx(0.6, rel=TOLERANCE)
    assert generate(pruned, inputs) == generate(pruned, inputs, use_cache=False)
    assert families.save(pruned, tmp_path) == "custom code"
    again = families.load(tmp_path)
    assert torch.equal(logits(again, inputs), logits(pruned, inputs)) and again.blocks == vlm.blocks


def test_a_budget_of_parameters_is_exact(vlm: VLM, family: Any, inputs: Inputs) -> None:
    flops_asked = Budget("all", 0.5, extents=family.extents(vlm.model, inputs))
    asked = Pruner()._budget(vlm, replace(latency_trial(), currency="params"), flops_asked, cast(Any, None))
    plan = solve(vlm, in_order(vlm), asked)
    dense, pruned = (
        sum(
            model.model.get_parameter(f"{p}.weight").numel()
            for b, k in model.select("all")
            for p in linears(b.units(k))
        )
        for model in (vlm, surgery.apply(vlm, plan, NOTHING))
    )
    assert pruned / dense == pytest.approx(plan.achieved, rel=1e-12) == pytest.approx(0.5, rel=TOLERANCE)


def test_stages_are_what_they_say(vlm: VLM, family: Any, inputs: Inputs) -> None:
    pruned = surgery.apply(vlm, some(vlm, "all", "both"), NOTHING)
    rows, length = inputs["input_ids"].shape
    for model in (vlm, pruned):
        stages = family.stages(model.model, inputs)
        assert set(stages) == {"vision", "language", "all", "decode"}
        with torch.no_grad():
            seen = int((inputs["input_ids"] == cast(Any, model.model).config.image_token_id).sum())
            assert stages["vision"]().shape[-1] == 48 and 0 <= seen - stages["vision"]().shape[0] < length
            assert stages["language"]().shape == (rows, length, 48)
            torch.testing.assert_close(stages["all"](), model.model(**inputs).logits[:, -1:])
            first = stages["decode"]()
            assert first.shape == (rows, 1, 48)
            for _ in range(3):  # a step leaves the cache as it was, so that it can be timed again and again
                assert torch.equal(stages["decode"](), first)


# --- answers ----------------------------------------------------------------------------------------------


def test_generation_works_with_every_cache(vlm: VLM, inputs: Inputs) -> None:
    """Dense and with groups that differ from layer to layer; a cache of another kind changes no token.

    Of those that transformers offers by itself: a quantized one needs a further package, offloading a GPU.
    """
    kinds = set(STATIC_CACHE_IMPLEMENTATIONS + DYNAMIC_CACHE_IMPLEMENTATIONS) - {"quantized"}
    if not torch.cuda.is_available():
        kinds = {kind for kind in kinds if "offloaded" not in kind}
    assert kinds >= {"dynamic", "static"}
    uneven = some(vlm, "all", "both")
    del cast(dict, uneven.parts)["language.1", "heads"]
    for model in (vlm, surgery.apply(vlm, uneven, NOTHING)):
        expected = generate(model, inputs, use_cache=False)
        for cache in kinds:
            assert generate(model, inputs, cache_implementation=cache) == expected, cache


def test_statistics_in_many_passes_are_those_of_one(vlm: VLM) -> None:
    samples = [Sample(noise_picture(i, 64 + 32 * (i % 2), 64), "How many stars?"[: 9 + i], "two") for i in range(3)]
    paths = [path for block in vlm.blocks for kind in ("heads", "ffn") for path in linears(block.units(kind))]
    whole, parts = (Calibration(vlm, samples, 2, room=room).moments(paths) for room in (1 << 30, 1))
    for path in paths:
        assert torch.equal(whole[path].second, parts[path].second) and whole[path].count == parts[path].count


def test_padding_changes_no_answer(vlm: VLM) -> None:
    """Together or alone: two images, one, none; of different sizes."""
    images = [[noise_picture(0, 64, 64), noise_picture(1, 32, 64)], [noise_picture(2, 96, 64)], []]
    texts = ["Which is brighter?", "How many?", "Say something."]
    pruned = surgery.apply(vlm, some(vlm, "all", "both"), NOTHING)
    for model in (vlm, pruned):
        together = generate(model, encode(vlm.processor, images, texts))
        alone = [generate(model, encode(vlm.processor, [i], [t]))[0] for i, t in zip(images, texts, strict=True)]
        assert together == alone


def test_labels_are_the_answer_and_the_end(vlm: VLM) -> None:
    words = vlm.processor.tokenizer
    made = encode(vlm.processor, [[noise_picture(0, 64, 64)], []], ["What?", "Who is it?"], ["a star", "me"])
    for row, answer in enumerate(["a star", "me"]):
        told = made["labels"][row]
        assert words.decode(told[told != -100]) == answer + words.eos_token
        assert made["input_ids"][row].tolist().count(words.bos_token_id) == (words.bos_token is not None)


LISTED = ("qwen2_vl", "qwen2_5_vl", "llava", "llava_onevision", "idefics3", "smolvlm")
SHARED = dict.fromkeys(LISTED, "list") | {"internvl": "rows", "gemma3": "rows"}


def test_shared_images_answer_as_their_own(
    vlm: VLM, inputs: Inputs, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the adapter may hand the features of an image to several questions, it changes no first token's odds."""
    assert adapter.shares(vlm) == SHARED.get(vlm.family, "")

    def firsts() -> Tensor:
        found = tasks.answer(vlm, asked([str(questions)], "validation", 9), first=True).firsts
        assert found is not None
        return found

    shared = firsts()
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "repeated", lambda seen, order, real=adapter.repeated: real(seen, order[::-1]))
        assert vlm.family not in SHARED or not torch.allclose(firsts(), shared)  # the test would see another image
    monkeypatch.setattr(adapter, "shares", lambda vlm: "")
    torch.testing.assert_close(firsts(), shared, atol=1e-5, rtol=0)


def test_a_question_with_two_images_has_them_to_itself(
    vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some processors cut an image of several in another way than one that stands alone."""
    two = lambda messages, task, real=adapter.read: (2 * real(messages, task)[0], real(messages, task)[1])  # noqa: E731
    monkeypatch.setattr(adapter, "read", two)
    rows = write_parquet(tmp_path / "two.parquet", question_rows("mini_vqav2", 10))
    assert tasks.evaluate(vlm, asked([str(rows)], "validation", 4))[1].num_rows == 4


def test_official_answers_are_the_same_in_any_batch(vlm: VLM, questions: Path) -> None:
    pruned = surgery.apply(vlm, some(vlm, "all", "both"), NOTHING)
    one, many = (
        tasks.evaluate(pruned, asked([str(questions)], "validation", 4), batch_size=size)[1]["answer"].to_pylist()
        for size in (1, 4)
    )
    assert one == many and any(one)


def test_bfloat16(folder: Path, inputs: Inputs, vlm: VLM) -> None:
    half = families.load(folder, dtype="bfloat16")
    pruned = surgery.apply(half, some(half, "all", "both"), NOTHING)
    for model in (half, pruned):
        assert {weight.dtype for weight in model.model.parameters()} == {torch.bfloat16}
        found = logits(model, inputs)
        assert found.dtype == torch.bfloat16 and found.isfinite().all()
    stages = families.family(half.family).stages(half.model, inputs)
    with torch.no_grad():
        assert all(call().isfinite().all() for call in stages.values())
    torch.testing.assert_close(logits(half, inputs).float(), logits(vlm, inputs), rtol=0.2, atol=0.2)


def test_random_weights_need_a_config_only(folder: Path, vlm: VLM, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    state = torch.get_rng_state()
    made = families.load(tmp_path, random_weights=True, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and made.weights_hash == "random:3" and made.blocks == vlm.blocks
    sizes = [{name: value.shape for name, value in model.model.state_dict().items()} for model in (made, vlm)]
    assert sizes[0] == sizes[1]
    again = families.load(tmp_path, random_weights=True, seed=3)
    assert families.weights_hash(again.model) == families.weights_hash(made.model) != vlm.weights_hash


def test_devices(folder: Path, vlm: VLM, inputs: Inputs) -> None:
    spread = families.load(folder, device_map={"": "cpu"}, attention="eager")
    torch.testing.assert_close(logits(spread, inputs), logits(vlm, inputs), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="device_map: random weights are drawn on one device"):
        families.load(folder, device_map="auto", random_weights=True)
    with pytest.raises(InputError, match="device_map 'meta' leaves some weights without a device"):
        families.load(folder, device_map="meta")
