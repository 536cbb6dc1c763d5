"""The interface of question sets, independent of where their rows lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.types import ImageConversion


@dataclass(frozen=True)
class Loaded:
    """A loaded set: lmms-eval's task object, and in the same order the ids of its questions and of their images.

    Image id and question id together identify a question of a task. `file`, `rows`: where they stand, if in one file.
    """

    task: Any
    question_ids: tuple[str, ...]
    image_ids: tuple[str, ...]
    file: Path | None = None
    rows: tuple[int, ...] = ()

    def where(self, task: str, doc: int) -> str:
        """What identifies a question in an error."""
        ids = f"question {self.question_ids[doc]} of image {self.image_ids[doc]}"
        return f"{self.file}: row {self.rows[doc]} ({ids})" if self.rows else f"task {task}: {ids}"


@dataclass(frozen=True)
class QuestionSet(ABC):
    """A set of questions under its name on a board. Only `catalogue.question_set` parses names."""

    name: str

    local: ClassVar[bool]  # whether this package reads its rows from a parquet file

    @abstractmethod
    def size(self, split: str) -> int | None:
        """The number of questions of a split, after a check of every row; None if only the load can count them.

        Raises InputError if the set is unusable or has no such split.
        """

    @abstractmethod
    def count(self, split: str, limit: int | None) -> int:
        """The number of questions, without a load if the rows can be counted."""

    @abstractmethod
    def fetched(self, split: str) -> str:
        """A text that names the data a first run fetches from the hub; empty for a set on disk."""

    @abstractmethod
    def files(self, split: str) -> tuple[Path, ...]:
        """The files whose change invalidates a loaded set."""

    @abstractmethod
    def load(self, split: str, limit: int | None, images: ImageConversion | None = "viewer") -> Loaded:
        """The loaded set, with its images converted in this way; None: no image is read. This imports lmms-eval."""

    def fingerprint(self, split: str, limit: int | None, loaded: Any) -> str:
        """A text that identifies the questions of a set. `loaded` returns the loaded set if it is needed."""
        task = loaded()
        return repr((task.task.origin, task.question_ids))
