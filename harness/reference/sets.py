"""The three question sets of any size, generated from a seed and written as parquet with the official columns.

    write(Path("sets"), {"validation": 340})      # sets/mini_gqa/validation.parquet, three questions per image

Splits have different seeds, so no image is in two splits. Within every question template, the answers are balanced as
far as the scenes allow: the answer with the fewest questions so far comes first.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from harness.reference.questions import FORMS, Question, propose
from harness.reference.scenes import COLOURS, SHAPES, SIZES, jpeg, objects_scene, render, text_scene

QUESTIONS_PER_IMAGE = 3
SIZES_SHIPPED = {"validation": 340, "dev": 170, "calibration": 170}  # images per set
_NAMES = re.compile(r"\b(" + "|".join([*COLOURS, *SHAPES, *SIZES, r"\d+", "sign", "crosse"]) + r")s?\b")


def _template(question: Question) -> str:
    """The question without the names of things; a word that it names stays, so each word is a template of its own."""
    return f"{question.form} {_NAMES.sub('*', question.text)}"


def items(task: str, split: str, images: int) -> Iterator[tuple[str, bytes, list[Question]]]:
    """(image id, JPEG bytes, questions) for each image of a split."""
    answer_counts: Counter[tuple[str, str]] = Counter()
    form_counts: Counter[str] = Counter()
    for number in range(images):
        name = f"{task}-{split}-{number:05d}"
        rng = random.Random(name)
        scene = text_scene(rng) if task == "mini_textvqa" else objects_scene(rng)
        chosen: list[Question] = []
        candidates = [q for form in FORMS[task] for q in propose(scene, task, form, rng)]
        while candidates and len(chosen) < QUESTIONS_PER_IMAGE:
            used = Counter(q.form for q in chosen)
            best = min(
                candidates, key=lambda q: (used[q.form], form_counts[q.form], answer_counts[_template(q), q.answer])
            )
            candidates = [q for q in candidates if q.text != best.text]
            chosen.append(best)
            form_counts[best.form] += 1
            answer_counts[_template(best), best.answer] += 1
        yield name, jpeg(render(scene)), chosen


def _vqav2(answer: str) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]


_ANSWERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "mini_vqav2": lambda answer: {"answers": _vqav2(answer)},
    "mini_gqa": lambda answer: {"answer": answer},
    "mini_textvqa": lambda answer: {"answers": [answer] * 10},
}


def row(form: str, image_id: str, content: bytes, number: int, question: Question) -> dict[str, Any]:
    """The row of an image's question `number`, in the columns of the official set of that form (mini_gqa, ...)."""
    gqa = form == "mini_gqa"
    return {
        "id" if gqa else "question_id": f"{image_id}-{number}",
        "imageId" if gqa else "image_id": image_id,
        "image": {"bytes": content, "path": f"{image_id}.jpg"},
        "question": question.text,
        **_ANSWERS[form](question.answer),
        "question_type": question.form,
    }


def table(task: str, split: str, images: int) -> pyarrow.Table:
    """One row a question, in the columns of the official set of that name."""
    rows = [
        row(task, image_id, content, number, question)
        for image_id, content, questions in items(task, split, images)
        for number, question in enumerate(questions)
    ]
    return pyarrow.Table.from_pylist(rows)


def write(folder: Path, images: Mapping[str, int] = SIZES_SHIPPED) -> list[Path]:
    """Write every task's splits with this many images each; returns the files."""
    paths = []
    for task in FORMS:
        for split, number in images.items():
            path = folder / task / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(table(task, split, number), path, compression="zstd")
            paths.append(path)
    return paths
