"""lmms-eval's task objects over our question sets, and the only call of its evaluator.

suite = Suite({"t": Loaded(local(source, "dev"), source.question_ids, source.image_ids)})
answers = suite.run(Adapter(vlm, encoded=suite.encoded))["t"]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

with contextlib.redirect_stdout(sys.stderr):  # stdout is only for results
    import datasets
    import lmms_eval.api.task
    import lmms_eval.evaluator
    import lmms_eval.tasks
from datasets.table import InMemoryTable
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config
from loguru import logger
from PIL import ImageFile
from tenacity import RetryError
from tqdm import tqdm

from harness.pictures import as_shown, opened
from harness.tasks.adapter import Encoded
from harness.tasks.data import Source, choose, content_hash
from harness.tasks.official import OWNER, OfficialSet
from harness.tasks.sets import Loaded
from harness.tasks.truths import LONGEST
from harness.types import ImageConversion, InputError

MINI = Path(__file__).parent / "mini"

# The import of lmms-eval changes three settings of the whole process, which the code below reverts: it logs to stdout,
# it draws its own progress bars, and it makes PIL accept truncated images.


def _no_bar(*args: Any, **options: Any) -> tqdm:
    return tqdm(*args, **{**options, "disable": True})


logger.remove()
logger.add(lambda message: print(message, end="", file=sys.stderr), level="ERROR")
for module in (lmms_eval.api.task, lmms_eval.evaluator):
    vars(module)["tqdm"] = _no_bar
ImageFile.LOAD_TRUNCATED_IMAGES = False
datasets.disable_progress_bars()


class LocalTask(ConfigurableMessagesTask):
    """An lmms-eval task over rows of a local parquet file: same prompt and scorer, no download, no cache folder."""

    def download(self, dataset_kwargs: Any = None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        source: Source = dataset_kwargs["source"]
        self.set_config("dataset_kwargs", None)
        name = sha256(repr(source).encode()).hexdigest()[:16]
        rows = source.read(images=dataset_kwargs["images"] is not None)
        rows = datasets.Dataset(InMemoryTable(rows), fingerprint=name)
        rows = _pictured(self, rows, dataset_kwargs["images"])
        self.dataset = datasets.DatasetDict({self.config.test_split: rows})
        self.dataset_no_image = datasets.DatasetDict({self.config.test_split: rows.remove_columns("image")})

    # The bare scorer: lmms-eval's wrapper would retry for ten seconds after an error.
    process_results = vars(ConfigurableTask)["process_results"].__wrapped__


class OfficialTask(ConfigurableMessagesTask):
    """lmms-eval's definition of an official set over its memory-mapped rows.

    Images in a data set apart are read when a question needs them.
    """

    def download(self, dataset_kwargs: Any = None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        asked, split = dataset_kwargs["official"]
        self.set_config("dataset_kwargs", None)
        rows, self.origin = _rows(asked, split)
        if asked.definition.images:
            apart, origin = _rows(asked, split, images=True)
            apart = _pictured(self, apart, dataset_kwargs["images"])
            self.origin += origin
            place = {str(key): row for row, key in enumerate(apart["id"])}
            show: Any = self.config.doc_to_visual
            self.set_config("doc_to_visual", lambda doc: show(apart[place[doc["imageId"]]]))
        else:
            rows = _pictured(self, rows, dataset_kwargs["images"])
        bare = rows.remove_columns("image") if "image" in rows.column_names else rows
        self.dataset = datasets.DatasetDict({self.config.test_split: rows})
        self.dataset_no_image = datasets.DatasetDict({self.config.test_split: bare})

    process_results = LocalTask.process_results


def _pictured(task: Any, rows: Any, images: ImageConversion | None) -> Any:
    """The rows with images that the task shows as a viewer does, or as lmms-eval's own code does (stock)."""
    if images == "viewer":
        task.set_config("doc_to_visual", lambda doc: [as_shown(opened(doc["image"]["bytes"]))])
    return rows.cast_column("image", datasets.Image(decode=images == "stock"))


def _rows(asked: OfficialSet, split: str, images: bool = False) -> tuple[Any, str]:
    """Rows of an official set, and a text that identifies them."""
    part = asked.part(split, images)
    if asked.folder is not None:
        files = asked.parquet(split, images)
        rows = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        origin = repr([content_hash(file) for file in files])
    else:
        definition = asked.definition
        name, origin = f"{OWNER}/{definition.dataset}", repr((definition.dataset, definition.revision, part))
        try:
            rows = datasets.load_dataset(name, part.config, split=part.split, revision=definition.revision)
        except (OSError, ValueError) as error:
            raise InputError(
                f"task {asked.name}: cannot fetch {name} ({str(error).splitlines()[0]}); connect to the network once,"
                f" or use the Hugging Face cache or {asked.name}@FOLDER"
            ) from error
    return rows, origin


@dataclass
class Suite:
    """Loaded question sets by task, and the model inputs that were made of them."""

    sets: dict[str, Loaded]
    encoded: Encoded = field(default_factory=Encoded)

    @property
    def tasks(self) -> dict[str, Any]:
        return {name: loaded.task for name, loaded in self.sets.items()}

    @property
    def image_ids(self) -> dict[str, tuple[str, ...]]:
        return {name: loaded.image_ids for name, loaded in self.sets.items()}

    def where(self, task: str, doc: int) -> str:
        """What identifies a question in an error."""
        return self.sets[task].where(task, doc)

    def run(self, adapter: lmms) -> dict[str, list[tuple[int, str, float]]]:
        """(document, answer, score) of every question, by task, from lmms-eval's evaluator."""
        evaluate: Any = lmms_eval.evaluator.simple_evaluate
        output = evaluate(
            model=adapter,
            tasks=list(self.tasks.values()),
            task_manager=TaskManager(include_path=str(MINI), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            process_docs_parallel=1,
            distributed_executor_backend="torchrun",  # avoids an accelerator object; only one process runs
            cli_args=argparse.Namespace(process_with_media=False),  # scorers need no images
        )
        return {
            name: [
                (sample["doc_id"], sample["filtered_resps"][0], self._score(name, task, sample))
                for sample in output["samples"][name]
            ]
            for name, task in self.tasks.items()
        }

    def constant(self, answers: Mapping[str, str]) -> dict[str, list[tuple[int, str, float]]]:
        """The result of `run` for constant answers; `answers` holds one per task."""
        return {
            name: [
                (number, answers[name], self._score(name, task, task.process_results(dict(doc), [answers[name]])))
                for number, doc in enumerate(task.eval_docs_no_media)
            ]
            for name, task in self.tasks.items()
        }

    @staticmethod
    def _score(name: str, task: Any, sample: Mapping[str, Any]) -> float:
        metric = next(iter(task.aggregation()), "none")
        score: Any = sample.get(metric)
        if isinstance(score, int | float | np.number):
            return float(score)
        raise InputError(f"task {name}: its metric '{metric}' is no number per question; choose a task with one")


def local(source: Source, split: str, images: ImageConversion | None = "viewer") -> LocalTask:
    """A task with the shipped definition that fits the file, on the rows of this source; None: without its images."""
    config = load_yaml_config(str(MINI / f"{source.form}.yaml"), mode="full")
    rows = {"source": source, "images": images}
    return LocalTask(config={**config, "task": source.task, "test_split": split, "dataset_kwargs": rows})


def official(asked: OfficialSet, split: str, images: ImageConversion | None = "viewer") -> OfficialTask:
    """An official task on this split: lmms-eval's definition, with at most 16 answer tokens and no submission files."""
    path = Path(lmms_eval.tasks.__file__).parent / asked.definition.definition
    config = load_yaml_config(str(path), mode="full")
    for key in ("dataset_path", "dataset_name", "process_docs"):
        config.pop(key, None)
    return OfficialTask(
        config={
            **config,
            "task": asked.name,
            "dataset_path": "parquet",
            "test_split": split,
            "generation_kwargs": {**config["generation_kwargs"], "max_new_tokens": LONGEST},
            "metric_list": [metric for metric in config["metric_list"] if metric["metric"] != "submission"],
            "dataset_kwargs": {"official": (asked, split), "images": images},
        }
    )


def stock(name: str, split: str) -> Any:
    """One of lmms-eval's own tasks with its own data set. Raises InputError if it cannot be loaded."""
    if split != "validation":
        raise InputError(
            f"task {name}: has no split '{split}'; use 'validation', the only split of lmms-eval's own tasks"
        )
    try:
        loaded = TaskManager().load_task_or_group([name], task_type="chat")
    except RetryError as error:
        cause = error.last_attempt.exception()
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise InputError(
            f"task {name}: lmms-eval could not load its data set ({reason});"
            " connect to the network once, or fill the Hugging Face cache"
        ) from error
    task = loaded.get(name)
    if task is None or isinstance(task, dict):
        raise InputError(f"task {name}: this is a group of lmms-eval; name its tasks one by one")
    # A `submission` metric would write files for a challenge's server into the working folder.
    task.aggregation().pop("submission", None)
    return task


def restrict(task: Any, limit: int | None) -> Loaded:
    """The task with its first `limit` questions in the order of `data.choose`."""
    split = task.config.test_split or task.config.validation_split
    docs, bare = task.dataset[split], task.dataset_no_image[split]
    row_numbers = [str(i) for i in range(len(docs))]
    question_column = next((c for c in ("question_id", "questionId", "id") if c in bare.column_names), None)
    image_column = next((c for c in ("image_id", "imageId") if c in bare.column_names), None)
    questions = [str(value) for value in bare[question_column]] if question_column else row_numbers
    if image_column:
        images = [str(value) for value in bare[image_column]]
    elif isinstance(docs.features.get("image"), datasets.Image):
        encoded = docs.select_columns("image").cast_column("image", datasets.Image(decode=False))
        images = [sha256(row["image"]["bytes"] or row["image"]["path"].encode()).hexdigest()[:16] for row in encoded]
    else:
        images = row_numbers
    if len(set(zip(images, questions, strict=True))) < len(questions):  # no ids: a pair of questions shares one
        questions = row_numbers
    chosen = choose(questions, images, limit)
    task.dataset[split], task.dataset_no_image[split] = docs.select(chosen), bare.select(chosen)
    task.task_docs = task.dataset[split]
    return Loaded(task, tuple(questions[i] for i in chosen), tuple(images[i] for i in chosen))
