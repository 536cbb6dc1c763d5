"""Of every family whose visual tokens are cut: it is the model made the slow way, in any batch and any cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from harness import families, registry, tasks
from harness.families import encode
from harness.metrics import _counting
from harness.metrics.memory import kv_bytes
from harness.pruning import surgery, tokens
from harness.pruning.recovery import tune
from harness.pruning.solver import TOLERANCE
from harness.statistics.calibration import Calibration, answer_logits
from harness.tasks import adapter
from harness.types import VLM, Budget, InputError, Plan, Sample, Tuning
from tests.support.outputs import Inputs, generate, logits
from tests.support.pictures import noise_picture
from tests.support.question_files import asked
from tests.support.tokens import cut, every_other, family, layers, literal, visual

METHODS = ("random_tokens", "pool", "fastv", "visionzip", "divprune")
IMAGES = [[noise_picture(0, 64, 64), noise_picture(1, 32, 64)], [noise_picture(2, 96, 64)], []]
TEXTS = ["Which is brighter?", "How many?", "Say something."]


@pytest.fixture(scope="module")
def inputs(vlm: VLM) -> Inputs:
    """Two images, one and none, padded on the left."""
    return encode(vlm.processor, IMAGES, TEXTS)


@pytest.fixture(scope="module")
def one(vlm: VLM) -> Inputs:
    return encode(vlm.processor, [[noise_picture(2, 96, 64)]], ["How many?"])


def by(method: str, vlm: VLM, share: float, layer: int = 1) -> VLM:
    """The model cut by a registered method."""
    rule = registry.method(method).rank(vlm, cast(Any, None), seed=3, layer=layer).tokens
    assert rule is not None
    return cut(vlm, rule.keep, share, rule.layer, rule.attention, **rule.options)


def alone(vlm: VLM) -> list[Inputs]:
    return [encode(vlm.processor, [images], [text]) for images, text in zip(IMAGES, TEXTS, strict=True)]


def last(vlm: VLM, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return vlm.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


# --- the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_all_tokens_are_the_dense_model(vlm: VLM, inputs: Inputs, layer: int) -> None:
    same = cut(vlm, every_other, 1.0, layer)
    assert torch.equal(logits(same, inputs), logits(vlm, inputs)) and generate(same, inputs) == generate(vlm, inputs)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_fewer_tokens_are_the_dense_model_without_them(vlm: VLM, one: Inputs, layer: int, share: float) -> None:
    count = len(visual(vlm, one))
    left = sorted(every_other(torch.zeros(count, 1), max(1, int(share * count + 0.5))).tolist())
    slow = literal(vlm, one, layer, left)
    torch.testing.assert_close(last(cut(vlm, every_other, share, layer), one), slow, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(slow, last(vlm, one), atol=1e-3)  # or the test would show nothing


@pytest.mark.parametrize("layer", [0, 1])
def test_merged_tokens_are_sums_of_what_the_layer_would_read(vlm: VLM, one: Inputs, layer: int) -> None:
    count = len(visual(vlm, one))
    weights = torch.rand(2, count, generator=torch.Generator().manual_seed(0))

    def keep(states: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([len(states) - 1, 1]), weights.flip(0)

    slow = literal(vlm, one, layer, [1, count - 1], weights)
    torch.testing.assert_close(last(cut(vlm, keep, 2 / count, layer), one), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_answers_do_not_depend_on_the_batch_or_the_cache(vlm: VLM, inputs: Inputs, layer: int) -> None:
    """Rows with different numbers of images; also eager attention, which reads other masks."""
    fewer = cut(vlm, every_other, 0.4, layer)
    expected = [generate(fewer, single)[0] for single in alone(vlm)]
    for cache in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 1}):
        assert generate(fewer, inputs, **cache) == expected, cache
    torch.testing.assert_close(
        last(fewer, inputs), torch.cat([last(fewer, single) for single in alone(vlm)]), rtol=1e-4, atol=1e-5
    )


def test_eager_attention_answers_alike(folder: Path, vlm: VLM, inputs: Inputs) -> None:
    eager = families.load(folder, attention="eager")
    for method in METHODS:
        fewer, slow = by(method, vlm, 0.4), by(method, eager, 0.4)
        torch.testing.assert_close(last(slow, inputs), last(fewer, inputs), rtol=1e-3, atol=1e-4)
        assert generate(slow, inputs) == generate(fewer, inputs)


def test_the_cache_holds_fewer_tokens_behind_the_cut(vlm: VLM, one: Inputs) -> None:
    fewer = cut(vlm, every_other, 0.4, 1)
    with torch.no_grad():
        cache = cast(Any, fewer.model)(**one, use_cache=True).past_key_values
    count, length = len(visual(vlm, one)), one["input_ids"].shape[1]
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [length if vlm.family != "gemma3" else held[0], length - count + int(0.4 * count + 0.5)]
    assert cache.get_seq_length(1) == length and kv_bytes(fewer, one) < kv_bytes(vlm, one)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_alike_in_any_batch(vlm: VLM, inputs: Inputs, method: str) -> None:
    fewer = by(method, vlm, 0.4)
    found = last(fewer, inputs)
    torch.testing.assert_close(found, torch.cat([last(fewer, single) for single in alone(vlm)]), rtol=1e-4, atol=1e-5)
    assert found.isfinite().all() and not torch.allclose(found, last(vlm, inputs), atol=1e-4)
    assert generate(fewer, inputs) == [generate(fewer, single)[0] for single in alone(vlm)]


# --- cost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "scope"),
    [
        ("fastv", "language"),
        ("visionzip", "all"),
        *(
            pytest.param(method, scope, marks=pytest.mark.slow)
            for method in METHODS
            for scope in ("language", "all")
            if (method, scope) not in (("fastv", "language"), ("visionzip", "all"))
        ),
    ],
)
def test_what_the_counters_count_is_what_the_plan_says(vlm: VLM, one: Inputs, method: str, scope: Any) -> None:
    ranking = registry.method(method).rank(vlm, cast(Any, None), seed=0, layer=1)
    extents = family(vlm).extents(vlm.model, one)
    plan = tokens.solve(vlm, ranking, Budget(scope, 0.85, "tokens", extents), one, method, tolerance=0.2)
    assert Plan.of(plan.to_json()) == plan and plan.tokens is not None
    totals = []
    for model in (vlm, surgery.apply(vlm, plan, ranking)):
        parts = _counting.profile(model, family(vlm).stages(model.model, one))["parts"]
        totals.append(sum(parts[block.name, kind] for block, kind in vlm.select(scope)))
    assert totals[1] / totals[0] == pytest.approx(plan.achieved, rel=TOLERANCE)


def test_stages_run_on_fewer_tokens(vlm: VLM, inputs: Inputs) -> None:
    rows, length = inputs["input_ids"].shape
    for method in METHODS:
        fewer = by(method, vlm, 0.4)
        stages = family(vlm).stages(fewer.model, inputs)
        with torch.no_grad():
            assert stages["language"]().shape == (rows, length, 48)
            torch.testing.assert_close(stages["all"]()[:, 0], last(fewer, inputs))
            first = stages["decode"]()
            assert first.shape == (rows, 1, 48) and torch.equal(stages["decode"](), first)


# --- what follows the cut -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    ["visionzip", *(pytest.param(method, marks=pytest.mark.slow) for method in METHODS if method != "visionzip")],
)
def test_a_folder_holds_the_choice(folder: Path, vlm: VLM, inputs: Inputs, tmp_path: Path, method: str) -> None:
    fewer = by(method, vlm, 0.4)
    assert families.save(fewer, tmp_path) == "custom code"
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True).eval()
    again = families.load(tmp_path, trust_remote_code=True)
    for other in (replace(vlm, model=stock), again):
        assert torch.equal(logits(other, inputs), logits(fewer, inputs))
        assert generate(other, inputs) == generate(fewer, inputs)
    assert families.save(again, tmp_path / "second") == "custom code"
    with pytest.raises(InputError, match=r"pruned\.tokens: which visual tokens go on is code"):
        families.load(tmp_path)


def test_bfloat16(folder: Path, inputs: Inputs, vlm: VLM) -> None:
    half = families.load(folder, dtype="bfloat16")
    for method in ("pool", "visionzip"):
        found = last(by(method, half, 0.4), inputs)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), last(by(method, vlm, 0.4), inputs), rtol=0.3, atol=0.5)


@pytest.mark.slow
def test_shared_images_answer_as_their_own(vlm: VLM, questions: Path) -> None:
    for method in METHODS:
        fewer = by(method, vlm, 0.4)
        one, many = (
            tasks.evaluate(fewer, asked([str(questions)], "validation", 4), batch_size=size)[1]["answer"].to_pylist()
            for size in (1, 4)
        )
        assert one == many and any(one)
    assert not adapter.shares(by("visionzip", vlm, 0.4))


def test_recoveries_of_a_model_with_fewer_tokens(vlm: VLM) -> None:
    """Nothing was cut that a bias or refit could repair; training goes through the cut."""
    samples = [Sample(noise_picture(i, 64, 64), "How many stars?"[: 9 + i], "two") for i in range(4)]
    calibration = Calibration(vlm, samples, 2)
    fewer = by("fastv", vlm, 0.4)
    state = {name: value.clone() for name, value in fewer.model.state_dict().items()}
    for recovery in ("bias", "refit"):
        tuned = tune(fewer, calibration, Tuning(recovery), seed=0, plan=Plan({}, 0.5, 0.5))
        assert all(torch.equal(value, state[name]) for name, value in tuned.vlm.model.state_dict().items())
    for recovery in ("full", "lora"):
        trained = tune(fewer, calibration, Tuning(recovery, steps=2, samples=4, batch=2), seed=0, plan=Plan({}, 1, 1))
        assert len(trained.curve) == 2 and any(
            not torch.equal(value, state[name]) for name, value in trained.vlm.model.state_dict().items()
        )
    assert all(torch.equal(value, state[name]) for name, value in fewer.model.state_dict().items())
    with pytest.raises(InputError, match="it drops visual tokens"):
        Calibration(fewer, samples, 2).moments([fewer.blocks[0].ffn.consumer])


# --- what methods see -----------------------------------------------------------------------------------------


def seen_by(vlm: VLM, inputs: Inputs, attention: str) -> Tensor:
    """What a method is told that visual tokens receive, row by row."""
    told: list[Tensor] = []

    def keep(states: Tensor, count: int, attention: Tensor) -> Tensor:
        told.append(attention)
        return torch.arange(count)

    last(cut(vlm, keep, 0.5, 1, attention), inputs)
    return torch.cat(told)


def test_the_text_attention_is_that_of_the_last_token(folder: Path, vlm: VLM, inputs: Inputs) -> None:
    eager = families.load(folder, attention="eager")
    weights: list[Tensor] = []
    attention = layers(eager)[0].self_attn
    with attention.register_forward_hook(lambda module, args, output: weights.append(output[1])):
        last(eager, inputs)
    places = inputs["input_ids"] == cast(Any, vlm.model).config.image_token_id
    torch.testing.assert_close(seen_by(vlm, inputs, "text"), weights[0].mean(1)[:, -1][places], rtol=1e-4, atol=1e-6)


def test_the_text_attention_does_not_depend_on_the_answers(vlm: VLM) -> None:
    """In a batch for training, answers of any length follow the prompts, and nobody has them when tokens are chosen."""
    prompts, batch = encode(vlm.processor, IMAGES, TEXTS), encode(vlm.processor, IMAGES, TEXTS, ["two", "a lot", "no"])
    told: list[Tensor] = []

    def keep(states: Tensor, count: int, attention: Tensor) -> Tensor:
        told.append(attention)
        return torch.arange(count)

    with torch.no_grad():
        answer_logits(cut(vlm, keep, 0.5, 1, "text").model, batch)
    torch.testing.assert_close(torch.cat(told), seen_by(vlm, prompts, "text"), rtol=1e-4, atol=1e-6)


def test_the_tower_attention_is_that_of_the_patches_of_a_token(folder: Path, vlm: VLM, inputs: Inputs) -> None:
    """Which patches make a token is read from the gradient of its features by the tower's states."""
    eager = families.load(folder, attention="eager")
    block = [block for block in eager.blocks if block.component == "vision"][-1]
    weights: list[Tensor] = []
    states: list[Tensor] = []
    module = eager.model.get_submodule(block.heads.consumer.rpartition(".")[0])

    def note(_: Any, args: Any, output: Any) -> Any:
        output = output[0] if isinstance(output, tuple) else output
        states.append(output.detach().requires_grad_())
        return states[0]

    def spread(_: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **others: Any) -> Any:
        chosen = (query @ key.mT * scaling + (0 if mask is None else mask)).softmax(-1)
        weights.append(chosen)
        return (chosen @ value).transpose(1, 2).contiguous(), None

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(
        "spread", lambda *a, attention_mask=None, **k: spread(*a, *([attention_mask] if len(a) < 5 else []), **k)
    )
    cast(Any, module).config = type(cast(Any, module).config).from_dict(cast(Any, module).config.to_dict())
    cast(Any, module).config._attn_implementation = "spread"
    model = cast(Any, eager.model)
    pictures = adapter.place(adapter.pictures(eager, [images for images in IMAGES if images]), model)
    if vlm.family == "llava_onevision":
        pictures = {name: value for name, value in inputs.items() if name in pictures or name == "batch_num_images"}
    with eager.model.get_submodule(block.path).register_forward_hook(note):
        features = torch.cat(tuple(model.get_image_features(**pictures).pooler_output)).flatten(0, -2)
    classed = any("class_embedding" in name or "cls_token" in name for name, _ in model.named_parameters())
    received = [chosen.mean(1)[:, 0] if classed else chosen.mean((1, 2)) for chosen in weights]
    flat = torch.cat([part.flatten() for part in received])
    expected = []
    for token in features:
        (gradient,) = torch.autograd.grad(token.sum(), states[0], retain_graph=True, allow_unused=True)
        rows = torch.zeros(len(flat)) if gradient is None else gradient.abs().sum(-1).flatten()
        expected.append(flat[rows > 0].mean() if (rows > 0).any() else torch.tensor(0.0))
    torch.testing.assert_close(seen_by(vlm, inputs, "vision"), torch.stack(expected).detach(), rtol=1e-4, atol=1e-6)
