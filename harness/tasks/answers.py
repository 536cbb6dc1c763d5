"""A model's answers to questions, scored with lmms-eval's official scorers, and calibration samples.

    summary, table = evaluate(vlm, Questions(("mini_vqav2", "my.parquet"), "validation", 600))

The first call that needs lmms-eval and torch imports them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from harness.tasks.catalogue import question_set, share_of
from harness.tasks.scores import summary
from harness.tasks.truths import most_common, normal, ranked
from harness.types import VLM, ImageConversion, InputError, Questions, Sample

if TYPE_CHECKING:
    import torch

    from harness.tasks.adapter import Adapter, Places, Reply, Shown
    from harness.tasks.suite import Suite

BATCH = 64  # questions per batch, unless memory is short


@dataclass(frozen=True)
class Answers:
    """A model's answers: a row per question (task, question_id, image_id, answer, score), and further facts.

    `overlong`: whether each answer passed the length limit. `firsts`: optional log-probabilities of the first tokens,
    (questions, vocabulary), float32 on the CPU. `batch`: questions per batch, smaller if memory was short.
    """

    table: pa.Table
    overlong: tuple[bool, ...] = ()
    firsts: torch.Tensor | None = None
    batch: int = BATCH


def evaluate(
    vlm: VLM, questions: Questions, *, images: Shown = "own", batch_size: int = BATCH, label: str = ""
) -> tuple[dict[str, Any], pa.Table]:
    """The `summary` and the table of the answers that `answer` gives."""
    table = answer(vlm, questions, images=images, batch_size=batch_size, label=label).table
    return summary(table), table


def answer(
    vlm: VLM,
    questions: Questions,
    *,
    images: Shown = "own",
    first: bool = False,
    batch_size: int = BATCH,
    label: str = "",
    replies: Mapping[Places, Reply] | None = None,
) -> Answers:
    """The model's answers, scored with lmms-eval's official scorers.

    `images` replaces each image by a grey one (blank) or another one of the task (shuffled). `first` also stores the
    distribution of the first tokens. `label` distinguishes variants of one model. `replies` are batches that this
    model answered in another worker. Raises InputError for an unusable task or data, and FloatingPointError for NaN
    logits; the model's own errors are passed on.
    """
    suite = loaded_suite(questions)
    adapter, scored = _run(suite, vlm, images=images, first=first, batch_size=batch_size, label=label, replies=replies)
    places = [(task, doc) for task, rows in scored.items() for doc, _, _ in rows]
    firsts = None
    if first:
        import torch

        firsts = torch.stack([adapter.firsts[place] for place in places])
    overlong = tuple(place in adapter.overlong for place in places)
    return Answers(_table(suite, scored), overlong, firsts, adapter.batch_size)


def answer_share(
    vlm: VLM, questions: Questions, share: tuple[int, int], *, first: bool = False, batch_size: int = BATCH
) -> dict[Places, Reply]:
    """Replies to every n-th batch of `answer`, from the k-th on (share: k, n), to pass as its `replies`."""
    return _run(loaded_suite(questions), vlm, part=share, first=first, batch_size=batch_size)[0].replies


def _run(suite: Suite, vlm: VLM, **settings: Any) -> tuple[Adapter, dict[str, list[tuple[int, str, float]]]]:
    from harness.tasks.adapter import Adapter

    adapter = Adapter(vlm, encoded=suite.encoded, image_ids=suite.image_ids, where=suite.where, **settings)
    return adapter, suite.run(adapter)


def time_against_stock(vlm: VLM, questions: Questions, rounds: int) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Seconds of lmms-eval's stock loop at batch 1 and of `answer` for the same questions, (rounds, 2), interleaved.

    No round reuses results of another. Also returns both answers to every question of the last round.
    """
    from harness.tasks.adapter import Adapter
    from harness.tasks.stock import Stock

    suite = loaded_suite(questions)
    seconds, answers = np.empty((rounds, 2)), [[""], [""]]
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            scored = suite.run(Adapter(vlm, image_ids=suite.image_ids) if which else Stock(vlm))
            seconds[turn, which] = time.perf_counter() - start
            answers[which] = [answer for rows in scored.values() for _, answer, _ in rows]
    return seconds, list(zip(*answers, strict=True))


def majority(questions: Questions, images: bool = True) -> pa.Table:
    """Scores of a constant answer: each task's most common answer to these questions, as its scorer counts.

    A constant that is chosen without these questions rarely scores higher. Without `images`, none is read, and nothing
    is kept for later calls.
    """
    suite = loaded_suite(questions) if images else _load(questions, None)
    common = {}
    for name, task in suite.tasks.items():
        docs = list(task.eval_docs_no_media)
        common[name] = ranked([most_common(doc) for doc in docs], normal(docs[0]))[0]
    return _table(suite, suite.constant(common))


def _table(suite: Suite, scored: Mapping[str, Sequence[tuple[int, str, float]]]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in ("task", "question_id", "image_id", "answer", "score")}
    for task, rows in scored.items():
        for doc, answer, score in rows:
            loaded = suite.sets[task]
            row = (task, loaded.question_ids[doc], loaded.image_ids[doc], answer, score)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return pa.table(columns)


# --- calibration ------------------------------------------------------------------------------------------


def samples(questions: Questions, number: int, seed: int) -> list[Sample]:
    """`number` questions with their most common answers, evenly from all tasks in turn.

    Prompts are as in evaluation. The draw depends only on ids and seed. Raises InputError if a task has too few
    questions.
    """
    suite = loaded_suite(questions)
    turns: list[list[tuple[str, int]]] = []
    for place, task in enumerate(questions.tasks):
        ids = list(zip(suite.sets[task].image_ids, suite.sets[task].question_ids, strict=True))
        share = share_of(number, questions, place, len(ids))
        order = sorted(range(len(ids)), key=lambda i: (sha256(repr((seed, *ids[i])).encode()).digest(), i))
        turns.append([(task, i) for i in order[:share]])
    selected = [turn[i] for i in range(max(map(len, turns))) for turn in turns if i < len(turn)]
    return [_sample(suite, task, i) for task, i in selected]


def _sample(suite: Suite, task: str, row: int) -> Sample:
    from harness.tasks.adapter import read

    loaded = suite.sets[task]
    doc = loaded.task.eval_docs[row]
    images, question = read(loaded.task.doc_to_messages(doc), task)
    if len(images) != 1:
        raise InputError(f"{suite.where(task, row)} has {len(images)} images; calibration needs 1")
    return Sample(images[0], question, most_common(doc), loaded.question_ids[row], suite.where(task, row))


# --- loaded questions -------------------------------------------------------------------------------------
# Cached per questions and state of their files, because one process runs many trials on the same questions.

Stamps = tuple[tuple[int, int], ...]


def data_hash(questions: Questions) -> str:
    """SHA-256 over the files' bytes and the chosen rows. For a task of lmms-eval: over its documents' fingerprint."""
    return _data_hash(questions, stamps(questions))


def loaded_suite(questions: Questions) -> Suite:
    """The loaded tasks. Raises InputError for an unusable task or data, or a duplicate task."""
    return _suite(questions, stamps(questions))


def stamps(questions: Questions) -> Stamps:
    """Time of change and size of each question file. A change makes cached results invalid."""
    files = [file for name in questions.tasks for file in question_set(name).files(questions.split)]
    return tuple(_stamp(file) for file in files)


def _stamp(file: Path) -> tuple[int, int]:
    if not file.is_file():
        return (0, 0)
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _data_hash(questions: Questions, changed: Stamps) -> str:
    digest = sha256()
    for name in questions.tasks:
        known = question_set(name)
        loaded = lru_cache(lambda known=known: known.load(questions.split, questions.limit))
        digest.update(known.fingerprint(questions.split, questions.limit, loaded).encode())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _suite(questions: Questions, changed: Stamps) -> Suite:
    return _load(questions, questions.image_conversion)


def _load(questions: Questions, images: ImageConversion | None) -> Suite:
    from harness.tasks import suite

    for name in questions.tasks:
        if questions.tasks.count(name) > 1:
            raise InputError(f"task '{name}': named twice; name it once")
    split, limit = questions.split, questions.limit
    return suite.Suite({name: question_set(name).load(split, limit, images) for name in questions.tasks})
