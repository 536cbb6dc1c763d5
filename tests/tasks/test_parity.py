"""Our adapter answers as lmms-eval's own adapter for Qwen2-VL does, question for question, on the same pixels.

What differs otherwise: the stock adapter encodes every image as JPEG (quality 85) before it shows it, and resizes it to
multiples of 28 pixels whatever the model's patches are. Both are taken out here: images are of such a size, and the
encoder writes PNG. With its JPEG the pixels are others, and a few answers may be.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness import families, registry, tasks
from harness.tasks import data
from harness.tasks.catalogue import ParquetSet
from harness.types import VLM
from tests.support.question_files import asked, write_parquet

SIDE = 112  # of images: a multiple of the stock adapter's 28 and of the embedded model's 16
NUMBER = 60
# As in Qwen2-VL's published template: without a system turn, it begins with this one. The stock adapter writes it out.
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """The embedded model, with a template and image sizes under which the stock adapter works."""
    folder = tmp_path_factory.mktemp("parity") / "model"
    shutil.copytree(registry.model("mini-qwen2-vl"), folder)
    template = folder / "chat_template.jinja"
    template.write_text(SYSTEM + template.read_text())
    config = folder / "processor_config.json"
    made = json.loads(config.read_text())
    for part in made.values():
        if isinstance(part, dict) and "size" in part:
            part["size"] = {"shortest_edge": 56 * 56, "longest_edge": SIDE * SIDE}
    config.write_text(json.dumps(made))
    return families.load(folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    made = pq.read_table(data.REFERENCE / "mini_vqav2" / "validation.parquet").to_pylist()[:NUMBER]
    for row in made:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((SIDE, SIDE))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        row["image"] = {"bytes": stream.getvalue(), "path": None}
    return write_parquet(folder / "validation.parquet", made).parent


def stock(model: VLM, questions: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The answers of lmms-eval's adapter, its images encoded in this format."""
    from harness.tasks import suite

    monkeypatch.setitem(sys.modules, "decord", ModuleType("decord"))  # reads videos, is not installed, not needed
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.model_utils.media_encoder import encode_image_to_data_url
    from lmms_eval.models.simple.qwen2_vl import Qwen2_VL

    if form == "PNG":
        monkeypatch.setattr(
            Qwen2_VL,
            "_encode_image_data_url",
            lambda self, image: encode_image_to_data_url(image, image_format="PNG", mime_type="image/png"),
        )
    known = tasks.question_set(str(questions))
    assert isinstance(known, ParquetSet)
    own: Any = suite.local(known.source("validation", None), "validation")
    theirs: Any = Qwen2_VL(
        pretrained=model.name, device="cpu", device_map="cpu", max_pixels=SIDE * SIDE, min_pixels=56 * 56
    )
    docs = own.eval_docs
    theirs.task_dict = {"made": {"validation": docs}}
    settings = {"max_new_tokens": 16, "do_sample": False}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(own.doc_to_text(doc), dict(settings), own.doc_to_visual, i, "made", "validation"),
            idx=0,
            metadata={"task": "made", "doc_id": i, "repeats": 1},
        )
        for i, doc in enumerate(docs)
    ]
    return [answer.strip() for answer in theirs.generate_until(requests)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the stock adapter: settings that transformers has given up
def test_answers_are_those_of_the_stock_adapter(model: VLM, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tasks.evaluate(model, asked([str(questions)]))[1]["answer"].to_pylist()
    assert len(ours) == NUMBER and len(set(ours)) > 5
    assert stock(model, questions, "PNG", monkeypatch) == ours
    for size in (1, 7):
        assert tasks.evaluate(model, asked([str(questions)]), batch_size=size)[1]["answer"].to_pylist() == ours


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_jpeg_is_what_makes_the_difference(model: VLM, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown what the stock adapter shows, images out of a JPEG, ours gives the stock adapter's answers again."""
    expected = stock(model, questions, "JPEG", monkeypatch)
    made = pq.read_table(questions / "validation.parquet").to_pylist()
    for row in made:
        stream = io.BytesIO()
        Image.open(io.BytesIO(row["image"]["bytes"])).save(stream, "JPEG", quality=85)
        row["image"] = {"bytes": stream.getvalue(), "path": None}
    folder = write_parquet(questions / "jpeg" / "validation.parquet", made).parent
    assert tasks.evaluate(model, asked([str(folder)]))[1]["answer"].to_pylist() == expected
