"""The samples beside a board's records, for flips and intervals. Unusable samples are logged once.

samples = Samples(Path("results/demo")); samples.read(record).score

A board's samples are read once and kept in few bytes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from harness.records import store
from harness.records.record import Record
from harness.types import InputError

log = logging.getLogger(__name__)

IDS = ["question_id", "image_id"]  # both together identify a question of a task


class Questions:
    """The questions that several trials answer, by row; `Samples` has one object for each set of them."""

    def __init__(self, ids: pa.Table, first: tuple[Path, Record]) -> None:
        self.ids = ids
        self._first = first

    @cached_property
    def rows(self) -> list[tuple[str, str, str]]:
        """(task, question, image) of every row."""
        columns = (store.samples(*self._first, ("task",))["task"], *self.ids.columns)
        return list(zip(*(column.to_pylist() for column in columns), strict=True))


@dataclass(frozen=True)
class Answers:
    """A trial's samples, by row of its questions. `kinds` and `codes` count through distinct scores and answers."""

    questions: Questions
    kinds: np.ndarray
    scores: np.ndarray
    codes: np.ndarray
    distinct: pa.Array

    @property
    def score(self) -> np.ndarray:
        """The scores, (questions,), float64."""
        return self.scores[self.kinds]

    def text(self, row: int) -> str:
        return str(self.distinct[int(self.codes[row])].as_py() or "")


class Samples:
    """A reader of the samples of records in `folder`. After a fault it skips the samples of that record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Answers | None] = {}
        self._questions: list[Questions] = []

    def read(self, record: Record) -> Answers | None:
        """The record's samples; None if it has no usable ones."""
        if record.id not in self._read:
            self._read[record.id] = self._answers(record) if "samples" in record.hashes else None
        return self._read[record.id]

    def leave_out(self, record: Record, why: str) -> None:
        """Skip this record's samples from now on, and log the reason."""
        self._read[record.id] = None
        log.warning(f"{self._path(record)}: {why}; left out of flips and intervals")

    def _path(self, record: Record) -> Path:
        return self.folder / f"{record.id}.parquet"

    def _answers(self, record: Record) -> Answers | None:
        try:
            table = store.samples(self._path(record), record, (*IDS, "answer", "score"))
        except InputError as problem:
            log.warning(f"{problem}; left out of flips and intervals")
            return None
        ids = table.select(IDS)
        questions = next((known for known in self._questions if known.ids.equals(ids)), None)
        if questions is None:
            questions = Questions(ids, (self._path(record), record))
            self._questions.append(questions)
        score = table["score"].chunk(0).to_numpy(zero_copy_only=False)  # of the column it would take longer
        kinds, scores = pd.factorize(score.astype(np.float64, copy=False), use_na_sentinel=False)
        answers = table["answer"].chunk(0)
        codes = (answers.indices.fill_null(0) if answers.null_count else answers.indices).to_numpy()
        distinct = answers.dictionary
        narrow = _narrow(kinds, len(scores)), np.asarray(scores), _narrow(codes, len(distinct))
        return Answers(questions, *narrow, distinct)


def _narrow(codes: np.ndarray, number: int) -> np.ndarray:
    """Codes below this number in few bytes: memory holds the samples of a whole board."""
    return codes.astype(np.uint8 if number <= 1 << 8 else np.uint16 if number <= 1 << 16 else np.int64)
