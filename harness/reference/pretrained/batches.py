"""Training batches: an image with several questions in one sequence, the image's tokens encoded once for all of them.

    batch = SceneBatches(Packer(processor), painter, size=8, seed="train", questions=8)[17]

Every question sees the image and itself, never another question, and its positions go on from the image's end: it is
computed as if it were asked alone. The last question of an image has the official suffix and the chat form, the others
only a line break before their answer, which halves their length.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.reference.model import SUFFIX
from harness.reference.packing import IGNORED, ChatForm
from harness.reference.pretrained.assemble import MEAN, STD
from harness.reference.pretrained.questions import WRITING_TASK, ask
from harness.reference.pretrained.render import Painter
from harness.reference.pretrained.scenes import Scene, draw
from harness.reference.questions import Question
from harness.reference.scenes import jpeg


@dataclass(frozen=True)
class Mix:
    """What is asked: the share of images with writing, and the sets that the others are asked, as often as named."""

    writing: float
    others: tuple[str, ...]


EVEN = Mix(writing=0.4, others=("things_vqav2", "things_gqa"))


@dataclass(frozen=True)
class Example:
    """One image with its questions, and the scene it was painted from, if any."""

    image: Image.Image
    questions: tuple[Question, ...]
    scene: Scene | None = None


def draw_example(seed: str, painter: Painter, number: int, *, mix: Mix = EVEN, training: bool = True) -> Example:
    """The example of a seed; unless `training`, with the combinations of things that training never shows."""
    rng = random.Random(seed)
    writing = rng.random() < mix.writing
    scene = draw(rng, writing=writing, training=training)
    questions = ask(scene, (WRITING_TASK,) if writing else mix.others, rng, number)
    rng.shuffle(questions)
    return Example(Image.open(io.BytesIO(jpeg(painter.render(scene)))), tuple(questions), scene)


def pixels(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """Images as the processor normalises them, (n, 3, side, side)."""
    arrays = [np.asarray(i.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), np.float32) for i in images]
    scaled = (np.stack(arrays) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(scaled.astype(np.float32)).permute(0, 3, 1, 2).contiguous()


class Packer:
    """Turns examples into tensors with a model's own processor and chat template."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.form = processor, ChatForm(processor)
        self.side = processor.image_processor.size["height"]
        shown = processor.start_image_token + processor.image_token * processor.image_seq_length
        shown += processor.end_image_token
        self.start = self.form.ids(self.form.head.replace(processor.image_token, shown))
        self.image = processor.image_token_id

    def pack(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A batch: pixels, ids, labels and positions (n, length), the mask (n, 1, length, length), forms per row."""
        end = self.processor.tokenizer.eos_token
        rows = []
        for example in examples:
            pairs = []
            for place, question in enumerate(example.questions):
                last = place == len(example.questions) - 1
                prompt = question.text + (SUFFIX + self.form.tail if last else "\n")
                pairs.append((self.form.ids(prompt), self.form.ids(question.answer + end)))
            rows.append(pairs)
        start = len(self.start)
        length = start + max(sum(len(prompt) + len(reply) for prompt, reply in pairs) for pairs in rows)
        shape = (len(rows), length)
        ids = torch.full(shape, self.processor.tokenizer.pad_token_id)
        labels, positions = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
        part = torch.full(shape, -1)  # 0: the shared start; 1, 2, ...: which question; -1: padding
        ids[:, :start], positions[:, :start], part[:, :start] = torch.tensor(self.start), torch.arange(start), 0
        for row, pairs in enumerate(rows):
            at = start
            for number, (prompt, reply) in enumerate(pairs, 1):
                stop = at + len(prompt) + len(reply)
                ids[row, at:stop] = torch.tensor(prompt + reply)
                labels[row, stop - len(reply) : stop] = torch.tensor(reply)
                positions[row, at:stop] = torch.arange(start, start + stop - at)
                part[row, at:stop] = number
                at = stop
        seen = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
        seen &= torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(len(rows), 1, length, length).masked_fill(~seen[:, None], torch.finfo(torch.bfloat16).min)
        return {
            "pixels": pixels([example.image for example in examples], self.side),
            "ids": ids,
            "labels": labels,
            "positions": positions,
            "part": part,
            "mask": mask.to(torch.bfloat16),
            "scenes": [example.scene for example in examples],
            "forms": [[question.form for question in example.questions] for example in examples],
        }


class SceneBatches:
    """Batch i of the endless stream of a seed."""

    def __init__(
        self,
        packer: Packer,
        painter: Painter,
        size: int,
        seed: str,
        questions: int,
        mix: Mix = EVEN,
        training: bool = True,
    ) -> None:
        self.packer, self.painter, self.size, self.seed = packer, painter, size, seed
        self.questions, self.mix, self.training = questions, mix, training

    def __getitem__(self, index: int) -> dict[str, Any]:
        names = [f"{self.seed}/{index}/{i}" for i in range(self.size)]
        options = {"mix": self.mix, "training": self.training}
        drawn = [draw_example(name, self.painter, self.questions, **options) for name in names]
        return self.packer.pack(drawn)
