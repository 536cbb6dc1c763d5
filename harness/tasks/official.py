"""VQAv2, TextVQA and GQA as lmms-eval defines them: from the hub at a pinned revision, or from a folder, offline.

    tasks: [vqav2_val, textvqa_val@/data/textvqa, gqa@/data/GQA]

A folder holds the hub's parquet files of the data set, at any depth: `validation*.parquet`, and for GQA the files of
configs `testdev_balanced_instructions` and `testdev_balanced_images`, in folders or files with these names. The split
`calibration` is the set's training part. `INFOPRUNE_DATA_OWNER` sets another owner of the data sets on the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from harness.tasks import columns, data
from harness.tasks.doubts import Doubts
from harness.tasks.sets import Loaded, QuestionSet
from harness.types import ImageConversion, InputError

OWNER = os.environ.get("INFOPRUNE_DATA_OWNER", "lmms-lab-encoder")  # it was lmms-lab until 2026, with the same commits


@dataclass(frozen=True)
class Part:
    """Rows of a data set on the hub: a config (None: the only one) and a split."""

    config: str | None
    split: str

    def holds(self, file: Path) -> bool:
        """Whether a parquet file belongs to this part; its path is relative to the set's folder."""
        if self.config:
            return self.config in (*file.parent.parts, file.stem)
        return file.stem == self.split or file.stem.startswith(f"{self.split}-")


@dataclass(frozen=True)
class Definition:
    """A task of lmms-eval: its definition, and its data by split; `images` if these are a data set apart."""

    definition: str
    dataset: str
    revision: str
    form: str  # the shipped definition with the same columns
    questions: Mapping[str, Part]
    images: Mapping[str, Part] = field(default_factory=dict)


# Revisions that public evaluation code pins or has in its cache folders; as of November 2026.
DEFINITIONS = {
    "vqav2_val": Definition(
        "vqav2/vqav2_val.yaml",
        "VQAv2",
        "32665d35052eb4a6d4414851c3c829a72754915a",
        "mini_vqav2",
        {"validation": Part(None, "validation")},
    ),
    "textvqa_val": Definition(
        "textvqa/textvqa_val.yaml",
        "textvqa",
        "9c0699cd19768ac5ab97568f6b3cbac4c0062884",
        "mini_textvqa",
        {"validation": Part(None, "validation"), "calibration": Part(None, "train")},
    ),
    "gqa": Definition(
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


@dataclass(frozen=True)
class OfficialSet(QuestionSet):
    """One of these sets by its name on a board: from the hub, or from the folder after the @."""

    definition: Definition = field(compare=False)  # follows from the name
    folder: Path | None

    local: ClassVar[bool] = False

    @classmethod
    def of(cls, name: str) -> OfficialSet | None:
        """The official set with this name; None if none has it."""
        known, at, folder = name.partition("@")
        return cls(name, DEFINITIONS[known], Path(folder) if at else None) if known in DEFINITIONS else None

    def size(self, split: str) -> int | None:
        self.part(split)
        return None if self.folder is None else self.check(split)["rows"]

    def count(self, split: str, limit: int | None) -> int:
        if self.folder is None:
            raise InputError(f"task {self.name}: the hub holds its questions; only those of a folder can be counted")
        rows = sum(columns.parquet(file).metadata.num_rows for file in self.parquet(split))
        return min(rows, limit or rows)

    def fetched(self, split: str) -> str:
        self.part(split)
        if self.folder is not None:
            return ""
        source = f"{OWNER}/{self.definition.dataset} at revision {self.definition.revision}"
        return f"data set {source} ({split} of {self.name})"

    def files(self, split: str) -> tuple[Path, ...]:
        return () if self.folder is None else tuple(sorted(self.folder.rglob("*.parquet")))

    def load(self, split: str, limit: int | None, images: ImageConversion | None = "viewer") -> Loaded:
        from harness.tasks import suite

        return suite.restrict(suite.official(self, split, images), limit)

    def part(self, split: str, images: bool = False) -> Part:
        """The part with the rows of a split. Raises InputError if the set has no such split."""
        parts = self.definition.images if images else self.definition.questions
        if split not in parts:
            choices = ", ".join(self.definition.questions)
            raise InputError(f"task {self.name}: has no split '{split}' here; it has: {choices}")
        return parts[split]

    def parquet(self, split: str, images: bool = False) -> list[Path]:
        """The parquet files of a split in the set's folder. Raises InputError if it has none."""
        assert self.folder is not None
        part = self.part(split, images)
        if not self.folder.is_dir():
            raise InputError(f"task {self.name}: {self.folder}: no such folder")
        files = sorted(file for file in self.folder.rglob("*.parquet") if part.holds(file.relative_to(self.folder)))
        if not files:
            name = f"{part.config}/*.parquet" if part.config else f"{part.split}*.parquet"
            raise InputError(f"task {self.name}: no {name} in {self.folder}; copy the hub's parquet files there")
        return files

    def check(self, split: str = "validation", decode: bool = False) -> dict[str, Any]:
        """Validate a split in the set's folder: columns, questions, answers, and the existence of each image.

        `decode` also decodes each image and looks for what is doubtful. Returns {"path", "rows", "images", "form",
        "warnings"}. Raises InputError, which names file, row and column of the first fault and a correction.
        """
        files = [*self.parquet(split), *(self.parquet(split, images=True) if self.definition.images else ())]
        rows, images, doubts = _check(self, split, decode, tuple((file, file.stat().st_mtime_ns) for file in files))
        facts = {"path": str(self.folder), "rows": rows, "images": images, "form": self.name.partition("@")[0]}
        return {**facts, "warnings": list(doubts)}


@lru_cache(maxsize=16)
def _check(asked: OfficialSet, split: str, decode: bool, stamps: Any) -> tuple[int, int, tuple[str, ...]]:
    """The numbers of questions and of images, and the doubts."""
    apart = bool(asked.definition.images)
    doubts = Doubts()
    known = set(_images(asked, split, doubts if decode else None)) if apart else set()
    key, image, target = ("id", "imageId", "answer") if apart else ("question_id", "image_id", "answers")
    firsts: dict[tuple[str, str], str] = {}
    for file in asked.parquet(split):
        schema = columns.parquet(file).schema_arrow
        needed = [key, "question", target, image]
        columns.require(schema, file, needed)
        for name in needed:
            if not columns.official(schema.field(name).type):
                raise InputError(
                    f"{file}: column '{name}' is {schema.field(name).type}, which lmms-eval reads otherwise; use the"
                    " hub's file, or store text as strings and ids as whole numbers"
                )
        if not apart and (form := columns.form(schema, file)) != asked.definition.form:
            raise InputError(
                f"{file}: column 'answers' is that of {form}; {asked.name} needs that of {asked.definition.form}"
            )
        pictured = ["image"] if decode and not apart else []
        for row, doc in columns.rows(columns.parquet(file), file, [*needed, *pictured]):
            where = f"{file}: row {row}"
            data.check_words(doc, where)
            _check_annotators(doc, where)
            if apart and doc[image] not in known:
                raise InputError(f"{where}: column 'imageId': no image '{doc['imageId']}' among the set's images")
            if firsts.setdefault((doc[image], doc[key]), where) != where:
                raise data.twice(f"{where}: column '{key}'", doc[key], doc[image], firsts[doc[image], doc[key]])
            if decode:
                doubts.words(doc, where)
            if pictured:
                doubts.picture(doc["image"]["bytes"], where, doc[image])
    return len(firsts), len({picture for picture, _ in firsts}), tuple(doubts.lines())


def _check_annotators(doc: Mapping[str, Any], where: str) -> None:
    entries = [repr(answer) for answer in doc.get("answers", ()) if isinstance(answer, dict)]
    if len(set(entries)) < len(entries):
        raise InputError(
            f"{where}: column 'answers': equal entries; give each annotator an answer_id of its own, because"
            " VQAv2's scorer counts equal entries as one annotator, and the question can never score"
        )


def _images(asked: OfficialSet, split: str, doubts: Doubts | None) -> Iterator[str]:
    """The ids of the images in the data set apart; each image is decoded for the doubts, if there are any."""
    for file in asked.parquet(split, images=True):
        columns.require(columns.parquet(file).schema_arrow, file, ["id", "image"])
        for row, doc in columns.rows(columns.parquet(file), file, ["id", "image"] if doubts else ["id"]):
            if doubts:
                doubts.picture(doc["image"]["bytes"], f"{file}: row {row}", doc["id"])
            yield doc["id"]
