"""Names of question sets: the shipped ones, parquet files and folders, official sets, and lmms-eval's own tasks.

question_set("mini_gqa").count("validation", 600)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from harness.tasks import data
from harness.tasks.official import OfficialSet
from harness.tasks.sets import Loaded, QuestionSet
from harness.tasks.truths import lmms_eval
from harness.types import ImageConversion, InputError, Questions

MINI = Path(__file__).parent / "mini"
# The sets of the model of pretrained parts: the prompts and scorers of the mini sets, pictures of real things. The code
# hash of their trials holds these texts: another word makes their records stale.
THINGS = {
    "things_vqav2": "what, colour, count, existence and yes/no questions about real things; VQAv2's soft accuracy",
    "things_gqa": "relations, logic and knowledge about real things; GQA's exact match",
    "things_textvqa": "words and numbers to read on signs, labels and shirts; TextVQA's soft accuracy",
}


def names() -> list[str]:
    """The tasks of the embedded model, which calibrate by default."""
    return sorted(path.stem for path in MINI.glob("*.yaml"))


def describe() -> dict[str, str]:
    """One line of description per shipped task."""
    return {name: _definition(name)["metadata"]["description"] for name in names()} | THINGS


def question_set(name: str) -> QuestionSet:
    """The question set with this name. Raises InputError, with the choices, if none has it."""
    if name in names() or name in THINGS:
        return ParquetSet(name, data.REFERENCE / ("things" if name in THINGS else "") / name, shipped=True)
    if official := OfficialSet.of(name):
        return official
    path = Path(name)
    if name.endswith(".parquet") or (os.path.isdir(name) and any(path.glob("*.parquet"))):
        return ParquetSet(name, path)
    if name in _stock():
        return StockSet(name)
    near = get_close_matches(name, [*names(), *THINGS, *_stock()], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(
        f"task '{name}': unknown; {hint}choose one of {', '.join([*names(), *THINGS])},"
        " a .parquet file, a folder of them, or a task of lmms-eval"
    )


@dataclass(frozen=True)
class ParquetSet(QuestionSet):
    """A shipped set, or a parquet file or folder of the user's."""

    path: Path
    shipped: bool = False  # its rows were checked before they were shipped

    local: ClassVar[bool] = True

    def size(self, split: str) -> int | None:
        if not self.shipped:
            data.check(self.path)
        return len(self.source(split, None).indices)

    def count(self, split: str, limit: int | None) -> int:
        return len(self.source(split, limit).indices)

    def fetched(self, split: str) -> str:
        return ""

    def files(self, split: str) -> tuple[Path, ...]:
        return (self.path / f"{split}.parquet" if self.path.is_dir() else self.path,)

    def load(self, split: str, limit: int | None, images: ImageConversion | None = "viewer") -> Loaded:
        from harness.tasks import suite

        if not self.shipped:
            data.check(self.path)
        source = self.source(split, limit)
        task = suite.local(source, split, images)
        return Loaded(task, source.question_ids, source.image_ids, source.path, source.indices)

    def fingerprint(self, split: str, limit: int | None, loaded: Callable[[], Loaded]) -> str:
        source = self.source(split, limit)
        return repr((data.content_hash(source.path), source.indices))

    def source(self, split: str, limit: int | None) -> data.Source:
        """The chosen rows: whole images in the order of their hash."""
        return data.source(self.name, self.path, split, limit)


@dataclass(frozen=True)
class StockSet(QuestionSet):
    """A task of lmms-eval with data of its own."""

    local: ClassVar[bool] = False

    def size(self, split: str) -> int | None:
        return None

    def count(self, split: str, limit: int | None) -> int:
        raise InputError(f"task {self.name}: lmms-eval holds its questions; only parquet files can be counted")

    def fetched(self, split: str) -> str:
        return f"data set of lmms-eval's task {self.name}"

    def files(self, split: str) -> tuple[Path, ...]:
        return ()

    def load(self, split: str, limit: int | None, images: ImageConversion | None = "viewer") -> Loaded:
        from harness.tasks import suite

        return suite.restrict(suite.stock(self.name, split), limit)

    def fingerprint(self, split: str, limit: int | None, loaded: Callable[[], Loaded]) -> str:
        return repr((self.name, loaded().task.eval_docs._fingerprint))


# --- before a run -----------------------------------------------------------------------------------------


def require(questions: Questions, samples: int = 0, key: str = "calibration.samples") -> None:
    """Raise InputError unless every task exists, has the split, and has valid rows if it lies on disk.

    Each task must also supply its share of the `samples` under a board's `key`. For lmms-eval's own tasks, only the
    load checks this.
    """
    for place, name in enumerate(questions.tasks):
        size = question_set(name).size(questions.split)
        if size is not None:
            share_of(samples, questions, place, size, key)


def share_of(samples: int, questions: Questions, place: int, size: int, key: str = "calibration.samples") -> int:
    """The number of `samples` that the task at this place must supply. Raises InputError if it has fewer."""
    tasks = questions.tasks
    share = samples // len(tasks) + (place < samples % len(tasks))
    if share > size:
        most = size * len(tasks) + place
        flag = f" (in prune: --samples {most})" if key.startswith("calibration") else ""
        raise InputError(
            f"{key}: task {tasks[place]} must supply {share} of the {samples} samples, but its split"
            f" '{questions.split}' has only {size}; set {key} to at most {most}{flag}, or name larger sets or another"
            " split under calibration.tasks and calibration.split"
        )
    return share


def check(path: str | Path) -> dict[str, Any]:
    """Validate a parquet file, a folder of them, or an official set (`vqav2_val@FOLDER`), with every image.

    See `data.check` and `OfficialSet.check` for results and errors.
    """
    official = OfficialSet.of(str(path))
    if official is None:
        return data.check(path)
    if official.folder is None:
        raise InputError(f"{path}: names no folder; use {path}@FOLDER")
    return official.check(decode=True)


def sizes(name: str) -> dict[str, int]:
    """The number of questions of each split that a set on disk can have; 0 if it has none there."""
    questions, counts = question_set(name), {}
    for split in data.SPLITS:
        try:
            counts[split] = questions.count(split, None)
        except InputError:
            counts[split] = 0
    return counts


def fetched(questions: Questions) -> list[str]:
    """The hub's data sets that these questions need; a run fetches those that the Hugging Face cache lacks."""
    return [text for name in questions.tasks if (text := question_set(name).fetched(questions.split))]


def local(tasks: Sequence[str]) -> bool:
    """Whether all these tasks are parquet files, and none has data of lmms-eval."""
    return all(question_set(name).local for name in tasks)


def count(questions: Questions) -> int:
    """The number of questions over all tasks, without a load of sets with countable rows."""
    return sum(question_set(name).count(questions.split, questions.limit) for name in questions.tasks)


@lru_cache(maxsize=1)
def _stock() -> frozenset[str]:
    """The names of lmms-eval's own tasks, read from its definitions without an import."""
    stock: set[str] = set()
    for path in lmms_eval("").glob("**/*.yaml"):
        stock.update(re.findall(r"^task:\s*[\"']?([\w.-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(stock)


def _definition(name: str) -> dict[str, Any]:
    """A shipped definition as plain data, with functions as their names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load((MINI / f"{name}.yaml").read_text(encoding="utf-8"), Loader)  # nosec
