"""The answers of annotators, as the official scorers compare them: `Yes`, `yes` and `YES.` are one answer.

most_common({"answers": ["Yes", "yes", "YES.", "no", "no"]})    # "Yes"
"""

from __future__ import annotations

import importlib.util
import math
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from harness.types import InputError

LONGEST = 16  # maximal new tokens of an answer: the official short-answer limit
OFFICIAL = 10  # annotators of a question in the official sets
NO_MARKS = str.maketrans("", "", string.punctuation)


def texts(doc: Mapping[str, Any]) -> list[str]:
    """The texts of all answers to a question. Raises InputError if its columns hold none."""
    if "answers" not in doc and "answer" not in doc:
        raise InputError(f"no column 'answers' or 'answer' (the questions have: {', '.join(doc)})")
    answers = doc.get("answers", [doc.get("answer")]) or []
    answers = [answers] if isinstance(answers, str) else answers
    return [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]


def most_common(doc: Mapping[str, Any]) -> str:
    """The most common answer to a question, the first of equally common ones."""
    return ranked([str(text) for text in texts(doc)], normal(doc))[0]


def ranked(answers: Sequence[str], normal: Callable[[str], str]) -> list[str]:
    """The distinct answers, the most common first, with equal normal forms as one answer in its usual spelling."""
    groups: dict[str, Counter[str]] = {}
    for answer in answers:
        groups.setdefault(normal(answer), Counter())[answer] += 1
    return [group.most_common(1)[0][0] for group in sorted(groups.values(), key=lambda group: -group.total())]


def annotators(answers: list[Any]) -> list[Any]:
    """The answers in the form of the soft scorers: at least four, from distinct annotators.

    Both scorers judge an annotator by the *other* annotators' answers, so a list of fewer than four never scores 1. A
    shorter list is repeated to at least ten. VQAv2 identifies annotators by their full entries, so each gets a number.
    """
    if len(answers) < 4:
        answers = answers * math.ceil(OFFICIAL / len(answers))
    if isinstance(answers[0], str):
        return answers
    return [{"answer": a["answer"], "answer_id": number} for number, a in enumerate(answers, 1)]


# --- normal forms ---------------------------------------------------------------------------------------------


def normal(doc: Mapping[str, Any]) -> Callable[[str], str]:
    """The normal form of the scorer that fits a question's columns; answers that share it score alike.

    A question of another task of lmms-eval gets TextVQA's.
    """
    if "answers" not in doc:
        return _gqa
    return _vqav2 if any(isinstance(answer, dict) for answer in doc["answers"] or ()) else _textvqa


def _gqa(answer: str) -> str:
    return answer.lower().translate(NO_MARKS)


@lru_cache(maxsize=1 << 16)
def _textvqa(answer: str) -> str:
    return _scorer()(answer)


@lru_cache(maxsize=1 << 16)
def _vqav2(answer: str) -> str:
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    return _scorer().process_digit_article(_scorer().process_punctuation(answer))


@cache
def _scorer() -> Any:
    """lmms-eval's normaliser of answers, without the import of lmms-eval, which takes seconds and loads torch."""
    spec = importlib.util.spec_from_file_location("vqa_eval_metric", lmms_eval("_task_utils/vqa_eval_metric.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EvalAIAnswerProcessor()


def lmms_eval(path: str) -> Path:
    """A file or folder among lmms-eval's tasks. Raises ImportError if it is not installed."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("lmms-eval is not installed")
    return Path(spec.submodule_search_locations[0]) / "tasks" / path
