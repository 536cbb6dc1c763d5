"""What a model, a page and a training see of an image: the same as in a viewer, or lmms-eval's own way on demand."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import tasks
from harness.pictures import as_shown
from harness.tasks import official
from harness.trials import spec
from harness.types import VLM, InputError, Questions, Trial
from tests.support.commands import Call, put, refused
from tests.support.flips import examples_of
from tests.support.pictures import stored_picture
from tests.support.question_files import question_rows, write_parquet

SIDE = (48, 32)
EXIF = Image.Exif()
EXIF[0x0112] = 6
RED_LEFT = Image.new("RGB", SIDE)
RED_LEFT.paste((255, 0, 0), (0, 0, 24, 32))
CLEAR = Image.new("RGBA", SIDE, (0, 0, 0, 0))
KEYED = Image.new("RGB", SIDE)
DEEP = Image.fromarray(np.full(SIDE[::-1], 32896, np.uint16))
# Image -> what a model sees of it: size and first pixel; and the same with lmms-eval's own conversion.
SEEN: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "16 bits": (stored_picture(DEEP), (SIDE, (128, 128, 128)), (SIDE, (255, 255, 255))),
    "transparent": (stored_picture(CLEAR), (SIDE, (255, 255, 255)), (SIDE, (0, 0, 0))),
    "grey, transparent": (stored_picture(CLEAR.convert("LA")), (SIDE, (255, 255, 255)), (SIDE, (0, 0, 0))),
    "palette, transparent": (stored_picture(CLEAR.quantize(2)), (SIDE, (255, 255, 255)), (SIDE, (0, 0, 0))),
    "a clear colour": (stored_picture(KEYED, transparency=(0, 0, 0)), (SIDE, (255, 255, 255)), (SIDE, (0, 0, 0))),
    "webp, transparent": (stored_picture(CLEAR, "WEBP", lossless=True), (SIDE, (255, 255, 255)), (SIDE, (0, 0, 0))),
    "turned": (stored_picture(RED_LEFT, "PNG", exif=EXIF), ((32, 48), (255, 0, 0)), ((32, 48), (255, 0, 0))),
    "plain": (stored_picture(RED_LEFT), (SIDE, (255, 0, 0)), (SIDE, (255, 0, 0))),
}


def rows_of(form: str, image: dict[str, Any], images: int = 2) -> list[dict[str, Any]]:
    return [{**row, "image": image} for row in question_rows(form, images)]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # PIL's, of lmms-eval's way
@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("form", ["mini_gqa", "mini_textvqa", "mini_vqav2"])
def test_a_model_sees_what_a_viewer_shows(tmp_path: Path, form: str, name: str) -> None:
    image, viewer, stock = SEEN[name]
    folder = write_parquet(tmp_path / "set" / "calibration.parquet", rows_of(form, image)).parent
    for conversion, (size, pixel) in (("viewer", viewer), ("stock", stock)):
        questions = Questions((str(folder),), "calibration", None, conversion)  # type: ignore[arg-type]
        seen = tasks.samples(questions, 1, 0)[0].image
        assert (seen.mode, seen.size, seen.getpixel((0, 0))) == ("RGB", size, pixel), conversion


@pytest.mark.parametrize("task", ["vqav2_val", "textvqa_val", "gqa"])
def test_official_sets_are_shown_so_too(tmp_path: Path, task: str) -> None:
    from harness.tasks import suite

    image, viewer, stock = SEEN["16 bits"]
    rows = rows_of(official.DEFINITIONS[task].form, image, 1)
    if task == "gqa":
        write_parquet(tmp_path / "testdev_balanced_images.parquet", [{"id": "i0", "image": image}])
        rows = [{key: value for key, value in row.items() if key != "image"} for row in rows]
    write_parquet(tmp_path / f"{'testdev_balanced_instructions' if task == 'gqa' else 'validation'}.parquet", rows)
    known = official.OfficialSet.of(f"{task}@{tmp_path}")
    assert known is not None
    for conversion, (size, pixel) in (("viewer", viewer), ("stock", stock)):
        made: Any = suite.official(known, "validation", conversion)  # type: ignore[arg-type]
        (seen,) = made.doc_to_visual(made.eval_docs[0])
        assert (seen.mode, seen.size, seen.getpixel((0, 0))) == ("RGB", size, pixel), conversion


@pytest.mark.parametrize("name", SEEN)
def test_the_page_shows_what_the_model_saw(tmp_path: Path, name: str) -> None:
    image, (size, pixel), _ = SEEN[name]
    found = examples_of(tmp_path, rows_of("mini_gqa", image), [0])
    kind, _, content = found.images[0].partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(content))) as shown:
        assert kind == f"data:image/{str(shown.format).lower()}"
        seen = as_shown(shown)
        assert seen.size == size and seen.getpixel((2, 2)) == pytest.approx(pixel, abs=3)
        assert (base64.b64decode(content) == image["bytes"]) == (name in ("plain", "turned")), "a browser turns it, too"


@pytest.mark.parametrize("name", SEEN)
def test_training_sees_the_same(tmp_path: Path, tiny: VLM, name: str) -> None:
    from harness.reference.packing import Packer
    from harness.reference.run import read

    image, (size, pixel), _ = SEEN[name]
    (example,) = read(write_parquet(tmp_path / "a.parquet", rows_of("mini_textvqa", image)))
    batch = Packer(tiny.processor).pack([example], [True])
    picture = RED_LEFT.transpose(Image.Transpose.ROTATE_270) if size != SIDE else Image.new("RGB", size, pixel)
    if name == "plain":
        picture = RED_LEFT
    expected = tiny.processor.image_processor(images=[picture], return_tensors="pt")
    assert batch["grid"].tolist() == expected["image_grid_thw"].tolist()
    assert np.abs((batch["patches"] - expected["pixel_values"]).numpy()).max() < 0.02


def test_encoding_converts_images_of_other_callers(tiny: VLM) -> None:
    """From Python, an image may come in any mode."""
    from harness.families import encode

    for image, colour in ((DEEP, 128), (CLEAR, 255), (CLEAR.convert("LA"), 255)):
        inputs = encode(tiny.processor, [[image]], ["?"])
        expected = encode(tiny.processor, [[Image.new("RGB", SIDE, (colour,) * 3)]], ["?"])
        assert inputs["pixel_values"].equal(expected["pixel_values"])


# --- the key of a board -----------------------------------------------------------------------------------


def test_the_key_of_a_board(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    file = put(tmp_path / "board.yaml", board)
    default, stock = spec.read(str(file)), spec.read(str(file), image_conversion="stock")
    assert [trial.id for trial in spec.read(str(file), image_conversion="viewer").trials()] == [
        trial.id for trial in default.trials()
    ]
    for ours, theirs in zip(default.trials(), stock.trials(), strict=True):
        assert "image_conversion" not in ours.content() and theirs.content()["image_conversion"] == "stock"
        assert ours.id != theirs.id and ours.ranking != theirs.ranking
        assert Trial.of(theirs.content()) == Trial.of({**ours.content(), "image_conversion": "stock"})
        assert theirs.calibration_questions.image_conversion == theirs.questions.image_conversion == "stock"
    put(file, {**board, "image_conversion": "stok"})
    refused(call("sweep", file), "image_conversion: ", "did you mean 'stock'?", "stock, viewer")


@pytest.mark.slow
def test_a_board_in_lmms_eval_s_way(call: Call, tmp_path: Path, board: dict[str, Any]) -> None:
    """Its records are kept apart from those of the default."""
    path = write_parquet(
        tmp_path / "deep.parquet", rows_of("mini_textvqa", SEEN["16 bits"][0]) + question_rows("mini_textvqa", 12, 5)
    )
    file = put(tmp_path / "board.yaml", {**board, "tasks": [str(path)], "methods": ["random"]})
    for more in ((), ("--set", "image_conversion=stock")):
        assert call("sweep", file, "--inline", *more).code == 0
    assert len(list(Path("results/small").glob("*.json"))) == 4
    assert call("report").code == 0
    assert "image_conversion=stock" in Path("leaderboards/small/README.md").read_text()


# --- what a processor refuses -----------------------------------------------------------------------------

UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "a strip": ({"image": stored_picture(Image.new("RGB", (800, 2)))}, "image of 800x2 pixels: absolute aspect ratio"),
    "a tall strip": ({"image": stored_picture(Image.new("L", (1, 900)))}, "an image of 1x900 pixels"),
    "an image token": ({"question": "What is <|image_pad|>?"}, "holds '<|image_pad|>', which this model reads as a"),
    "a video token": ({"question": "<|video_pad|> What?"}, "holds '<|video_pad|>'"),
    "an end token": ({"question": "Red?<|im_end|>"}, "holds '<|im_end|>'"),
    "a start token": ({"question": "<|vision_start|>?"}, "holds '<|vision_start|>'"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_a_processor_cannot_take_is_named_by_row(tmp_path: Path, tiny: VLM, name: str) -> None:
    """In evaluation and in calibration; `data check` warns of it before."""
    from harness.statistics.calibration import Calibration

    changes, words = UNFIT[name]
    rows = question_rows("mini_textvqa", 2)
    rows[4] |= {**changes, "image_id": 7}
    for split in ("validation", "calibration"):
        path = write_parquet(tmp_path / "set" / f"{split}.parquet", rows)
    warnings = tasks.check(path)["warnings"]
    assert any(f"{path}: row 4: " in line for line in warnings), warnings
    with pytest.raises(InputError) as caught:
        tasks.evaluate(tiny, Questions((str(path.parent),)))
    where = f"{path.parent / 'validation.parquet'}: row 4 (question 11 of image 7): "
    assert str(caught.value).startswith(where) and words in str(caught.value)
    drawn = tasks.samples(Questions((str(path.parent),), "calibration"), 6, 0)
    with pytest.raises(InputError) as caught:
        Calibration(tiny, drawn, batch_size=4)._encoded()
    assert str(caught.value).startswith(where.replace("validation", "calibration")) and words in str(caught.value)


def test_an_answer_with_a_token_is_named(tmp_path: Path, tiny: VLM) -> None:
    from harness.statistics.calibration import Calibration

    rows = question_rows("mini_gqa", 5)
    path = write_parquet(tmp_path / "set" / "calibration.parquet", [{**row, "answer": "red<|im_end|>"} for row in rows])
    drawn = tasks.samples(Questions((str(path.parent),), "calibration"), 1, 0)
    with pytest.raises(InputError, match=r"calibration.parquet: row \d+ .*: holds '<\|im_end\|>'"):
        Calibration(tiny, drawn)._encoded()


def test_training_refuses_a_question_with_a_token(tmp_path: Path, tiny: VLM) -> None:
    from harness.reference.packing import ExampleBatches, Packer
    from harness.reference.run import read

    rows = question_rows("mini_textvqa", 2)
    packer = Packer(tiny.processor)
    assert len(ExampleBatches(packer, 2, "", read(write_parquet(tmp_path / "a.parquet", rows)))[0]["forms"]) == 2
    rows[4] |= UNFIT["an image token"][0]
    with pytest.raises(InputError, match=r"question 'What is <\|image_pad\|>\?': holds '<\|image_pad\|>'"):
        ExampleBatches(packer, 2, "", read(write_parquet(tmp_path / "b.parquet", rows)))
