"""Training batches: one image and all its questions in one sequence, so that the image is encoded once.

Every question attends to the image and to itself, never to another question: positions restart after the image, and
attention is restricted (attention.py). So a packed question gives exactly the result of the same question alone.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from harness.families import refuse_tokens
from harness.pictures import as_shown
from harness.reference.model import MERGE, PATCH, SUFFIX
from harness.reference.questions import ask
from harness.reference.scenes import COLOURS, SHAPES, SIZES, WORDS, Scene, jpeg, objects_scene, render, text_scene

IGNORED = -100
REMEMBERED = 100_000  # texts whose ids are kept
WRITING_SHARE = 0.4  # share of batches with signs
EASY = 0.3  # share of training batches with only two or three things; the model learns equality there first
# What the read-outs predict for every merged patch: the thing centred in it, and the patch's place.
CELL_CLASSES = {
    "shape": len(SHAPES) + 2,
    "colour": len(COLOURS) + 1,
    "size": len(SIZES) + 1,
    "word": len(WORDS) + 1,
    "tens": 11,
    "ones": 11,
    "row": 12,
    "column": 12,
}
CONTENT = list(CELL_CLASSES).index("row")  # the columns before it describe the thing, the others the place


@dataclass(frozen=True)
class Example:
    """One image with its questions (form, text, answer), and its scene if the image was generated."""

    image: Image.Image
    questions: tuple[tuple[str, str, str], ...]
    scene: Scene | None = None


def draw_example(seed: str, writing: bool, difficulty: float = 1.0, number: int = 10) -> Example:
    """The example of a seed: a scene of signs if `writing`, otherwise of shapes (two sets of questions).

    `difficulty`, 0 to 1: the number of things in the scene.
    """
    rng = random.Random(seed)
    if writing:
        scene = text_scene(rng, signs=1 + round(2 * difficulty), distractors=round(2 * difficulty))
        tasks = {"mini_textvqa": number}
    else:
        scene = objects_scene(rng, least=2 + round(difficulty), most=3 + round(5 * difficulty))
        tasks = {"mini_gqa": number - number // 3, "mini_vqav2": number // 3}
    questions = [(f"{t}.{q.form}", q.text, q.answer) for t, n in tasks.items() if n for q in ask(scene, t, rng, n)]
    return Example(Image.open(io.BytesIO(jpeg(render(scene)))), tuple(questions), scene)


def _cells(scene: Scene | None, rows: int, columns: int) -> torch.Tensor:
    """Targets of the read-outs, (rows * columns, len(CELL_CLASSES)); all IGNORED without a scene."""
    if scene is None:
        return torch.full((rows * columns, len(CELL_CLASSES)), IGNORED)
    cells = torch.zeros(rows, columns, len(CELL_CLASSES), dtype=torch.long)
    cells[..., CONTENT], cells[..., CONTENT + 1] = torch.arange(rows)[:, None], torch.arange(columns)
    edge = PATCH * MERGE
    for thing in scene.things:
        number = thing.text.isdigit()
        cells[int(thing.y) // edge, int(thing.x) // edge, :CONTENT] = torch.tensor(
            [
                1 + (*SHAPES, "sign").index(thing.shape),
                1 + list(COLOURS).index(thing.colour),
                1 + list(SIZES).index(thing.size),
                1 + WORDS.index(thing.text) if thing.text in WORDS else 0,
                1 + int(thing.text[0]) if number else 0,
                1 + int(thing.text[1]) if number else 0,
            ]
        )
    return cells.flatten(0, 1)


class ChatForm:
    """What a processor's chat template puts before and after a question with an image, and its tokenizer's ids."""

    def __init__(self, processor: Any) -> None:
        self._tokenizer = processor.tokenizer
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\0"}]}]
        rendered = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        self.head, self.tail = rendered.split("\0")
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, remembered."""
        if text not in self._known:
            if len(self._known) > REMEMBERED:
                self._known.clear()
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]


class Packer:
    """Turns examples into tensors with a model's own processor and chat template."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.form = processor, ChatForm(processor)
        self.before, self.after = map(self.form.ids, self.form.head.split(processor.image_token))

    def pack(self, examples: Sequence[Example], suffix: Sequence[bool]) -> dict[str, Any]:
        """A batch: ids, labels (n, length), positions (3, n, length), patches, grid, cell targets and the layout."""
        images = self.processor.image_processor(images=[as_shown(e.image) for e in examples], return_tensors="pt")
        tokenizer = self.processor.tokenizer
        starts, cells, replies = [], [], []
        for example, (_, high, wide), suffixed in zip(examples, images["image_grid_thw"].tolist(), suffix, strict=True):
            high, wide = high // MERGE, wide // MERGE
            begin, resume = len(self.before), len(self.before) + max(high, wide)
            ids = self.before + [self.processor.image_token_id] * (high * wide) + self.after
            grid = torch.stack(torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")).flatten(1) + begin
            picture = torch.cat([torch.full((1, high * wide), begin), grid])
            after = torch.arange(resume, resume + len(self.after)).expand(3, -1)
            starts.append((ids, torch.cat([torch.arange(begin).expand(3, -1), picture, after], 1)))
            cells.append(_cells(example.scene, high, wide))
            end = (SUFFIX if suffixed else "") + self.form.tail
            replies.append(
                [(self.form.ids(q + end), self.form.ids(a + tokenizer.eos_token)) for _, q, a in example.questions]
            )
        start = max(len(ids) for ids, _ in starts)
        count = max(len(pairs) for pairs in replies)
        size = max((len(prompt) + len(reply) for pairs in replies for prompt, reply in pairs), default=0)
        shape = (len(examples), start + count * size)
        batch: dict[str, Any] = {
            "ids": torch.full(shape, tokenizer.pad_token_id),
            "labels": torch.full(shape, IGNORED),
            "positions": torch.zeros(3, *shape, dtype=torch.long),
            "valid": torch.zeros(len(examples), start, dtype=torch.bool),
            "patches": images["pixel_values"],
            "grid": images["image_grid_thw"],
            "cells": torch.cat(cells),
            "shape": (start, count, size),
            "forms": [[form for form, *_ in example.questions] for example in examples],
        }
        for row, ((ids, positions), pairs) in enumerate(zip(starts, replies, strict=True)):
            batch["ids"][row, : len(ids)] = torch.tensor(ids)
            batch["positions"][:, row, : len(ids)] = positions
            batch["valid"][row, : len(ids)] = True
            resume = int(positions[0, -1]) + 1
            for number, (prompt, reply) in enumerate(pairs):
                at = start + number * size
                end = at + len(prompt) + len(reply)
                batch["ids"][row, at:end] = torch.tensor(prompt + reply)
                batch["labels"][row, end - len(reply) : end] = torch.tensor(reply)
                batch["positions"][:, row, at:end] = torch.arange(resume, resume + end - at)
        return batch


class SceneBatches(Dataset):
    """Batch i of the endless stream of a seed; difficulty grows over the first `ramp` images.

    To save padding, a batch is all shapes or all signs, and all or none of its questions carry the short-answer
    instruction.
    """

    def __init__(
        self, packer: Packer, size: int, seed: str, *, questions: int = 10, ramp: int = 0, suffix: float = 1
    ) -> None:
        self.packer, self.size, self.seed = packer, size, seed
        self.questions, self.ramp, self.suffix = questions, ramp, suffix

    def __getitem__(self, index: int) -> dict[str, Any]:
        difficulty = min(1.0, index * self.size / self.ramp) if self.ramp else 1.0
        rng = random.Random(f"{self.seed}/{index}")
        writing, suffixed = rng.random() < WRITING_SHARE, rng.random() < self.suffix
        if self.ramp and rng.random() < EASY:
            difficulty = 0.0
        names = [f"{self.seed}/{index}/{i}" for i in range(self.size)]
        examples = [draw_example(name, writing, difficulty, self.questions) for name in names]
        return self.packer.pack(examples, [suffixed] * self.size)


class ExampleBatches(Dataset):
    """Batch i of a fixed list of examples, reshuffled every epoch.

    Raises InputError for a question or an answer that holds a token of the model.
    """

    def __init__(self, packer: Packer, size: int, seed: str, examples: Sequence[Example]) -> None:
        self.packer, self.size, self.seed, self.examples = packer, size, seed, examples
        for _, question, answer in (asked for example in examples for asked in example.questions):
            refuse_tokens(packer.processor, (question, answer), [f"question {question!r:.80}"] * 2)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.packer.pack(list(self._draw(index)), [True] * self.size)

    def _draw(self, index: int) -> Iterator[Example]:
        for number in range(index * self.size, (index + 1) * self.size):
            epoch, place = divmod(number, len(self.examples))
            order = random.Random(f"{self.seed}/{epoch}").sample(range(len(self.examples)), len(self.examples))
            yield self.examples[order[place]]
