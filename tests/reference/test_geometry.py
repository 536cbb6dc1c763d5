"""The shipped geometries: made from what they say, of the published number of parameters, loadable without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from harness import families, registry
from harness.families import encode
from harness.reference import geometry

# What the hub shows for the checkpoints, and by hand for two layers of each component at a vocabulary of 1,024.
PARAMETERS = {
    "qwen2-vl-2b-geometry": 2_208_985_600,
    "qwen2-vl-7b-geometry": 8_291_375_616,
    "llava-1.5-7b-geometry": 7_063_427_072,
}


def test_every_geometry_is_shipped_and_found() -> None:
    assert registry.geometries() == sorted(geometry.MADE) == sorted({*PARAMETERS, "mini-geometry"})
    for name in geometry.MADE:
        families.check_folder(Path(registry.model(name)), random_weights=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_geometry_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(registry.model(name)))
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", geometry.MADE)
def test_the_folder_is_what_the_recipe_writes(name: str, tmp_path: Path) -> None:
    written = {file.name: file.read_bytes() for file in geometry.write(name, tmp_path).iterdir()}
    shipped = {file.name: file.read_bytes() for file in Path(registry.model(name)).iterdir()}
    assert written.keys() == shipped.keys()
    for file, content in shipped.items():  # the version of transformers that wrote it may differ
        assert _lines(content) == _lines(written[file]), file


def _lines(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines() if b"transformers_version" not in line]


@pytest.mark.parametrize(("side", "patches"), [(224, 256), (448, 1024), (896, 4096)])
def test_image_sizes_give_the_patches_that_are_timed(side: int, patches: int) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(registry.model("qwen2-vl-7b-geometry"))
    inputs = encode(processor, [[Image.new("RGB", (side, side))]], ["What is it?"])
    assert len(inputs["pixel_values"]) == patches


@pytest.mark.slow
def test_the_small_one_runs_with_random_weights() -> None:
    vlm = families.load(registry.model("mini-geometry"), random_weights=True, dtype="bfloat16", name="mini-geometry")
    assert [block.component for block in vlm.blocks] == ["vision"] * 2 + ["language"] * 2
    inputs = encode(vlm.processor, [[Image.new("RGB", (56, 56))]], ["What is it?"])
    stages = families.family(vlm.family).stages(vlm.model, inputs)
    with torch.no_grad():
        assert all(torch.isfinite(call()).all() for call in stages.values())
