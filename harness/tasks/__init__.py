"""Question sets: names, validation, calibration samples and the evaluation of a model on them.

    result, samples = evaluate(vlm, ["mini_vqav2", "my.parquet"], split="validation", limit=600)

A task is a shipped name, a parquet file or folder (see `harness.tasks.data` for the columns), an official set (see
`harness.tasks.official`), or the name of another of lmms-eval's own tasks. lmms-eval and torch are imported by the
first call that needs them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import yaml

from harness.tasks import data, official
from harness.tasks.data import SPLITS as SPLITS
from harness.tasks.scores import mean as mean
from harness.tasks.scores import summary
from harness.types import VLM, InputError, Sample

if TYPE_CHECKING:
    import torch

    from harness.tasks.adapter import Adapter, Places, Reply, Shown
    from harness.tasks.suite import Suite

MINI = Path(__file__).parent / "mini"
BATCH = 64  # questions answered at a time, unless memory is short


def names() -> list[str]:
    """The shipped tasks."""
    return sorted(path.stem for path in MINI.glob("*.yaml"))


def describe() -> dict[str, str]:
    """The shipped tasks with a line about each."""
    return {name: _definition(name)["metadata"]["description"] for name in names()}


def require(tasks: Sequence[str], split: str | None = None, n: int = 0, key: str = "calibration.samples") -> None:
    """Raise InputError unless every task exists and, for a parquet file or folder, every row of it is sound.

    With a `split`, that is there too, with enough questions for `samples` to draw the `n` that a board's `key` asks
    for (lmms-eval's own tasks say so only when they are loaded).
    """
    for place, task in enumerate(tasks):
        found = official.parse(task)
        if found:
            official.part(task, split or "validation")
            if found[1] is not None:
                rows = official.check(task, split or "validation")["rows"]
                _share(n, tasks, place, split or "validation", rows, key)
            continue
        path = _path(task)
        if path is not None and task not in names():
            data.check(path)
        if path is not None and split is not None:
            _share(n, tasks, place, split, len(data.source(task, path, split, None).indices), key)


def check(path: str | Path) -> dict[str, Any]:
    """Validate a parquet file, a folder of them, or an official set's (`vqav2_val@FOLDER`), each image included.

    See `harness.tasks.data.check` and `harness.tasks.official.check`.
    """
    found = official.parse(str(path))
    if found is None:
        return data.check(path)
    if found[1] is None:
        raise InputError(f"{path}: names no folder; use {path}@FOLDER")
    return official.check(str(path), decode=True)


def fetched(tasks: Sequence[str], split: str) -> list[str]:
    """The data sets of the hub that these tasks would be fetched from, where the Hugging Face cache lacks them."""
    found = []
    for task in tasks:
        parsed = official.parse(task)
        if parsed and parsed[1] is None:
            found.append(f"data set {official.source(task, split)} ({split} of {task})")
        elif parsed is None and _path(task) is None:
            found.append(f"data set of lmms-eval's task {task}")
    return found


def subset(task: str, split: str, limit: int | None) -> list[int]:
    """The rows that `evaluate` asks: exactly `limit` (None: all), whole images in the order of their hash."""
    return list(_source(task, split, limit).indices)


def local(tasks: Sequence[str]) -> bool:
    """Whether all of these are parquet files of ours or yours, not tasks of lmms-eval with data of their own."""
    return all(_path(task) is not None for task in tasks)


def count(task: str, split: str, limit: int | None) -> int:
    """How many questions `evaluate` asks, without loading a set whose rows can be counted."""
    if official.parse(task):
        rows = official.check(task, split)["rows"]
        return min(rows, limit or rows)
    return len(subset(task, split, limit))


def data_hash(tasks: Sequence[str], split: str, limit: int | None) -> str:
    """SHA-256 over the files' bytes and the chosen rows; a task of lmms-eval counts by its documents' fingerprint."""
    return _data_hash(tuple(tasks), split, limit, _stamps(tasks, split))


@lru_cache(maxsize=64)
def _data_hash(tasks: tuple[str, ...], split: str, limit: int | None, stamps: tuple[tuple[int, int], ...]) -> str:
    digest = sha256()
    for task in tasks:
        if official.parse(task):
            suite = _suite((task,), split, limit, _stamps((task,), split))
            digest.update(repr((suite.tasks[task].origin, suite.question_ids[task])).encode())
        elif _path(task) is None:
            own = _suite((task,), split, limit, ((0, 0),)).tasks[task]
            digest.update(repr((task, own.eval_docs._fingerprint)).encode())
        else:
            source = _source(task, split, limit)
            digest.update(repr((data.content_hash(source.path), source.indices)).encode())
    return digest.hexdigest()


def samples(tasks: Sequence[str], split: str, n: int, seed: int) -> list[Sample]:
    """`n` questions with their most common answer, as many from each task, in turns; the prompt is evaluation's own.

    The draw depends on the ids and the seed only. Raises InputError if a task has too few questions.
    """
    suite = _suite(tuple(tasks), split, None, _stamps(tasks, split))
    turns: list[list[tuple[str, int]]] = []
    for place, task in enumerate(tasks):
        ids = list(zip(suite.image_ids[task], suite.question_ids[task], strict=True))
        share = _share(n, tasks, place, split, len(ids))
        order = sorted(range(len(ids)), key=lambda i: (sha256(repr((seed, *ids[i])).encode()).digest(), i))
        turns.append([(task, i) for i in order[:share]])
    drawn = [turn[i] for i in range(max(map(len, turns))) for turn in turns if i < len(turn)]
    return [_sample(suite, task, i) for task, i in drawn]


def _share(n: int, tasks: Sequence[str], place: int, split: str, there: int, key: str = "calibration.samples") -> int:
    """How many of `n` questions the task at this place gives; raises InputError if it has fewer."""
    share = n // len(tasks) + (place < n % len(tasks))
    if share > there:
        raise InputError(f"{key}: {share} of {n} fall to task {tasks[place]}, whose '{split}' has {there}")
    return share


@dataclass(frozen=True)
class Answers:
    """A model's answers: a row per question (task, question_id, image_id, answer, score), and what else was seen.

    `overlong`: whether each did not end within the limit. `firsts`: log-probabilities of each one's first token,
    (questions, vocabulary), float32 on the CPU, if asked for. `batch`: how many at a time, less if memory was short.
    """

    table: pa.Table
    overlong: tuple[bool, ...] = ()
    firsts: torch.Tensor | None = None
    batch: int = BATCH


def evaluate(
    vlm: VLM,
    tasks: Sequence[str],
    split: str = "validation",
    limit: int | None = None,
    *,
    images: Shown = "own",
    batch_size: int = BATCH,
    label: str = "",
) -> tuple[dict[str, Any], pa.Table]:
    """The `summary` and the table of what `answer` gives, for the same arguments."""
    table = answer(vlm, tasks, split, limit, images=images, batch_size=batch_size, label=label).table
    return summary(table), table


def answer(
    vlm: VLM,
    tasks: Sequence[str],
    split: str = "validation",
    limit: int | None = None,
    *,
    images: Shown = "own",
    first: bool = False,
    batch_size: int = BATCH,
    label: str = "",
    replies: Mapping[Places, Reply] | None = None,
) -> Answers:
    """The model's answers, scored with lmms-eval's official scorers.

    `images` shows a grey image (blank) or another image of the task (shuffled) instead of each; `first` also keeps
    the distribution of the first tokens; `label` tells variants of one model apart; `replies` are batches that this
    model answered elsewhere. Raises InputError for a task or data that cannot be used; the model's own errors, and NaN
    logits (FloatingPointError), are passed on.
    """
    suite = _suite(tuple(tasks), split, limit, _stamps(tasks, split))
    adapter, found = _run(suite, vlm, images=images, first=first, batch_size=batch_size, label=label, replies=replies)
    places = [(task, doc) for task, rows in found.items() for doc, _, _ in rows]
    firsts = None
    if first:
        import torch

        firsts = torch.stack([adapter.firsts[place] for place in places])
    return Answers(
        _table(suite, found), tuple(place in adapter.overlong for place in places), firsts, adapter.batch_size
    )


def answer_share(
    vlm: VLM,
    tasks: Sequence[str],
    split: str,
    limit: int | None,
    share: tuple[int, int],
    *,
    first: bool = False,
    batch_size: int = BATCH,
) -> dict[Places, Reply]:
    """Of the batches that `answer` makes, every n-th from the k-th on (share: k, n), for its `replies`."""
    suite = _suite(tuple(tasks), split, limit, _stamps(tasks, split))
    return _run(suite, vlm, part=share, first=first, batch_size=batch_size)[0].replies


def _run(suite: Suite, vlm: VLM, **how: Any) -> tuple[Adapter, dict[str, list[tuple[int, str, float]]]]:
    from harness.tasks.adapter import Adapter

    adapter = Adapter(vlm, encoded=suite.encoded, image_ids=suite.image_ids, **how)
    return adapter, suite.run(adapter)


def time_against_stock(
    vlm: VLM, tasks: Sequence[str], split: str, limit: int | None, rounds: int
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Seconds that lmms-eval's stock loop at batch 1 and `answer` take for the same questions, (rounds, 2), in turn.

    Nothing is kept from one round to the next. Also both answers to every question, of the last round.
    """
    from harness.tasks.adapter import Adapter
    from harness.tasks.stock import Stock

    suite = _suite(tuple(tasks), split, limit, _stamps(tasks, split))
    seconds, answers = np.empty((rounds, 2)), [[""], [""]]
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            found = suite.run(Adapter(vlm, image_ids=suite.image_ids) if which else Stock(vlm))
            seconds[turn, which] = time.perf_counter() - start
            answers[which] = [answer for rows in found.values() for _, answer, _ in rows]
    return seconds, list(zip(*answers, strict=True))


_KEPT: WeakKeyDictionary[Any, dict[Any, Answers]] = WeakKeyDictionary()  # model -> questions -> its answers


def answer_cached(
    vlm: VLM,
    tasks: Sequence[str],
    split: str,
    limit: int | None,
    *,
    first: bool = False,
    label: str = "",
    replies: Mapping[Places, Reply] | None = None,
) -> Answers:
    """What `answer` gives, kept as long as the model lives, for all metrics of a trial and trials of a dense model.

    For models whose weights no longer change. `label` and `replies` count where the questions are answered anew.
    """
    kept = _KEPT.setdefault(vlm.model, {})
    key = (tuple(tasks), split, limit, _stamps(tasks, split))
    if key not in kept or (first and kept[key].firsts is None):
        kept[key] = answer(vlm, tasks, split, limit, first=first, label=label, replies=replies)
    return kept[key]


def majority(tasks: Sequence[str], split: str, limit: int | None) -> pa.Table:
    """Scores for giving every question of a task its most common answer: the best that a constant can do, or near it.

    The answer is the most common one of the same questions, so no constant chosen beforehand is likely to beat it.
    """
    suite = _suite(tuple(tasks), split, limit, _stamps(tasks, split))
    common = {
        name: Counter(data.most_common(doc) for doc in task.eval_docs_no_media).most_common(1)[0][0]
        for name, task in suite.tasks.items()
    }
    return _table(suite, suite.constant(common))


def _table(suite: Suite, found: Mapping[str, Sequence[tuple[int, str, float]]]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in ("task", "question_id", "image_id", "answer", "score")}
    for task, rows in found.items():
        for doc, answer, score in rows:
            row = (task, suite.question_ids[task][doc], suite.image_ids[task][doc], answer, score)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return pa.table(columns)


# --- names to data ----------------------------------------------------------------------------------------


def _path(task: str) -> Path | None:
    """Where a task's parquet lies; None for a task of lmms-eval; raises InputError if there is no such task."""
    if task in names():
        return data.REFERENCE / task
    if official.parse(task):
        return None
    path = Path(task)
    if task.endswith(".parquet") or (os.path.isdir(task) and any(path.glob("*.parquet"))):
        return path
    if task in _stock():
        return None
    near = get_close_matches(task, [*names(), *_stock()], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(
        f"task '{task}': unknown; {hint}choose one of {', '.join(names())},"
        " a .parquet file, a folder of them, or a task of lmms-eval"
    )


@lru_cache(maxsize=1)
def _stock() -> frozenset[str]:
    """The names of lmms-eval's own tasks, read from its definitions without importing it."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("lmms-eval is not installed")
    found: set[str] = set()
    for path in Path(spec.submodule_search_locations[0]).glob("tasks/**/*.yaml"):
        found.update(re.findall(r"^task:\s*[\"']?([\w.-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(found)


def _definition(name: str) -> dict[str, Any]:
    """A shipped definition as plain data; functions are left as their names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load((MINI / f"{name}.yaml").read_text(encoding="utf-8"), Loader)  # nosec


def _source(task: str, split: str, limit: int | None) -> data.Source:
    path = _path(task)
    if path is None:
        raise InputError(f"task {task}: a task of lmms-eval with data of its own, not a parquet file")
    return data.source(task, path, split, limit)


def _stamps(tasks: Sequence[str], split: str) -> tuple[tuple[int, int], ...]:
    """When each task's file was changed, and its size, so that a kept suite is not used after a change."""
    apart = [found[1] for task in tasks if (found := official.parse(task)) and found[1] is not None]
    more = [file for folder in apart for file in sorted(folder.rglob("*.parquet"))]
    paths = [*(_path(task) for task in tasks), *more]
    files = [path / f"{split}.parquet" if path is not None and path.is_dir() else path for path in paths]
    stats = [file.stat() if file is not None and file.is_file() else None for file in files]
    return tuple((s.st_mtime_ns, s.st_size) if s else (0, 0) for s in stats)


@lru_cache(maxsize=2)
def _suite(tasks: tuple[str, ...], split: str, limit: int | None, stamps: tuple[tuple[int, int], ...]) -> Suite:
    """The loaded tasks, kept for the next trial on the same questions."""
    for task in tasks:
        if tasks.count(task) > 1:
            raise InputError(f"task '{task}': named twice")
    require(tasks)
    from harness.tasks import suite

    loaded, question_ids, image_ids = {}, {}, {}
    for task in tasks:
        if _path(task) is None:
            loaded[task] = suite.load_official(task, split) if official.parse(task) else suite.stock(task, split)
            question_ids[task], image_ids[task] = suite.restrict(loaded[task], limit)
        else:
            source = _source(task, split, limit)
            loaded[task] = suite.local(source, split)
            question_ids[task], image_ids[task] = source.question_ids, source.image_ids
    return suite.Suite(loaded, question_ids, image_ids)


def _sample(suite: Suite, task: str, row: int) -> Sample:
    from harness.tasks.adapter import read

    own = suite.tasks[task]
    doc = own.eval_docs[row]
    images, question = read(own.doc_to_messages(doc), task)
    if len(images) != 1:
        raise InputError(
            f"task {task}: question {suite.question_ids[task][row]} has {len(images)} images; calibration needs 1"
        )
    return Sample(images[0], question, data.most_common(doc), suite.question_ids[task][row])
