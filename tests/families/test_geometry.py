"""Families at the sizes of published models, without weights; and what no family can describe, said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from harness import families
from harness.types import Extent, InputError
from tests.support.family_configs import PUBLISHED, build, published

# --- published geometries ---------------------------------------------------------------------------------

# Hub id: inputs of one image, and tokens and pairs of the tower for it (by hand).
GEOMETRY: dict[str, tuple[dict[str, Tensor], dict[str, int]]] = {
    "Qwen/Qwen2-VL-7B-Instruct": ({"image_grid_thw": torch.tensor([[1, 36, 36]])}, {"tokens": 1296, "pairs": 1296**2}),
    "Qwen/Qwen2.5-VL-7B-Instruct": (  # windows of 8 x 8 patches, 4 wide at the edge
        {"image_grid_thw": torch.tensor([[1, 36, 36]])},
        {"tokens": 1296, "pairs": 1296**2, "window_pairs": (4 * 64 + 16) ** 2},
    ),
    "Qwen/Qwen3-VL-8B-Instruct": ({"image_grid_thw": torch.tensor([[1, 36, 36]])}, {"tokens": 1296, "pairs": 1296**2}),
    "llava-hf/llava-1.5-7b-hf": ({"pixel_values": torch.ones(1, 3, 336, 336)}, {"tokens": 577, "pairs": 577**2}),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (  # a wide image: two tiles and a thumbnail; the rest is padding
        {
            "pixel_values": torch.ones(1, 5, 3, 384, 384),
            "image_sizes": torch.tensor([[384, 700]]),
            "batch_num_images": torch.tensor([1]),
        },
        {"tokens": 3 * 729, "pairs": 3 * 729**2},
    ),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (
        {"pixel_values": torch.cat([torch.ones(1, 2, 3, 512, 512), torch.zeros(1, 1, 3, 512, 512)], 1)},
        {"tokens": 2 * 1024, "pairs": 2 * 1024**2},
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": (
        {"pixel_values": torch.ones(1, 1, 3, 384, 384)},
        {"tokens": 729, "pairs": 729**2},
    ),
    "OpenGVLab/InternVL3-1B": ({"pixel_values": torch.ones(2, 3, 448, 448)}, {"tokens": 2050, "pairs": 2 * 1025**2}),
    "google/gemma-3-4b-it": ({"pixel_values": torch.ones(1, 3, 896, 896)}, {"tokens": 4096, "pairs": 4096**2}),
}


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_published_geometry(hub_id: str) -> None:
    """The sizes give the published number of parameters, and the blocks hold every Linear of the layers that count."""
    model_type, vision, text, _, parameters = PUBLISHED[hub_id]
    model, family = published(hub_id), families.family(model_type)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    blocks = family.blocks(model)
    language = [block for block in blocks if block.component == "language"]
    assert len(language) == text["num_hidden_layers"]
    assert {block.heads.count for block in language} == {text["num_key_value_heads"]}
    unread = model_type == "llava"
    assert len(blocks) - len(language) == vision.get("num_hidden_layers", 32) - unread
    linears = [
        module.weight.numel()
        for block in blocks
        for module in model.get_submodule(block.path).modules()
        if isinstance(module, nn.Linear)
    ]
    units = [block.units(kind) for block in blocks for kind in ("heads", "ffn")]
    assert sum(u.count * u.token_macs for u in units) == sum(linears)
    pixels, expected = GEOMETRY[hub_id]
    found = family.extents(model, {**pixels, "input_ids": torch.zeros(2, 100)})
    assert found == {"vision": Extent(**expected), "language": Extent(200, 20_000)}


# --- what is refused --------------------------------------------------------------------------------------


def made(model_type: str, **parts: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **parts))


@pytest.mark.parametrize(
    ("model_type", "parts", "message"),
    [
        (
            "llava",
            {"text_config": {"model_type": "phi3", "num_hidden_layers": 1, "pad_token_id": 0}},
            r"language_model\.layers\.0\.self_attn \(Phi3Attention\) has no Linear 'q_proj'; .*qkv_proj \(Linear\)",
        ),
        (
            "llava",
            {"vision_config": {"model_type": "pixtral", "num_hidden_layers": 1}},
            r"no layers at model\.vision_tower\.encoder\.layers; .*transformer\.layers\.0-0: .*q_proj 1024>1024",
        ),
        (
            "internvl",
            {"vision_config": {"use_qk_norm": True, "num_hidden_layers": 1}},
            r"layer\.0\.attention\.q_norm normalises all heads together",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(model_type: str, parts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        families.family(model_type).blocks(made(model_type, **parts))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of LLaVA, to be given another config."""
    return build("llava", tmp_path_factory.mktemp("other") / "checkpoint")


def test_an_unknown_architecture_is_described_not_guessed(other: Path) -> None:
    config = AutoConfig.for_model(
        "paligemma", text_config={"num_hidden_layers": 3}, vision_config={"num_hidden_layers": 2}
    )
    config.save_pretrained(other)
    with pytest.raises(InputError) as error:
        families.load(other)
    text = str(error.value)
    assert "\n" not in text and "unknown model_type 'paligemma'" in text and "llava" in text
    assert "write harness/families/paligemma.py with blocks, extents and stages" in text
    assert "model.language_model.layers.0-2: self_attn.q_proj" in text
    assert "model.vision_tower.encoder.layers.0-1: self_attn.k_proj" in text


def test_code_in_a_checkpoint_does_not_run_unasked(other: Path) -> None:
    (other / "config.json").write_text('{"model_type": "strange", "auto_map": {"AutoConfig": "configuration_x.X"}}')
    (other / "configuration_x.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InputError, match="unknown model_type 'strange'"):
        families.load(other)


def test_loading_options_reach_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(source: str, **options: Any) -> Any:
        raise OSError(f"{source} {options}")

    monkeypatch.setattr(AutoConfig, "from_pretrained", asked)
    with pytest.raises(InputError, match=r"owner/name {'revision': 'v1', 'trust_remote_code': False}"):
        families.load("owner/name", revision="v1")
