"""Every width can be written and read again: as the stock class where its config can say it, else as custom code."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness import families
from harness.families import _saving, encode
from harness.pruning import surgery
from harness.pruning.solver import solve
from harness.types import (
    SCOPES,
    VLM,
    Budget,
    Global,
    Keep,
    Ordinal,
    Plan,
    Ranking,
)
from tests.support.commands import Call
from tests.support.family_configs import TINY, build
from tests.support.family_sizes import Sizes, sized
from tests.support.outputs import Inputs, logits
from tests.support.pictures import noise_picture

NOTHING = Ranking({})


def inputs_of(vlm: VLM) -> Inputs:
    return encode(vlm.processor, [[noise_picture(0, 64, 64)]], ["How many?"])


def to_budget(vlm: VLM, scope: Any, units: Any, keep: float, shape: Any, seed: int = 0) -> VLM:
    """Cut to the reachable budget that is nearest: the same share everywhere (Ordinal), or what falls out (Global)."""
    rng = random.Random(seed)
    scores: Any = {
        (block.name, kind): shape(tuple(rng.random() for _ in range(block.units(kind).count)))
        for block, kind in vlm.select("all")
    }
    budget = Budget(scope, keep, units, families.family(vlm.family).extents(vlm.model, inputs_of(vlm)))
    return surgery.apply(vlm, solve(vlm, Ranking(scores), budget, tolerance=1e9), Ranking(scores))


def first(vlm: VLM, scope: Any, units: Any, stay: int) -> VLM:
    """The first `stay` units of every block."""
    parts: Any = {
        (block.name, kind): Keep(tuple(range(min(stay, block.units(kind).count))))
        for block, kind in vlm.select(scope, units)
    }
    return surgery.apply(vlm, Plan(parts, 0.5, 0.5), NOTHING)


def comes_back(vlm: VLM) -> str:
    """Write a model and read it: the same logits, bit for bit, and no warning. Returns the form."""
    inputs = inputs_of(vlm)
    dtype = next(vlm.model.parameters()).dtype
    inputs |= {key: value.to(dtype) for key, value in inputs.items() if value.is_floating_point()}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        form = families.save(vlm, Path(folder))
        again = families.load(folder, dtype=str(dtype).removeprefix("torch."))
        assert torch.equal(logits(again, inputs), logits(vlm, inputs)) and again.blocks == vlm.blocks
        assert families.save(again, Path(folder)) == form
    return form


# --- any family, size and budget ------------------------------------------------------------------------------

CASES = {
    "family": st.sampled_from(sorted(TINY)),
    "sizes": st.builds(
        Sizes,
        heads=st.integers(1, 6),
        groups=st.integers(1, 4),
        queries=st.integers(1, 3),
        tower=st.integers(1, 70),
        text=st.integers(1, 70),
    ),
    "scope": st.sampled_from(SCOPES),
    "units": st.sampled_from(["both", "heads", "ffn"]),
    "keep": st.floats(0.02, 0.98),
    "shape": st.sampled_from([Ordinal, Global]),
}


def holds(family: str, sizes: Sizes, scope: Any, units: Any, keep: float, shape: Any) -> None:
    vlm = sized(family, sizes)
    pruned = to_budget(vlm, scope, units, keep, shape)
    form = comes_back(pruned)
    assert form == "plain" or pruned.blocks != vlm.blocks


@settings(max_examples=8)
@given(**CASES)
@example("qwen3_vl", Sizes(heads=1, groups=1, queries=1, tower=1, text=1), "vision", "both", 0.5, Ordinal)
def test_every_cut_comes_back(family: str, sizes: Sizes, scope: Any, units: Any, keep: float, shape: Any) -> None:
    holds(family, sizes, scope, units, keep, shape)


@pytest.mark.slow
@settings(max_examples=150)
@given(**CASES)
def test_many_cuts_come_back(family: str, sizes: Sizes, scope: Any, units: Any, keep: float, shape: Any) -> None:
    holds(family, sizes, scope, units, keep, shape)


# --- widths that a config once seemed to say ------------------------------------------------------------------


def set_vision(**values: Any) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        for name, value in values.items():
            setattr(config.vision_config, name, value)

    return change


def set_config(**values: Any) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        for name, value in values.items():
            setattr(config, name, value)

    return change


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_head_of_many(family: str) -> None:
    """A third of an alias was no head at all; a class divides by its heads, or asks for what divides its width."""
    comes_back(first(sized(family, Sizes(heads=3, groups=3, queries=1)), "all", "heads", 1))


@pytest.mark.parametrize("heads", [1, 4, 5])
def test_heads_of_a_tower_that_has_another_name_for_them(heads: int) -> None:
    for stay in range(1, heads + 1):
        form = comes_back(first(sized("qwen2_5_vl", Sizes(heads=heads)), "vision", "heads", stay))
        assert (form == "plain") == (stay == heads)


@pytest.mark.parametrize(
    ("family", "change", "why"),
    [
        ("qwen2_vl", set_vision(), "its ratio of widths is whole"),
        ("llava", set_vision(), "its last layer is not read, so it stays wide"),
        ("llava", set_config(vision_feature_layer=[0, 1]), "nor are its last two"),
        ("internvl", set_config(vision_feature_layer=-2), "nor the last one here"),
        ("gemma3", set_vision(vision_use_head=True), "its pooling has an FFN of the same width, which no unit is of"),
        ("llava_onevision", set_vision(vision_use_head=True), "as here"),
    ],
)
def test_the_towers_channels_where_its_config_says_more_than_the_blocks(
    family: str, change: Callable[[Any], None], why: str
) -> None:
    assert comes_back(first(sized(family, Sizes(), change), "vision", "ffn", 3)) == "custom code", why


@pytest.mark.parametrize("family", sorted(TINY))
def test_what_a_config_can_say_is_plain(family: str) -> None:
    """Channels of the language model everywhere, and of the towers whose every layer is a block."""
    vlm = sized(family, Sizes())
    assert comes_back(first(vlm, "language", "ffn", 17)) == "plain"
    if family not in ("qwen2_vl", "llava"):
        assert comes_back(first(vlm, "vision", "ffn", 17)) == "plain"


def test_a_tower_without_a_block_is_no_reason_to_fail(tmp_path: Path) -> None:
    """transformers can build a model that reads the embedding of its tower, but not run it."""
    vlm = sized("internvl", Sizes(), set_config(vision_feature_layer=0))
    assert {block.component for block in vlm.blocks} == {"language"}
    assert families.save(first(vlm, "all", "ffn", 17), tmp_path) == "plain"


def test_half_precision(tmp_path: Path) -> None:
    families.save(sized("qwen2_5_vl", Sizes(heads=3)), tmp_path)
    assert comes_back(first(families.load(tmp_path, dtype="bfloat16"), "all", "both", 1)) == "custom code"


def test_a_missing_package_is_no_missing_width(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vlm = first(sized("llava", Sizes()), "language", "ffn", 17)

    def fail(*_: Any) -> None:
        raise ImportError("a package")

    monkeypatch.setattr(_saving, "difference", fail)
    with pytest.raises(ImportError, match="a package"):
        families.save(vlm, tmp_path)


# --- the command ----------------------------------------------------------------------------------------------


def test_prune_writes_a_tower_with_a_head_of_four(call: Call, questions: Path, tmp_path: Path) -> None:
    folder = build("qwen2_5_vl", tmp_path / "dense")
    words = ["--method", "uniform", "--budget", "0.25", "--scope", "vision", "--samples", "4", "--image", "32x32"]
    done = call("prune", folder, *words, "--data", questions, "--out", "small", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["form"] == "custom code"
    assert [block.heads.count for block in families.load("small").blocks][:2] == [1, 1]
