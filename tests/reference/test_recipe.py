"""The embedded model and its recipe: packing that changes nothing, runs that go on where they stopped."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from harness import cli, reference
from harness.families import encode
from harness.reference import train
from harness.reference.attention import enable
from harness.reference.model import SUFFIX
from harness.reference.packing import IGNORED, Example, ExampleBatches, Packer, SceneBatches, draw_example
from harness.reference.run import read, run, split
from harness.reference.scenes import COLOURS, SHAPES, SIDE, WORDS, Scene, Thing, render
from harness.types import InputError
from tests.support.question_files import question_rows, write_parquet

MODEL = Path(reference.__file__).parent / "model"

# --- the model and its batches --------------------------------------------------------------------------------


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    loader: Any = AutoModelForImageTextToText
    return loader.from_pretrained(folder, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("folder", ["shipped", "tiny"])
def test_checkpoints_load_as_any_other(folder: str, tiny_folder: Path) -> None:
    model, processor = load(MODEL if folder == "shipped" else tiny_folder)
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2VLProcessor"
    inputs = encode(processor, [[Image.new("RGB", (SIDE, SIDE), "red")]], ["What color is it?" + SUFFIX])
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert 1 <= made.shape[1] - inputs["input_ids"].shape[1] <= 3
    size = sum(file.stat().st_size for file in MODEL.glob("*.safetensors"))
    assert size <= 16e6


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@given(st.text(max_size=60) | st.text("0123456789 \t\n'abcé星🙂", max_size=60))
def test_any_text_encodes_and_comes_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_words_of_the_sets_are_single_tokens(tokenizer: Any) -> None:
    for word in (*COLOURS, *SHAPES, *WORDS, "yes", "no"):
        assert len(tokenizer(word)["input_ids"]) == 1 and len(tokenizer(f" {word}")["input_ids"]) == 1, word
    assert len(tokenizer("47")["input_ids"]) == 2  # digits stand alone


def examples() -> list[Example]:
    """Scenes with different numbers of questions, and pictures of other sizes and modes."""
    noise = torch.randint(256, (120, 50, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    return [
        draw_example("a", writing=False, number=6),
        draw_example("b", writing=True, number=3),
        Example(Image.fromarray(noise), (("x", "What is it?", "a tree"),)),
        Example(Image.new("L", (33, 97), 90), (("x", "Is there snow?", "no"), ("x", "How many?", "12"))),
    ]


@pytest.mark.parametrize("suffixed", [True, False])
def test_packed_questions_are_computed_as_if_asked_alone(tiny_folder: Path, suffixed: bool) -> None:
    plain, processor = load(tiny_folder)
    packed, _ = load(tiny_folder)
    enable(packed)
    batch = Packer(processor).pack(examples(), [suffixed] * 4)
    with torch.no_grad():
        seen = train.look(packed, batch)
        logits, targets = train.answer(packed, batch, seen)
        at = 0
        for example in examples():
            for _, question, reply in example.questions:
                text = question + (SUFFIX if suffixed else "")
                inputs = encode(processor, [[example.image]], [text], [reply])
                labels = inputs.pop("labels")[0, 1:]
                alone = plain(**inputs).logits[0, :-1][labels != IGNORED]
                wanted = labels[labels != IGNORED]
                torch.testing.assert_close(logits[at : at + len(wanted)], alone, atol=1e-4, rtol=1e-4)
                assert torch.equal(targets[at : at + len(wanted)], wanted)
                at += len(wanted)
    assert at == len(targets)


def test_images_of_one_size_and_of_many_are_seen_alike(tiny_folder: Path) -> None:
    """The tower's two ways of computing attention: all images as one batch, or one after the other."""
    model, processor = load(tiny_folder)
    enable(model)
    packer = Packer(processor)
    with torch.no_grad():
        mixed = train.look(model, packer.pack(examples(), [True] * 4))
        same = train.look(model, packer.pack(examples()[:2], [True] * 2))
    torch.testing.assert_close(mixed[: len(same)], same, atol=1e-4, rtol=1e-4)


def test_cells_say_what_stands_where(tiny_folder: Path) -> None:
    """Sixteen pixels a cell; 0 stands for nothing, but in rows and columns."""
    _, processor = load(tiny_folder)
    thing = Thing("star", "blue", "large", x=40.0, y=70.0, radius=11.0)
    sign = Thing("sign", "red", "large", x=70.0, y=20.0, radius=0, text="47", font="DejaVuSans", points=14)
    scene = Scene((thing, sign), 5)
    cells = Packer(processor).pack([Example(render(scene), (), scene)], [True])["cells"].unflatten(0, (6, 6))
    assert cells[4, 2].tolist() == [4, 5, 2, 0, 0, 0, 4, 2]
    assert cells[1, 4].tolist() == [7, 1, 2, 0, 5, 8, 1, 4]
    assert int((cells[..., 0] > 0).sum()) == 2


def test_streams_repeat_from_their_seed(tiny_folder: Path) -> None:
    packer = Packer(load(tiny_folder)[1])
    for make in (
        lambda seed: SceneBatches(packer, 3, seed, questions=4, ramp=30),
        lambda seed: ExampleBatches(packer, 3, seed, examples()),
    ):
        first, second, other = make("s")[2], make("s")[2], make("t")[2]
        assert torch.equal(first["ids"], second["ids"]) and torch.equal(first["patches"], second["patches"])
        assert first["patches"].shape != other["patches"].shape or not torch.equal(first["patches"], other["patches"])


def test_every_example_comes_once_an_epoch(tiny_folder: Path) -> None:
    own = [Example(Image.new("RGB", (32, 32)), (("x", f"Question {i}?", "yes"),)) for i in range(7)]
    stream = ExampleBatches(Packer(load(tiny_folder)[1]), 3, "s", own)
    drawn = [example.questions[0][1] for i in range(7) for example in stream._draw(i)]
    for epoch in range(3):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == [f"Question {i}?" for i in range(7)]


# --- training -------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def trained(out: Path, start: Path, recipe: train.Recipe, stop: int | None = None, **more: Any) -> list[dict[str, Any]]:
    """The curve of a run; with `stop`, it is cut off after that many images, just after their save."""

    def report(row: dict[str, Any]) -> None:
        if row["images"] == stop:
            raise Stopped

    torch.manual_seed(0)  # the read-outs' first weights
    train.train(out, recipe, start=start, report=report, **more)
    return json.loads((out / "state" / "progress.json").read_text())["curve"]


@pytest.mark.parametrize("stop", [16, 32, 48])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tiny_folder: Path, tmp_path: Path, stop: int) -> None:
    """Stopped in the tower's phase, between the phases, in the questions' phase."""
    recipe = train.Recipe(look=32, images=64, look_batch=16, batch=8, warmup=16, ramp=64, every=16)
    held = [draw_example("held out", writing=False)]
    whole = trained(tmp_path / "whole", tiny_folder, recipe, held_out=held)
    with pytest.raises(Stopped):
        trained(tmp_path / "halves", tiny_folder, recipe, stop=stop, held_out=held)
    resumed = trained(tmp_path / "halves", tiny_folder, recipe, held_out=held)
    assert [row["images"] for row in whole] == [row["images"] for row in resumed] == [16, 32, 48, 64]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=1e-5)
    begun = load_file(tiny_folder / "model.safetensors")
    assert any(not torch.equal(value, begun[name]) for name, value in weights[0].items())


def test_training_lowers_the_loss(tiny_folder: Path, tmp_path: Path) -> None:
    own = [
        Example(Image.new("RGB", (32, 32), colour), (("x", "What color is it?", colour),)) for colour in ("red", "blue")
    ]
    recipe = train.Recipe(look=0, images=240, batch=8, warmup=16, every=80, cells=0.0)
    curve = trained(tmp_path / "run", tiny_folder, recipe, examples=own)
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    model, processor = load(tmp_path / "run")  # an ordinary checkpoint, with no trace of how it was trained
    assert model.config._attn_implementation != "packed_flash"
    inputs = encode(processor, [[example.image] for example in own], ["What color is it?" + SUFFIX] * 2)
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert [text.strip() for text in processor.batch_decode(made, skip_special_tokens=True)] == ["red", "blue"]


@given(st.integers(0, 400_000))
def test_learning_rate_rises_and_falls_to_zero(done: int) -> None:
    recipe = train.Recipe()
    assert 0 <= recipe.rate_at(done) <= recipe.rate
    assert recipe.rate_at(recipe.images) == 0
    flat = (recipe.look + recipe.warmup, recipe.images - recipe.decay * (recipe.images - recipe.look))
    if flat[0] <= done <= flat[1]:
        assert recipe.rate_at(done) == recipe.rate
    if done > flat[1]:
        assert recipe.rate_at(done) < recipe.rate


@pytest.mark.parametrize("form", ["mini_vqav2", "mini_gqa", "mini_textvqa"])
def test_read_takes_every_official_form(tmp_path: Path, form: str) -> None:
    found = read(write_parquet(tmp_path / "mine.parquet", question_rows(form, 5)))
    assert len(found) == 5
    expected = [
        ("mine", "What colour is it?", "red"),
        ("mine", "How many are there?", "2"),
        ("mine", "Is it large?", "yes"),
    ]
    for example in found:
        assert list(example.questions) == expected and example.image.size == (48, 48) and example.scene is None


def test_read_takes_the_most_common_answer(tmp_path: Path) -> None:
    table = question_rows("mini_textvqa", 1)
    table[0]["answers"] = ["crimson", "red", "red", "dark red"]
    assert read(write_parquet(tmp_path / "mine.parquet", table))[0].questions[0][2] == "red"
    with pytest.raises(InputError, match=r"--data .*: no such file"):
        read(tmp_path)


@given(st.integers(1, 60))
def test_split_holds_out_a_tenth(number: int) -> None:
    every = [Example(Image.new("RGB", (1, 1)), (("x", str(i), "a"),)) for i in range(number)]
    kept, held = split(every)
    if number < 10:
        assert kept == held == every
    else:
        assert len(held) == -(-number // 10) and len(kept) + len(held) == number
        assert not {id(e) for e in kept} & {id(e) for e in held}


def test_run_trains_on_a_file_and_draws_its_curve(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "mine.parquet", question_rows("mini_gqa", 12))
    console = Console(file=io.StringIO())
    out = run(tmp_path / "out", images=64, data=data, start=tiny_folder, device="cpu", console=console)
    with Image.open(out / "state" / "curve.png") as curve:
        assert curve.size[0] > 600
    saved = json.loads((out / "state" / "progress.json").read_text())
    assert saved["images"] == 64 and saved["recipe"]["look"] == 0 and set(saved["curve"][-1]["accuracy"]) == {"mine"}
    load(out)
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "x", images=1, data=None, start=tmp_path / "none", device="cpu", console=console)
    assert not (tmp_path / "x").exists()


# --- the trained model ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reference_check_measures_every_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["infoprune", "reference", "check", "--limit", "60", "--json"])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    bars = json.loads(capsys.readouterr().out)["bars"]
    assert all(bar["measured"] for bar in bars)
    assert code == (0 if all(bar["holds"] for bar in bars) else 1)
    names = " | ".join(bar["name"] for bar in bars)
    for words in ("accuracy, mini_gqa", "blanked, mini_textvqa", "weights, MB", "0.3125 of language", "heads, vision"):
        assert words in names
    for bar in bars:
        assert bar["holds"] == (bar["ratio"] <= bar["goal"] if bar["at_most"] else bar["ratio"] >= bar["goal"])
