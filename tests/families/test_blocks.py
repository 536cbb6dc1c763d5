"""Blocks describe the modules that are there, stages run, and what cannot be loaded is said in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import nn

from harness import families
from harness.families import encode
from harness.types import VLM, Extent, InputError


@pytest.fixture(scope="module")
def inputs(tiny: VLM) -> dict[str, torch.Tensor]:
    images = [[Image.new("RGB", (64, 64), "red")], [Image.new("RGB", (96, 64), "blue")]]
    return encode(tiny.processor, images, ["How many?", "What colour is the star?"])


# --- blocks -----------------------------------------------------------------------------------------------


def test_blocks_stand_in_order_and_have_names_of_their_own(tiny: VLM) -> None:
    assert [block.name for block in tiny.blocks] == ["vision.0", "vision.1", "language.0", "language.1"]
    for block in tiny.blocks:
        assert block.name == f"{block.component}.{block.index}"
        inside = {id(module) for module in tiny.model.get_submodule(block.path).modules()}
        assert all(id(tiny.model.get_submodule(units.consumer)) in inside for units in (block.heads, block.ffn))
        assert tiny.block(block.name) is block
        assert (block.heads.kind, block.ffn.kind) == ("heads", "ffn")


def test_units_cover_their_linears(tiny: VLM) -> None:
    """All rows of the producers and all columns of the consumer belong to exactly one unit."""
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        consumer = tiny.model.get_submodule(units.consumer)
        assert isinstance(consumer, nn.Linear) and units.consumer.startswith(block.path)
        assert consumer.in_features == units.count * units.width
        owned: dict[str, list[int]] = {}
        for rows in units.producers:
            assert rows.module.startswith(block.path)
            owned.setdefault(rows.module, []).extend(range(rows.offset, rows.offset + units.count * rows.width))
        for path, rows in owned.items():
            producer = tiny.model.get_submodule(path)
            assert isinstance(producer, nn.Linear)
            assert sorted(rows) == list(range(producer.out_features))


def test_unit_costs_are_the_weights_that_leave(tiny: VLM) -> None:
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        paths = {rows.module for rows in units.producers} | {units.consumer}
        assert units.count * units.token_macs == sum(tiny.model.get_parameter(f"{p}.weight").numel() for p in paths)
    assert tiny.block("vision.0").heads.pair_macs == 2 * 8  # scores and sums, each the width of a head
    assert tiny.block("language.0").heads.pair_macs == 2 * 2 * 12  # two query heads a group
    assert {block.ffn.pair_macs for block in tiny.blocks} == {0}
    assert [block.ffn.gated for block in tiny.blocks] == [False, False, True, True]


def test_sizes_name_what_the_modules_hold(tiny: VLM) -> None:
    for block, kind in tiny.select("all"):
        for path, attribute, amount in block.units(kind).sizes:
            assert getattr(tiny.model.get_submodule(path), attribute) == amount * block.units(kind).count


def test_selection_follows_scope_and_kinds(tiny: VLM) -> None:
    assert len(tiny.select("all")) == 8 and len(tiny.select("vision")) == 4
    assert {kind for _, kind in tiny.select("language", "ffn")} == {"ffn"}
    assert {block.component for block, _ in tiny.select("language")} == {"language"}


# --- extents and stages -----------------------------------------------------------------------------------


def test_extents_count_tokens_and_pairs(tiny: VLM, inputs: dict[str, torch.Tensor]) -> None:
    found = families.family(tiny.family).extents(tiny.model, inputs)
    assert found["vision"] == Extent(8 * 8 + 12 * 8, (8 * 8) ** 2 + (12 * 8) ** 2)
    rows, length = inputs["input_ids"].shape
    assert rows == 2 and found["language"] == Extent(2 * length, 2 * length**2)


def test_stages_run_and_are_what_they_say(tiny: VLM, inputs: dict[str, torch.Tensor]) -> None:
    stages = families.family(tiny.family).stages(tiny.model, inputs)
    assert set(stages) == {"vision", "language", "all", "decode"}
    rows, length = inputs["input_ids"].shape
    with torch.no_grad():
        image_tokens = int((inputs["input_ids"] == cast(Any, tiny.model).config.image_token_id).sum())
        assert torch.cat(tuple(stages["vision"]())).reshape(-1, 48).shape == (image_tokens, 48)
        assert stages["language"]().shape == (rows, length, 48)
        torch.testing.assert_close(stages["all"](), tiny.model(**inputs).logits[:, -1:])
        first = stages["decode"]()
        assert first.shape == (rows, 1, 48)
        for _ in range(3):  # a step leaves the cache as it was, so that it can be timed again and again
            assert torch.equal(stages["decode"](), first)


# --- loading ----------------------------------------------------------------------------------------------


def test_a_loaded_model_is_frozen_in_evaluation_mode(tiny: VLM) -> None:
    assert tiny.name == "tiny" and tiny.family == "qwen2_vl"
    assert not tiny.model.training
    assert not any(weight.requires_grad for weight in tiny.model.parameters())


def test_the_hash_is_of_the_weights(tiny: VLM, tiny_folder: Path) -> None:
    assert families.load(tiny_folder).weights_hash == tiny.weights_hash
    weight = next(tiny.model.parameters())
    before = weight.flatten()[0].item()
    weight.data.flatten()[0] += 1
    try:
        assert families.weights_hash(tiny.model) != tiny.weights_hash
    finally:
        weight.data.flatten()[0] = before


def test_the_hash_does_not_depend_on_strides() -> None:
    column = torch.nn.Linear(1, 5, bias=False)  # as a factor of rank 1
    before = families.weights_hash(column)
    column.weight.data = column.weight.data.reshape(1, 5).clone().T
    assert column.weight.stride(-1) == 5 and families.weights_hash(column) == before


def test_dtype(tiny_folder: Path) -> None:
    loaded = families.load(tiny_folder, dtype="bfloat16")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    for wrong in ("float23", "nn", "Tensor"):
        with pytest.raises(InputError, match=f"'{wrong}' is not a torch dtype"):
            families.load(tiny_folder, dtype=wrong)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["./nothere", "/nothere/at/all", "nothere", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=f"model {name}: no such folder"):
        families.load(name)


def test_a_hub_id_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="model nobody/nothing: ") as error:
        families.load("nobody/nothing")
    assert "\n" not in str(error.value)


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"copy: config\.json is missing"):
        families.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: not a transformers config with a model_type"):
        families.load(folder)


def test_an_unsupported_class(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(InputError, match=r"config\.json: unknown model_type 'bert'; .*qwen2_vl"):
        families.load(folder)


def test_a_folder_without_processor(folder: Path) -> None:
    for path in folder.glob("*processor*.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"copy: no processor \(preprocessor_config\.json"):
        families.load(folder)


def test_weights_in_another_format(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match=r"copy: no \*\.safetensors weights"):
        families.load(folder)


def test_weights_that_are_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: not a complete safetensors file"):
        families.load(folder)


def test_an_unknown_family_lists_those_there() -> None:
    with pytest.raises(InputError, match=r"unknown model type 'llama'; .*qwen2_vl"):
        families.family("llama")
