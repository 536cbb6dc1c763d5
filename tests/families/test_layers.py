"""What must hold of every family when whole layers go: as if they were skipped, counted, stored, and read again."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from harness import families
from harness.families import encode
from harness.metrics import _counting
from harness.pruning import surgery
from harness.statistics.calibration import Calibration
from harness.types import VLM, Choice, InputError, Keep, Kind, Plan, Ranking, Sample
from tests.support.deep_configs import DEPTH, deep
from tests.support.family_configs import TINY, build
from tests.support.outputs import Inputs, generate, logits
from tests.support.pictures import noise_picture

NOTHING = Ranking({})
READ = {"llava": -2, "internvl": -1, "llava_onevision": -1}  # of the tower, what the config of a family reads


@pytest.fixture(scope="module", params=TINY)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return families.load(build(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint", change=deep))


@pytest.fixture(scope="module")
def inputs(vlm: VLM) -> Inputs:
    return two_prompts(vlm)


def two_prompts(vlm: VLM) -> Inputs:
    images = [[noise_picture(0, 64, 64)], [noise_picture(1, 96, 64)]]
    return encode(vlm.processor, images, ["How many stars?", "What colour is the star?"])


def without(*names: str, **parts: Any) -> Plan:
    gone: dict[tuple[str, Kind], Keep | Choice] = {(name, "layers"): Keep(()) for name in names}
    return Plan(gone | parts.get("parts", {}), 0.5, 0.5)


def skipped(vlm: VLM, names: Any, inputs: Inputs) -> Tensor:
    """The logits of the dense model whose blocks of these names pass their input on."""
    gates: dict[tuple[str, Kind], Tensor] = {(name, "layers"): torch.zeros(1) for name in names}
    with Calibration(vlm, [Sample(noise_picture(0, 64, 64), "?", "!")]).gated(gates):
        return logits(vlm, inputs)


def cuts(vlm: VLM) -> list[tuple[str, ...]]:
    """Each block that may go, and pairs of them."""
    free = [block.name for block in vlm.blocks if not block.fixed]
    pairs = [pair for pair in itertools.combinations(free, 2) if len({name.split(".")[0] for name in pair}) == 2]
    return [*((name,) for name in free), *pairs[::3], tuple(free[1:-1:2]), (free[-2], free[-1])]


def test_pruned_is_skipped(vlm: VLM, inputs: Inputs) -> None:
    dense = logits(vlm, inputs)
    for names in cuts(vlm):
        pruned = surgery.apply(vlm, without(*names), NOTHING)
        found = logits(pruned, inputs)
        torch.testing.assert_close(found, skipped(vlm, names, inputs), rtol=1e-5, atol=1e-5)
        assert (found - dense).abs().max() > 1e-3, names
        assert [block.name for block in pruned.blocks] == [b.name for b in vlm.blocks if b.name not in names]
        sizes = [sum(weight.numel() for weight in model.model.parameters()) for model in (pruned, vlm)]
        assert sizes[0] < sizes[1]
    assert torch.equal(logits(vlm, inputs), dense)


def test_a_layer_that_stays_changes_nothing(vlm: VLM, inputs: Inputs) -> None:
    plan = Plan({(block.name, "layers"): Keep((0,)) for block in vlm.blocks}, 1.0, 1.0)
    same = surgery.apply(vlm, plan, NOTHING)
    assert torch.equal(logits(same, inputs), logits(vlm, inputs)) and same.blocks == vlm.blocks


def test_layers_and_widths_go_together_and_can_be_cut_again(vlm: VLM, inputs: Inputs) -> None:
    free = [block.name for block in vlm.blocks if not block.fixed]
    stays = vlm.blocks[0].name if vlm.blocks[0].name != free[0] else vlm.blocks[1].name
    narrow: dict[tuple[str, Kind], Keep] = {(stays, "ffn"): Keep((1, 5, 7)), (free[0], "ffn"): Keep((0,))}
    both = surgery.apply(vlm, without(free[0], free[-1], parts=narrow), NOTHING)
    shorter = surgery.apply(vlm, without(free[-1]), NOTHING)
    steps = surgery.apply(shorter, without(free[0], parts={(stays, "ffn"): Keep((1, 5, 7))}), NOTHING)
    assert torch.equal(logits(both, inputs), logits(steps, inputs)) and both.blocks == steps.blocks
    assert both.block(stays).ffn.count == 3


def test_a_shorter_model_generates_with_and_without_a_cache(vlm: VLM, inputs: Inputs) -> None:
    never = [cast(Any, vlm.model).config.image_token_id]  # a random model may say it, and then wants an image
    for names in cuts(vlm)[:: DEPTH - 1]:
        pruned = surgery.apply(vlm, without(*names), NOTHING)
        expected = generate(pruned, inputs, use_cache=False, suppress_tokens=never)
        for cache in ("dynamic", "static"):
            assert generate(pruned, inputs, cache_implementation=cache, suppress_tokens=never) == expected, names


def test_a_shorter_model_is_plain_on_the_disk(vlm: VLM, inputs: Inputs, tmp_path: Path) -> None:
    """The stock class reads it, and what is read can be cut and stored again."""
    from transformers import AutoModelForImageTextToText

    names = cuts(vlm)[-2]
    pruned = surgery.apply(vlm, without(*names), NOTHING)
    assert families.save(pruned, tmp_path / "one") == "plain"
    stock: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "one").eval()
    with torch.no_grad():
        found = stock(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]
    assert torch.equal(found, logits(pruned, inputs))
    again = families.load(tmp_path / "one")
    assert families.save(again, tmp_path / "two") == "plain"
    twice = families.load(tmp_path / "two")
    assert torch.equal(logits(twice, inputs), logits(pruned, inputs)) and twice.blocks == again.blocks
    free = [block.name for block in again.blocks if not block.fixed]
    shorter = surgery.apply(again, without(free[-1]), NOTHING)
    torch.testing.assert_close(logits(shorter, inputs), skipped(again, [free[-1]], inputs), rtol=1e-5, atol=1e-5)
    narrow = surgery.apply(pruned, Plan({(pruned.blocks[0].name, "ffn"): Keep((2, 3))}, 0.5, 0.5), NOTHING)
    assert families.save(narrow, tmp_path / "three") == "custom code"
    assert torch.equal(logits(families.load(tmp_path / "three"), inputs), logits(narrow, inputs))


def test_costs_are_the_counted_ones(vlm: VLM, inputs: Inputs) -> None:
    family = families.family(vlm.family)
    extents = family.extents(vlm.model, inputs)
    pruned = surgery.apply(vlm, without(*cuts(vlm)[-2]), NOTHING)
    for model in (vlm, pruned):
        counted = _counting.profile(model, family.stages(model.model, inputs))
        for block in model.blocks:
            parts = counted["parts"][block.name, "heads"] + counted["parts"][block.name, "ffn"]
            assert parts == block.layer.macs(extents[block.component])
    stages = family.stages(pruned.model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(stages["all"](), pruned.model(**inputs).logits[:, -1:])
        assert torch.equal(stages["decode"](), stages["decode"]())


def test_what_cannot_go_is_refused(vlm: VLM) -> None:
    for block in vlm.blocks:
        if block.fixed:
            with pytest.raises(InputError, match=f"{block.name} cannot go as a whole: features"):
                surgery.apply(vlm, without(block.name), NOTHING)
    for component in ("vision", "language"):
        blocks = [block for block in vlm.blocks if block.component == component]
        if not any(block.fixed for block in blocks):
            with pytest.raises(InputError, match=f"no block of {component} would stay"):
                surgery.apply(vlm, without(*(block.name for block in blocks)), NOTHING)


def test_only_qwen3_holds_layers(vlm: VLM) -> None:
    held = [block.name for block in vlm.blocks if block.fixed]
    assert held == (["vision.0", "vision.2", "language.0", "language.1"] if vlm.family == "qwen3_vl" else [])


@pytest.mark.parametrize(
    ("name", "read"),
    [("llava", -2), ("llava", -1), ("llava", 3), ("llava", 2), ("llava", [1, -2]), ("llava", [2, 3]),
     ("llava_onevision", -2), ("llava_onevision", [1, 4]), ("internvl", -2), ("internvl", 3)],
)  # fmt: skip
def test_the_layers_that_are_read_stay_the_same(name: str, read: Any, tmp_path: Path) -> None:
    """Hidden states counted from either end mean the same place before and after, in memory and stored."""
    vlm = families.load(build(name, tmp_path / "dense", change=partial(deep, vision_feature_layer=read)))
    inputs = two_prompts(vlm)
    tower = [block.name for block in vlm.blocks if block.component == "vision"]
    for place, gone in enumerate([*((name,) for name in tower), tuple(tower[:-1]), tuple(tower[1:])]):
        if len(gone) in (0, len(tower)):
            continue
        pruned = surgery.apply(vlm, without(*gone), NOTHING)
        torch.testing.assert_close(logits(pruned, inputs), skipped(vlm, gone, inputs), rtol=1e-5, atol=1e-5)
        now = cast(Any, pruned.model).config.vision_feature_layer
        signs = [each < 0 for each in (now if isinstance(now, list) else [now])]
        assert signs == [each < 0 for each in (read if isinstance(read, list) else [read])]
        if place == 1:
            assert families.save(pruned, tmp_path / "pruned") == "plain"
            assert torch.equal(logits(families.load(tmp_path / "pruned"), inputs), logits(pruned, inputs))
