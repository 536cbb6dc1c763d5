"""Answers of a model to the shipped sets' names."""

from __future__ import annotations

from typing import Any

from harness import tasks
from harness.types import VLM
from tests.support.question_files import asked

TASK_NAMES = ["mini_gqa", "mini_textvqa", "mini_vqav2"]


def answers_of(vlm: VLM, **options: Any) -> list[str]:
    """To nine questions of each task."""
    return tasks.evaluate(vlm, asked(TASK_NAMES, "validation", 9), **options)[1]["answer"].to_pylist()
