"""A board with samples and plans, one of whose methods has a name that would do harm on a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness import tasks
from harness.records import record
from harness.records.record import Record
from harness.tasks import data
from harness.types import Choice, Keep, Kind, Plan, Questions, TokenPlan
from tests.support.records import board_record, failed_record

# A name that would be an image, end a script, be a template's slot and a shell's command.
HOSTILE = '<b>&lt;</b><img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>{{data}}\' $(id)'
BUDGETS = (0.75, 0.5, 0.3125)
TASK, LIMIT = "mini_gqa", 12


def plan_of(budget: float) -> Plan:
    """A plan that keeps the first heads of the first block, ranks in the second."""
    parts: dict[tuple[str, Kind], Keep | Choice] = {
        ("vision.0", "heads"): Keep(tuple(range(int(8 * budget)))),
        ("vision.0", "ffn"): Keep(tuple(range(int(96 * budget)))),
        ("vision.1", "heads"): Keep((1, 7)),
        ("vision.1", "ffn"): Choice(3, "rank 12/9"),
        ("language.0", "layers"): Keep(()),
    }
    return Plan(parts, budget, budget, tokens=TokenPlan(2, budget, HOSTILE))


def answers_of(right: list[bool]) -> pa.Table:
    source = data.source(TASK, data.REFERENCE / TASK, "validation", LIMIT)
    said = ["yes" if own else HOSTILE for own in right]
    ids = {"task": [TASK] * LIMIT, "question_id": source.question_ids, "image_id": source.image_ids}
    return pa.table({**ids, "answer": said, "score": [float(own) for own in right]})


def write_board(folder: Path) -> None:
    """Dense, three methods (one with a hostile name) in two scopes, two seeds of random, one failure; with samples."""
    digest = tasks.data_hash(Questions((TASK,), limit=LIMIT))[:16]
    about: dict[str, Any] = {"tasks": [TASK], "limit": LIMIT}
    right = [i % 4 > 0 for i in range(LIMIT)]

    def put(item: Record, right: list[bool]) -> None:
        trial, flops = item.trial, item.metrics["flops"]
        flops["params"]["pruned"] = 1_000_000 * flops["kept"]
        plan = plan_of(trial.budget) if trial.method != "none" else Plan({}, 1.0, 1.0)
        item = replace(item, hashes={"data": digest, "weights": "0" * 16}, plan=plan)
        record.write(folder, item, answers_of(right))

    put(board_record(**about), right)
    for scope in ("vision", "language"):
        for method in ("infoprune", "random", HOSTILE):
            for budget in BUDGETS:
                for seed in range(2 if method == "random" else 1):
                    item = board_record(method, scope, budget, seed, **about)
                    put(item, [(own and i % 5 > 0) or i == 0 for i, own in enumerate(right)])
    record.write(folder, failed_record("taylor", "vision", 0.5, **about))
