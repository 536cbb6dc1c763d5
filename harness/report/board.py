"""A board as every page of it shows it: what was measured and how it went, its trials, its panels.

    python -c "from harness.record import load; from harness.report.board import Board; \
               print(Board.of('demo', load('results/demo')[0]).facts)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report import resources, tables, totals
from harness.report.reported import Figure, figures
from harness.report.samples import Samples
from harness.report.totals import Total
from harness.text import plain

MACHINE = ("machine", "gpu", "cpu")  # facts of a record's `env` that name the machine


@dataclass(frozen=True)
class Board:
    """All text in it is plain: whoever shows it has to escape it."""

    name: str
    facts: list[tuple[str, str]]  # (name, what)
    currency: str  # FLOPs, or what else its budgets are shares of
    notes: str  # how its trials went
    methods: list[tuple[str, str, str, str, str]]  # method, title, role, regime, tuning
    frame: pd.DataFrame
    panels: list[tables.Panel]
    totals: list[list[Total]]  # of each panel

    @classmethod
    def of(
        cls, name: str, records: Sequence[Mapping[str, Any]], unreadable: int = 0, samples: Samples | None = None
    ) -> Board:
        """The board of these records; `unreadable` counts the files beside them that are none."""
        frame = tables.board_frame(records)
        panels = tables.panels(frame)
        found = totals.find(panels, samples or Samples(Path()), records)
        return cls(
            name,
            _measured(records),
            _currency(records),
            _notes(records, unreadable),
            _methods(records),
            frame,
            panels,
            found,
        )

    @cached_property
    def columns(self) -> list[tables.Column]:
        return tables.columns(self.frame)

    @property
    def resources(self) -> str:
        """What the columns of memory and roofline are; empty where there are none."""
        return resources.legend(set(self.frame.columns))

    @property
    def reported(self) -> list[Figure]:
        """What papers report for the methods on this board."""
        return figures({method for method, *_ in self.methods})


def _measured(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    trials = [record["trial"] for record in records]
    tunings = {trial["tuning"] for trial in trials if trial["method"] != "none"}
    found = [
        ("Model", sorted({trial["model"] for trial in trials})),
        ("Tasks", [_task(task, records) for task in sorted({task for trial in trials for task in trial["tasks"]})]),
        ("Split", sorted({trial["split"] for trial in trials})),
        ("Precision", sorted({trial["dtype"] for trial in trials})),
        ("Machine", sorted({_machine(record["env"]) for record in records})),
    ]
    if len(tunings) == 1 and tunings != {"none"}:  # what all have in common is not repeated in their names
        found.append(("Tuning", sorted(tunings)))
    return [(name, plain(", ".join(values))) for name, values in found]


def _currency(records: Sequence[Mapping[str, Any]]) -> str:
    cut = [record["trial"] for record in records if record["trial"]["method"] != "none"]
    found = sorted({str(trial.get("currency", "flops")) for trial in cut}) or ["flops"]
    return plain(" or ".join(tables.CURRENCIES.get(name, name) for name in found))


def _task(task: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The task's name with how many questions and images it was measured on."""
    accuracies = [(record.get("metrics") or {}).get("accuracy", {}) for record in records if record["status"] == "ok"]
    found = [accuracy["tasks"][task] for accuracy in accuracies if task in accuracy.get("tasks", {})]
    counts = [
        f"{_span({entry[key] for entry in found if key in entry})} {noun}"
        for key, noun in (("n", "questions"), ("images", "images"))
        if any(key in entry for entry in found)
    ]
    return f"{task} ({', '.join(counts)})" if counts else task


def _span(counts: set[int]) -> str:
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _machine(env: Mapping[str, Any]) -> str:
    names = [env[key] for key in MACHINE if isinstance(env.get(key), str) and env[key]]
    return plain("; ".join(dict.fromkeys(names))) or "not named"


def _notes(records: Sequence[Mapping[str, Any]], unreadable: int) -> str:
    failed = sum(record["status"] == "failed" for record in records)
    text = f"{len(records)} trials, {failed} failed" + (": shown as failed, never counted as 0." if failed else ".")
    if unreadable:
        files = "file" if unreadable == 1 else "files"
        text += f" {unreadable} {files} beside them could not be read as records: left out."
    return text


def _methods(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    trials = [record["trial"] for record in records]
    return sorted({(t["method"], t["title"], t["role"], t["regime"], t["tuning"]) for t in trials})
