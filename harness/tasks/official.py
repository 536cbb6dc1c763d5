"""VQAv2, TextVQA and GQA as lmms-eval defines them: from the hub at a pinned revision, or from a folder, offline.

    tasks: [vqav2_val, textvqa_val@/data/textvqa, gqa@/data/GQA]

A folder holds the data set's parquet files as the hub has them (any depth): `validation*.parquet`, and for GQA those of
the configs `testdev_balanced_instructions` and `testdev_balanced_images`, in folders or files of these names. The split
`calibration` is the set's training part. `INFOPRUNE_DATA_OWNER` names another owner of the sets on the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.tasks import data
from harness.types import InputError

OWNER = os.environ.get("INFOPRUNE_DATA_OWNER", "lmms-lab-encoder")  # lmms-lab until 2026; the commits are the same


@dataclass(frozen=True)
class Part:
    """Rows of a data set on the hub: a config (None: the only one) and a split."""

    config: str | None
    split: str

    def holds(self, file: Path) -> bool:
        """Whether a parquet file, relative to its folder, is of this part."""
        if self.config:
            return self.config in (*file.parent.parts, file.stem)
        return file.stem == self.split or file.stem.startswith(f"{self.split}-")


@dataclass(frozen=True)
class Official:
    """A task of lmms-eval: its definition there, and its data by split; `images` where they lie apart."""

    definition: str
    dataset: str
    revision: str
    form: str  # the shipped definition with the same columns
    questions: Mapping[str, Part]
    images: Mapping[str, Part] = field(default_factory=dict)


# The revisions are those that public evaluation code pins or has in its cache folders; looked up in November 2026.
OFFICIAL = {
    "vqav2_val": Official(
        "vqav2/vqav2_val.yaml",
        "VQAv2",
        "32665d35052eb4a6d4414851c3c829a72754915a",
        "mini_vqav2",
        {"validation": Part(None, "validation")},
    ),
    "textvqa_val": Official(
        "textvqa/textvqa_val.yaml",
        "textvqa",
        "9c0699cd19768ac5ab97568f6b3cbac4c0062884",
        "mini_textvqa",
        {"validation": Part(None, "validation"), "calibration": Part(None, "train")},
    ),
    "gqa": Official(
        "gqa/gqa.yaml",
        "GQA",
        "a6e72d6e1b912da88af8b2f9eba05d5ea8ec2dd8",
        "mini_gqa",
        {
            "validation": Part("testdev_balanced_instructions", "testdev"),
            "calibration": Part("train_balanced_instructions", "train"),
        },
        {
            "validation": Part("testdev_balanced_images", "testdev"),
            "calibration": Part("train_balanced_images", "train"),
        },
    ),
}


def parse(task: str) -> tuple[Official, Path | None] | None:
    """The official task of this name and the folder after its @, if any; None for any other task."""
    name, at, folder = task.partition("@")
    if name not in OFFICIAL:
        return None
    return OFFICIAL[name], Path(folder) if at else None


def source(task: str, split: str) -> str:
    """Where a split's rows come from, in words: what a first run would fetch, or the folder."""
    official, folder = _parsed(task)
    part(task, split)
    return str(folder) if folder else f"{OWNER}/{official.dataset} at revision {official.revision}"


def part(task: str, split: str, images: bool = False) -> Part:
    """The rows of a split; raises InputError if the task has no such split."""
    official, _ = _parsed(task)
    parts = official.images if images else official.questions
    if split not in parts:
        raise InputError(f"task {task}: has no split '{split}' here; it has: {', '.join(official.questions)}")
    return parts[split]


def files(task: str, split: str, images: bool = False) -> list[Path]:
    """The parquet files of a split in the task's folder; raises InputError if there are none."""
    _, folder = _parsed(task)
    assert folder is not None
    wanted = part(task, split, images)
    if not folder.is_dir():
        raise InputError(f"task {task}: {folder}: no such folder")
    found = sorted(file for file in folder.rglob("*.parquet") if wanted.holds(file.relative_to(folder)))
    if not found:
        name = f"{wanted.config}/*.parquet" if wanted.config else f"{wanted.split}*.parquet"
        raise InputError(f"task {task}: no {name} in {folder}")
    return found


def check(task: str, split: str = "validation", decode: bool = False) -> dict[str, Any]:
    """Validate a split in the task's folder: columns, questions, answers, that each image is there.

    With `decode`, that each image can be decoded. Returns {"path", "rows", "images", "form"}. Raises InputError naming
    file, row and column of the first fault and what would be right.
    """
    _, folder = _parsed(task)
    own = [*files(task, split), *(files(task, split, images=True) if _parsed(task)[0].images else ())]
    rows, images = _check(task, split, decode, tuple((file, file.stat().st_mtime_ns) for file in own))
    return {"path": str(folder), "rows": rows, "images": images, "form": task.partition("@")[0]}


@lru_cache(maxsize=16)
def _check(task: str, split: str, decode: bool, stamps: Any) -> tuple[int, int]:
    official, _ = _parsed(task)
    apart = bool(official.images)
    known = set(_images(task, split, decode)) if apart else set()
    key = "id" if apart else "question_id"
    target = "answer" if apart else "answers"
    columns = [key, "question", target, *(["imageId"] if apart else ["image_id"])]
    rows, seen = 0, set()
    for file in files(task, split):
        schema = data.parquet(file).schema_arrow
        if missing := [name for name in columns if name not in schema.names]:
            raise InputError(f"{file}: missing column '{missing[0]}' (there are: {', '.join(schema.names)})")
        if not apart and (form := data.form(schema, file)) != official.form:
            raise InputError(f"{file}: column 'answers' is that of {form}, {task} needs that of {official.form}")
        if decode and not apart:
            data.check(file)
        for row, doc in enumerate(data.rows(data.parquet(file), file, columns)):
            where = f"{file}: row {row}"
            data.check_words(doc, where)
            _check_annotators(doc, where)
            if apart and str(doc["imageId"]) not in known:
                raise InputError(f"{where}: column 'imageId': no image '{doc['imageId']}' among the set's images")
            seen.add(doc[columns[-1]])
            rows += 1
    return rows, len(seen)


def _check_annotators(doc: Mapping[str, Any], where: str) -> None:
    entries = [repr(answer) for answer in doc.get("answers", ()) if isinstance(answer, dict)]
    if len(set(entries)) < len(entries):
        raise InputError(
            f"{where}: column 'answers': equal entries; each annotator needs an answer_id of its own, or VQAv2's scorer"
            " takes them for one and the question can never score"
        )


def _images(task: str, split: str, decode: bool) -> Iterator[str]:
    """The ids of the images that lie apart."""
    for file in files(task, split, images=True):
        names = data.parquet(file).schema_arrow.names
        if missing := [name for name in ("id", "image") if name not in names]:
            raise InputError(f"{file}: missing column '{missing[0]}' (there are: {', '.join(names)})")
        for row, doc in enumerate(data.rows(data.parquet(file), file, ["id", "image"] if decode else ["id"])):
            if decode:
                data.decode((doc["image"] or {}).get("bytes"), f"{file}: row {row}")
            yield str(doc["id"])


def _parsed(task: str) -> tuple[Official, Path | None]:
    found = parse(task)
    assert found is not None, f"{task} is no official task"
    return found
