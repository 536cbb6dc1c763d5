"""One table of records per board, and its Markdown form.

board_frame(harness.records.record.load("results/demo")[0])
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import pandas as pd
from tabulate import tabulate

from harness import registry
from harness.records.comparison import common, fullest, pairs, regime, regime_order, terms
from harness.records.record import Record, dig
from harness.report.coarse import KEEPS, competing, keeps
from harness.text import TOO_FEW, plain, shorten
from harness.types import SCOPES
from harness.types import Column as MetricColumn
from harness.types.kinds import in_words, kinds_order

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
REST = "<rest>"  # place of columns that ORDER does not name
OWN = (TERMS, KEEPS, "place", "weights_mb")  # further keys of a row, the last two on pages
# The order of the figures in the table of trials.
SHOWN = (
    *("flops_kept", "total_flops_kept", "params_kept", "latency_speedup"),
    *(REST, "accuracy", TASKS, "gain_over_blind", "flips"),
)

CURRENCIES = {"flops": "FLOPs", "params": "parameters", "latency": "time"}  # the quantity that a budget is a share of
STUDIED_SIGN = "◆"
NOTHING = "–"
Row = Mapping[Any, Any]  # a row of the frame


@dataclass(frozen=True)
class Panel:
    """The trials that compete: equal setting, scope, units, budget terms and regime; and their dense model."""

    title: str
    dense: list[Row]
    groups: dict[tuple[str, float], list[Row]]  # (curve, budget), larger budgets first -> one row per seed

    @property
    def studied(self) -> set[str]:
        """The curves of the method under study."""
        return {curve for (curve, _), rows in self.groups.items() if rows[0]["role"] == "studied"}

    def shown(self, curve: str) -> str:
        """A curve's name, marked if it is the studied method's."""
        return marked(curve, curve in self.studied)

    def level(self, column: str) -> float | None:
        """The mean of this column over the dense model's trials; None if it was not measured."""
        measured = values(self.dense, column)
        return fmean(measured) if measured else None


@dataclass(frozen=True)
class ShownColumn:
    """A column of the table of all trials: its head, its key in the frame, and its cells as text."""

    head: str
    key: str
    text: bool  # free text; else a number or an interval
    cells: list[str]


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
    budgets = {terms(record.trial).budget for record in records if record.trial.method != "none"}
    several_terms, with_input = len(budgets) > 1, len({budget.input for budget in budgets}) > 1
    rows = []
    for record in records:
        budget = terms(record.trial).budget
        named = (f"{budget} {budget.asked}" if with_input else str(budget)) if several_terms else None
        rows.append(_row(record, known, names, len(calibrations[record.trial.method]) > 1, named))
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


def panels(frame: pd.DataFrame) -> list[Panel]:
    """The panels of a board; see `panels_of`."""
    return panels_of(frame.to_dict("records"))


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """The panels of a board's rows, in their order. Dense (method `none`) belongs to every panel of its setting."""
    panel_by_key: dict[tuple[str, ...], Panel] = {}
    dense: dict[str, list[Row]] = {}
    several = len({row["setting"] for row in rows}) > 1
    for row in rows:
        dense_rows = dense.setdefault(row["setting"], [])
        if row["method"] == "none":
            dense_rows.append(row)
            continue
        key = (row["setting"], row["scope"], row["units"], row.get(TERMS, ""), row["regime"])
        title = f"Scope {row['scope']}, {in_words(row['units'])}, regime {row['regime']}"
        title += f" ({row['setting']})" if several else ""
        title += f" ({row[TERMS]})" if TERMS in row else ""
        panel = panel_by_key.setdefault(key, Panel(title, dense_rows, {}))
        panel.groups.setdefault((row["curve"], row["budget"]), []).append(row)
    return list(panel_by_key.values())


def values(rows: Iterable[Row], column: str) -> list[float]:
    """The measured values of this column."""
    return [row[column] for row in rows if not math.isnan(row[column])]


def places(panel: Panel) -> dict[tuple[str, float], int]:
    """The rank of every measured and competing (curve, budget) within its budget, by the accuracy as shown."""
    points = {
        key: round(100 * fmean(seeds), 1)
        for key in competing(panel.groups)
        if (seeds := values(panel.groups[key], "accuracy"))
    }
    return {
        (curve, budget): 1 + sum(other > value for (_, at), other in points.items() if at == budget)
        for (curve, budget), value in points.items()
    }


def ranked(panel: Panel, standing: Mapping[tuple[str, float], int]) -> list[str]:
    """The curves by mean rank over common budgets. Those that miss one come after the others, those without last."""
    shared = common(panel.groups)

    def key(curve: str) -> tuple[int, float, str]:
        ranks = [place for (name, at), place in standing.items() if name == curve and at in shared]
        return -len(ranks), fmean(ranks) if ranks else math.inf, curve

    return sorted({curve for curve, _ in panel.groups}, key=key)


def standings(panel: Panel) -> tuple[list[str], dict[str, list[tuple[str, bool]]]]:
    """The heads of the columns, and each curve's cells: accuracy in points, and whether it is best among several."""
    budgets = sorted({budget for _, budget in panel.groups}, reverse=True)
    ranks = places(panel)
    several = len({curve for curve, _ in ranks}) > 1
    curves = {
        curve: [
            (_cell(panel.groups.get((curve, budget), [])), several and ranks.get((curve, budget)) == 1)
            for budget in budgets
        ]
        for curve in ranked(panel, ranks)
    }
    return [budget_text(budget) for budget in budgets], curves


def summary(panel: Panel) -> str:
    """The dense model and the blind floor, then methods x budgets, accuracy in points."""
    heads, curves = standings(panel)
    rows = [
        [escape(panel.shown(curve)), *(f"**{escape(text)}**" if best else escape(text) for text, best in cells)]
        for curve, cells in curves.items()
    ]
    levels = " · ".join(f"{name} **{figure}**" if name else figure for name, figure in level_texts(panel))
    return f"{levels}\n\n{markdown(['method', *heads], rows)}"


def trials(shown: Sequence[ShownColumn]) -> str:
    """Every trial as a row of one Markdown table of these columns."""
    if not shown:
        return "No trials."
    cells = [[escape(cell) for cell in column.cells] if column.text else column.cells for column in shown]
    return markdown([escape(column.head) for column in shown], list(zip(*cells, strict=True)))


def columns(frame: pd.DataFrame, rows: Sequence[Row]) -> list[ShownColumn]:
    """The columns of the table of all trials (`rows` of the frame) that hold more than nothing or a default value."""
    if not rows:
        return []

    def text(head: str, key: str, silent: object = "") -> ShownColumn:
        cells = [str(row[key]) for row in rows]
        return ShownColumn(head, key, True, cells if set(cells) != {silent} else [])

    def number(head: str, key: str, form: str, scale: float = 1) -> ShownColumn:
        return ShownColumn(head, key, False, [_number(scale * row[key], form) for row in rows])

    def interval(head: str, key: str, bounds: tuple[str, str], form: str, scale: float) -> ShownColumn:
        return ShownColumn(head, key, False, [_interval(row, key, bounds, form, scale) for row in rows])

    known = declared()
    rest = [name for name in frame.columns if name in known and name not in ORDER]
    tasks = task_columns(frame)

    def figure(name: str) -> ShownColumn | None:
        column = known[name][1]
        if column.interval:
            return interval(column.title, name, column.interval, column.form, column.scale)
        return number(column.title, name, column.form, column.scale) if column.title else None

    figures: list[ShownColumn | None] = []
    for name in SHOWN:
        if name == TASKS:
            figures += [number(task, task, "{:.1f}", 100) for task in tasks]
        else:
            figures += map(figure, rest if name == REST else [name])
    shown = [
        ShownColumn("method", "method", True, [marked(row["method"], row["role"] == "studied") for row in rows]),
        text("variant", "variant"),
        text("regime", "regime"),
        text("scope", "scope"),
        text("units", "units"),
        number("budget", "budget", "{:g}"),
        *(text(head, key) for head, key in (("budget terms", TERMS), ("coarse", KEEPS)) if key in frame.columns),
        number("seed", "seed", "{:d}"),
        *(column for column in figures if column),
        text("collapse", "collapse"),
        number("ranking s", "ranking_s", "{:.3g}"),
        text("setting", "setting", rows[0]["setting"]),
        text("trial", "trial"),
        ShownColumn("status", "status", True, [shorten(row["status"], 120) for row in rows]),
    ]
    return [column for column in shown if set(column.cells) - {NOTHING}]


def legend(frame: pd.DataFrame) -> str:
    """The explanations of a table's columns."""
    return " ".join(c.legend for name, (_, c) in declared().items() if name in frame.columns and c.legend)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], others: str = "right") -> str:
    """A Markdown table of escaped cells. The first column aligns left, the others to `others`."""
    align = ("left", *(others,) * (len(headers) - 1))
    return tabulate(rows, headers, "pipe", disable_numparse=True, colalign=align)


def marked(name: str, studied: bool) -> str:
    """A method's or curve's name, with the mark of the method under study."""
    return f"{STUDIED_SIGN} {name}" if studied else name


def escape(text: object) -> str:
    """Text of a record as literal Markdown: no markup, no HTML, no new cell, no new line."""
    safe = plain(str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", safe)


# --- rows ---------------------------------------------------------------------------------------------------


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
        "regime": plain(regime(record)),
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
        row[TERMS] = budget_terms if trial.method != "none" else ""
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
        row["method"] != "none",
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


# --- cells --------------------------------------------------------------------------------------------------


def _cell(rows: Sequence[Row]) -> str:
    """Mean over seeds in points, with half their range for several seeds, and the number of failed trials."""
    points, failed = values(rows, "accuracy"), sum(row["status"] != "ok" for row in rows)
    if not points:
        return "failed" if failed else NOTHING
    text = f"{100 * fmean(points):.1f}"
    if len(points) > 1:
        text += f" ± {50 * (max(points) - min(points)):.1f}"
    notes = [*sorted({str(row[KEEPS]) for row in rows if row.get(KEEPS)}), *([f"{failed} failed"] if failed else [])]
    return f"{text} ({', '.join(notes)})" if notes else text


def level_texts(panel: Panel) -> list[tuple[str, str]]:
    """The reference figures of a panel as (name, figure). An empty name means that the figure is a full text."""
    dense, blank = panel.level("accuracy"), panel.level("blank_accuracy")
    parts = [("Dense", f"{100 * dense:.1f}") if dense is not None else ("", "Dense: not measured")]
    if blank is not None:
        parts.append(("blind floor (image blanked)", f"{100 * blank:.1f}"))
    rows = [row for group in panel.groups.values() for row in group]
    widths = [width for row in rows if not math.isnan(width := row["accuracy_hi"] - row["accuracy_lo"])]
    if widths:
        parts.append(("", f"interval of one trial about ± {50 * median(widths):.1f}"))
    return parts


def budget_text(budget: float) -> str:
    """A budget as a share and as a factor."""
    return f"{budget:g} ({1 / budget:.3g}×)"


def _number(value: float, form: str) -> str:
    return NOTHING if math.isnan(value) else form.format(value)


def _interval(row: Row, key: str, bounds: tuple[str, str], form: str, scale: float) -> str:
    lo, hi = (row.get(bound, math.nan) for bound in bounds)  # a board that measured none has no such columns
    text = _number(scale * row[key], form)
    if math.isnan(lo + hi):
        return f"{text} ({TOO_FEW})" if key == "accuracy" and text != NOTHING else text
    return f"{text} [{form.format(scale * lo)}, {form.format(scale * hi)}]"
