"""The content that all pages of a board share: its facts, trials and panels.

    python -c "from harness.records.record import load; from harness.report.board import Board; \
               print(Board.of('demo', load('results/demo')[0]).facts)"
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from harness.records.comparison import regime, regime_order, regimes
from harness.records.record import Record, dig
from harness.report import choices, tables, totals
from harness.report.choices import Choice
from harness.report.frame import Row, board_frame
from harness.report.panels import Panel, panels_of, values
from harness.report.reported import Figure, figures
from harness.report.samples import Samples
from harness.report.totals import Total
from harness.text import plain
from harness.types import DENSE

STEADY = 0.05  # distance from 1 of the dense model's speedup over itself that a quiet machine keeps
MACHINE = ("machine", "gpu", "cpu")  # facts of a record's `env` that name the machine


class Described(NamedTuple):
    """The description of a method on a board."""

    method: str
    title: str
    role: str
    regimes: str


@dataclass(frozen=True)
class Board:
    """The content of a board's pages. Its text is plain; a page must escape it."""

    name: str
    facts: list[tuple[str, str]]  # (name, text)
    currency: str  # the quantity that its budgets are shares of, such as FLOPs
    notes: str  # number and state of its trials
    methods: list[Described]
    frame: pd.DataFrame
    rows: Sequence[Row]  # of the frame
    panels: list[Panel]
    totals: list[list[Total]]  # of each panel

    @classmethod
    def of(cls, name: str, records: Sequence[Record], unreadable: int = 0, samples: Samples | None = None) -> Board:
        """The board of these records. `unreadable` counts files beside them that are no records."""
        frame = board_frame(records)
        rows = frame.to_dict("records")
        panels = panels_of(rows)
        return cls(
            name,
            facts=_measured(records),
            currency=_currency(records),
            notes=" ".join(filter(None, (_notes(records, unreadable, len(records) - len(rows)), unsteady(rows)))),
            methods=_methods(records),
            frame=frame,
            rows=rows,
            panels=panels,
            totals=totals.find(panels, samples or Samples(Path()), records),
        )

    @cached_property
    def columns(self) -> list[tables.ShownColumn]:
        return tables.columns(self.frame, self.rows)

    @property
    def accurate(self) -> bool:
        """Whether accuracy is what the board is about. Boards of random weights show speed instead."""
        return bool(values(self.rows, "accuracy") or not values(self.rows, "latency_speedup"))

    @property
    def choices(self) -> list[Choice]:
        """The best choices at some budgets, of boards that compare several kinds of units."""
        return choices.table(self.frame)

    @property
    def legend(self) -> str:
        """The explanation of columns in the table of trials; empty if none needs one."""
        return tables.legend(self.frame)

    @property
    def reported(self) -> list[Figure]:
        """Figures that papers report for the methods of this board."""
        return figures({described.method for described in self.methods})


def _measured(records: Sequence[Record]) -> list[tuple[str, str]]:
    trials = [record.trial for record in records]
    tasks = sorted({task for trial in trials for task in trial.questions.tasks})
    conversions = sorted({trial.questions.image_conversion for trial in trials})
    facts = [
        ("Model", sorted({trial.model for trial in trials})),
        ("Tasks", [_task(task, records) for task in tasks]),
        ("Split", sorted({trial.questions.split for trial in trials})),
        *([("Image conversion", conversions)] if conversions != ["viewer"] else []),
        ("Precision", sorted({trial.dtype for trial in trials})),
        ("Machine", sorted({_machine(record.env) for record in records})),
    ]
    return [(name, plain(", ".join(values))) for name, values in facts]


def _currency(records: Sequence[Record]) -> str:
    currencies = {record.trial.currency for record in records if record.trial.method != DENSE} or {"flops"}
    return " or ".join(tables.CURRENCIES[name] for name in sorted(currencies))


def _task(task: str, records: Sequence[Record]) -> str:
    """The task's name with its numbers of questions and images."""
    results = [dig(record.metrics, "accuracy", "tasks", task) for record in records if record.error is None]
    measured = [result for result in results if result is not None]
    counts = [
        f"{_span({result[key] for result in measured if key in result})} {noun}"
        for key, noun in (("n", "questions"), ("images", "images"))
        if any(key in result for result in measured)
    ]
    return f"{task} ({', '.join(counts)})" if counts else task


def _span(counts: set[int]) -> str:
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _machine(env: Mapping[str, Any]) -> str:
    names = [env[key] for key in MACHINE if isinstance(env.get(key), str) and env[key]]
    return plain("; ".join(dict.fromkeys(names))) or "not named"


def _notes(records: Sequence[Record], unreadable: int, doubles: int) -> str:
    failed = sum(record.status == "failed" for record in records)
    text = f"{len(records)} trials, {failed} failed" + (": shown as failed, never counted as 0." if failed else ".")
    if doubles:
        text += f" {doubles} of them are not shown: the same trials were measured more fully."
    if unreadable:
        files = "file" if unreadable == 1 else "files"
        text += f" {unreadable} {files} beside them could not be read as records and are left out."
    return text


def unsteady(rows: Iterable[Row]) -> str:
    """What the dense model's speedup over itself tells of the machine; empty if it is within STEADY of 1."""
    own = values([row for row in rows if row["method"] == DENSE], "latency_speedup")
    worst = max(own, key=lambda value: abs(value - 1), default=1.0)
    if abs(worst - 1) <= STEADY:
        return ""
    own_speed = f"the dense model measured {worst:.2f} times its own speed"
    return f"The machine was busy: {own_speed}, and other speedups may be as far off."


def _methods(records: Sequence[Record]) -> list[Described]:
    shown, of_method = regimes(records), defaultdict[tuple[str, str, str], set[str]](set)
    for record in records:
        about = record.trial.method, record.contestant.title, record.contestant.role
        of_method[about].add(shown[regime(record)])
    return [Described(*about, "; ".join(sorted(own, key=regime_order))) for about, own in sorted(of_method.items())]
