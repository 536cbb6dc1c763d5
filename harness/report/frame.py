"""The records of a board as one table.

board_frame(harness.records.record.load("results/demo")[0])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness import registry
from harness.records.comparison import fullest, pairs, regime, regime_order, regimes, terms
from harness.records.record import Record, dig
from harness.report.coarse import KEEPS, keeps
from harness.text import plain
from harness.types import DENSE, SCOPES
from harness.types import Column as MetricColumn
from harness.types.kinds import kinds_order

IDENTITY = ("board", "model", "method", "variant", "role", "regime", "units", "scope", "budget", "seed")
CLOSING = ("ranking_s", "curve", "setting", "trial", "status")
TASKS = "<tasks>"  # place of the tasks' accuracies, sorted by task
# The order of a board's data. These columns always exist and come first; columns of other measured metrics follow.
ORDER = (
    *IDENTITY,
    *("split", "flops_kept", "flops_reduction", "params_kept", "latency_speedup", "speedup_lo", "speedup_hi"),
    *("accuracy", "accuracy_lo", "accuracy_hi", TASKS, "total_flops_kept", "blank_accuracy"),
    *CLOSING,
    *("gain_over_blind", "flips", "kl_first_token", "collapse"),
)
TERMS = "budget_terms"  # column of boards whose trials differ in budget terms
OWN = (TERMS, KEEPS, "place", "weights_mb")  # further keys of a row, the last two on pages
Row = Mapping[Any, Any]  # a row of the frame


def declared() -> dict[str, tuple[str, MetricColumn]]:
    """The metric and the column for every column name that a metric declares."""
    return {column.name: (metric, column) for metric, columns in registry.columns().items() for column in columns}


def board_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per trial, in an order that depends only on the trials.

    Accuracies and kept shares are fractions, speedups and reductions factors, `ranking_s` seconds. A failed trial has
    its error as `status` and no metrics. `curve` is equal for trials that differ only in budget and seed, `setting` for
    trials that may be compared; `collapse` lists signs of collapsed answers. Columns outside ORDER exist if a trial
    measured them. A curve's name omits budget terms that all pruned models share. Of trials that differ only in what
    they measure, one has a row (`fullest`).
    """
    records = fullest(records)
    calibrations: dict[str, set[Any]] = {}
    for record in records:
        calibrations.setdefault(record.trial.method, set()).add(record.trial.calibration)
    known = declared()
    tasks = sorted({task for record in records for task in record.trial.questions.tasks})
    names = {task: _task_column(task, known) for task in tasks}
    budgets = {terms(record.trial).budget for record in records if record.trial.method != DENSE}
    several_terms, with_input = len(budgets) > 1, len({budget.input for budget in budgets}) > 1
    shown = regimes(records)
    rows = []
    for record in records:
        budget = terms(record.trial).budget
        named = (f"{budget} {budget.asked}" if with_input else str(budget)) if several_terms else None
        row = _row(record, known, names, len(calibrations[record.trial.method]) > 1, named)
        rows.append(row | {"regime": plain(shown[regime(record)])})
    rest = [name for name in known if name not in ORDER and any(name in row for row in rows)]
    columns = [name for key in ORDER for name in (names.values() if key == TASKS else (key,))]
    columns += [*rest, *([TERMS] if several_terms else []), *([KEEPS] if any(row[KEEPS] for row in rows) else [])]
    frame = pd.DataFrame(sorted(rows, key=_order), columns=pd.Index(columns))
    numbers = [name for name in columns if name in known or name in names.values() or name in ("ranking_s", "budget")]
    frame.attrs["tasks"] = list(names.values())
    return frame.astype(dict.fromkeys(numbers, "float64"))


def task_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold a task's accuracy, in the frame's order."""
    return list(frame.attrs["tasks"])


def _row(
    record: Record,
    known: Mapping[str, tuple[str, MetricColumn]],
    tasks: Mapping[str, str],
    name_calibration: bool,
    budget_terms: str | None,
) -> dict[str, Any]:
    trial, about, ok = record.trial, record.contestant, record.error is None
    metrics = record.metrics if ok else {}  # a failed trial counts as not measured
    row: dict[str, Any] = {
        "board": plain(trial.board),
        "model": plain(trial.model),
        "method": plain(trial.method),
        "variant": plain(about.variant),
        "role": about.role,
        "units": trial.units,
        "scope": trial.scope,
        "budget": trial.budget,
        "seed": trial.seed,
        "split": plain(trial.questions.split),
    }
    for name, (metric, column) in known.items():
        value = column.value(metrics[metric], trial) if isinstance(metrics.get(metric), Mapping) else None
        if value is not None:
            row[name] = value
    row |= {column: dig(metrics, "accuracy", "tasks", task, "accuracy") for task, column in tasks.items()}
    row["ranking_s"] = record.cost.ranking_s
    parts = [trial.method, about.variant]
    if name_calibration:
        parts.append(pairs(vars(trial.calibration)))
    if budget_terms is not None:
        row[TERMS] = budget_terms if trial.method != DENSE else ""
        parts.append(row[TERMS])
    row["curve"] = plain(" ".join(filter(None, parts)))
    row["setting"] = plain(str(terms(trial).setting))
    row["trial"] = record.id
    error = record.error
    row["status"] = "ok" if error is None else plain(f"failed: {error.type}: {error.message}")
    not_finite = error is not None and error.type == "FloatingPointError"
    signs = ["not finite"] if not_finite else dig(metrics, "accuracy", "collapse")
    row["collapse"] = plain(", ".join(signs or []))
    row[KEEPS] = keeps(record)
    return row


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        row["board"],
        row["setting"],
        row["method"] != DENSE,
        SCOPES.index(row["scope"]),
        kinds_order(row["units"]),
        row.get(TERMS, ""),
        regime_order(row["regime"]),
        row["role"] != "studied",
        row["curve"],
        -row["budget"],
        row["seed"],
        row["trial"],
    )


def _task_column(task: str, known: Mapping[str, Any]) -> str:
    name = plain(task)
    return f"task {name}" if name in (*ORDER, *OWN) or name in known else name
