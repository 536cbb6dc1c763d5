"""Records as one table per board, and that table as Markdown for people.

    python -c "from harness.record import load; from harness.report.tables import board_frame; \
               print(board_frame(load('results/demo')[0]))"
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import pandas as pd
from tabulate import tabulate

from harness.record import dig, setting, terms
from harness.report import resources
from harness.text import plain, shorten
from harness.types import SCOPES, UNIT_KINDS

# Column -> where it stands in a record's metrics.
MEASURED = {
    "flops_kept": ("flops", "kept"),
    "flops_reduction": ("flops", "reduction"),
    "params_kept": ("flops", "params", "kept"),
    "latency_speedup": ("latency", "speedup"),
    "speedup_lo": ("latency", "speedup_lo"),
    "speedup_hi": ("latency", "speedup_hi"),
    "accuracy": ("accuracy", "mean"),
    "accuracy_lo": ("accuracy", "lo"),
    "accuracy_hi": ("accuracy", "hi"),
    "total_flops_kept": ("flops", "total", "kept"),
    "blank_accuracy": ("floors", "blank", "mean"),
    "gain_over_blind": ("floors", "gain_over_blind", "mean"),
    "flips": ("fidelity", "flips"),
    "kl_first_token": ("fidelity", "kl_first_token"),
}
IDENTITY = ("board", "model", "method", "variant", "role", "regime", "tuning", "units", "scope", "budget", "seed")
CLOSING = ("ranking_s", "curve", "setting", "trial", "status")
LAST = ("gain_over_blind", "flips", "kl_first_token", "collapse")
TERMS = "budget_terms"  # a column of boards whose budgets are meant in several ways
COLUMNS = (*IDENTITY, *MEASURED, *CLOSING, *LAST, TERMS, *resources.COLUMNS)  # every other column is a task's accuracy

UNITS = {"both": "heads and FFN", "heads": "heads only", "ffn": "FFN only"}
CURRENCIES = {"flops": "FLOPs", "params": "parameters", "latency": "time"}  # what a budget is a share of
STUDIED = "◆"
NOTHING = "–"


Row = Mapping[Any, Any]  # a row of the frame


@dataclass(frozen=True)
class Panel:
    """What shares a pair of axes: the trials of one setting, scope, units and terms, and their dense model."""

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

    def regime(self, curve: str) -> str:
        """What a curve is ranked within: its regime, or once tuned, when all weights have changed alike, its tuning."""
        row = next(rows[0] for (name, _), rows in self.groups.items() if name == curve)
        return row["regime"] if row["tuning"] == "none" else f"tuned {row['tuning']}"

    def level(self, column: str) -> float | None:
        """The mean of this column over the dense model's trials; None where it was not measured."""
        found = values(self.dense, column)
        return fmean(found) if found else None


@dataclass(frozen=True)
class Column:
    """A column of the table of all trials: the frame's column it is sorted by, and its cells as they are shown."""

    head: str
    key: str
    text: bool  # free text, perhaps of a record; else a number or an interval
    cells: list[str]


def board_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per trial, in an order that depends on the trials alone.

    Accuracies and kept shares are fractions, speedups and reductions factors, `ranking_s` seconds. A failed trial has
    the reason as its `status` and no metric. `curve` names what differs only in budget and seed, `setting` what
    may be compared at all, `collapse` what a trial's answers have collapsed to. The columns of `resources` are there if
    a trial measured them. A tuning, and budget terms, that every pruned model had stand in no curve's name.
    """
    calibrations: dict[str, set[str]] = {}
    for record in records:
        trial = record["trial"]
        calibrations.setdefault(trial["method"], set()).add(_pairs(trial["calibration"]))
    tasks = sorted({task for record in records for task in record["trial"]["tasks"]})
    names = {task: _task_column(task) for task in tasks}
    pruned = [record["trial"] for record in records if record["trial"]["method"] != "none"]
    several_tunings = len({trial["tuning"] for trial in pruned}) > 1
    several_terms = len({_pairs(terms(trial)) for trial in pruned}) > 1
    rows = [
        _row(record, names, several_tunings, len(calibrations[record["trial"]["method"]]) > 1, several_terms)
        for record in records
    ]
    first = [name for name in MEASURED if name not in ("total_flops_kept", "blank_accuracy", *LAST)]
    more = [name for name in resources.COLUMNS if any(name in row for row in rows)]
    columns = [*IDENTITY, *first, *names.values(), "total_flops_kept", "blank_accuracy", *CLOSING, *LAST, *more]
    columns += [TERMS] if several_terms else []
    frame = pd.DataFrame(sorted(rows, key=_order), columns=pd.Index(columns))
    measured = [*MEASURED, *names.values(), "ranking_s", "budget", *more]
    return frame.astype(dict.fromkeys(measured, "float64"))


def task_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold a task's accuracy, in the frame's order."""
    return [str(column) for column in frame.columns if column not in COLUMNS]


def panels(frame: pd.DataFrame) -> list[Panel]:
    """The panels of a board, in the frame's order; dense (method `none`) counts for every scope of its setting."""
    found: dict[tuple[str, ...], Panel] = {}
    dense: dict[str, list[Row]] = {}
    several = len(set(frame["setting"])) > 1
    for row in frame.to_dict("records"):
        same = dense.setdefault(row["setting"], [])
        if row["method"] == "none":
            same.append(row)
            continue
        key = (row["setting"], row["scope"], row["units"], row.get(TERMS, ""))
        title = f"Scope {row['scope']}, {UNITS[row['units']]}" + (f" ({row['setting']})" if several else "")
        title += f" ({row[TERMS]})" if TERMS in row else ""
        panel = found.setdefault(key, Panel(title, same, {}))
        panel.groups.setdefault((row["curve"], row["budget"]), []).append(row)
    return list(found.values())


def values(rows: Iterable[Row], column: str) -> list[float]:
    """What the rows have measured in this column."""
    return [row[column] for row in rows if not math.isnan(row[column])]


def places(panel: Panel) -> dict[tuple[str, float], int]:
    """The place of every (curve, budget) that was measured among those of its budget and regime, by accuracy as shown,
    so that what looks like a tie is one."""
    points = {
        key: round(100 * fmean(found), 1) for key, rows in panel.groups.items() if (found := values(rows, "accuracy"))
    }
    regimes = {curve: panel.regime(curve) for curve, _ in points}
    found = {}
    for curve, budget in points:
        rivals = [points[key] for key in points if key[1] == budget and regimes[key[0]] == regimes[curve]]
        found[curve, budget] = 1 + sum(value > points[curve, budget] for value in rivals)
    return found


def ranked(panel: Panel, standing: Mapping[tuple[str, float], int]) -> list[str]:
    """The curves, regime by regime, best mean rank first; what was not measured stands last."""

    def key(curve: str) -> tuple[str, float, str]:
        own = [place for (name, _), place in standing.items() if name == curve]
        return panel.regime(curve), fmean(own) if own else math.inf, curve

    return sorted({curve for curve, _ in panel.groups}, key=key)


def standings(panel: Panel) -> tuple[list[str], dict[str, list[tuple[str, bool]]]]:
    """The heads of the columns, and each curve's cells below them: accuracy in points, and whether it is the best of
    its budget and regime. Where there are several regimes, the first column names them.
    """
    budgets = sorted({budget for _, budget in panel.groups}, reverse=True)
    found = places(panel)
    curves = {
        curve: [(_cell(panel.groups.get((curve, budget), [])), found.get((curve, budget)) == 1) for budget in budgets]
        for curve in ranked(panel, found)
    }
    heads = [budget_text(budget) for budget in budgets]
    if len({panel.regime(curve) for curve in curves}) > 1:
        heads.insert(0, "regime")
        curves = {curve: [(panel.regime(curve), False), *cells] for curve, cells in curves.items()}
    return heads, curves


def summary(panel: Panel) -> str:
    """The dense model and the blind floor, then methods x budgets, accuracy in points."""
    heads, curves = standings(panel)
    rows = [
        [escape(panel.shown(curve)), *(f"**{escape(text)}**" if best else escape(text) for text, best in cells)]
        for curve, cells in curves.items()
    ]
    levels = " · ".join(f"{name} **{figure}**" if name else figure for name, figure in level_texts(panel))
    return f"{levels}\n\n{markdown(['method', *heads], rows)}"


def trials(shown: Sequence[Column]) -> str:
    """Every trial as a row of one Markdown table of these columns."""
    if not shown:
        return "No trials."
    cells = [[escape(cell) for cell in column.cells] if column.text else column.cells for column in shown]
    return markdown([escape(column.head) for column in shown], list(zip(*cells, strict=True)))


def columns(frame: pd.DataFrame) -> list[Column]:
    """The columns of the table of all trials; one that says nothing on this board is left out."""
    if frame.empty:
        return []
    rows = frame.to_dict("records")

    def text(head: str, key: str, silent: object = "") -> Column:
        cells = [str(row[key]) for row in rows]
        return Column(head, key, True, cells if set(cells) != {silent} else [])

    def number(head: str, key: str, form: str, scale: float = 1) -> Column:
        return Column(head, key, False, [_number(scale * row[key], form) for row in rows])

    def interval(key: str, head: str, form: str, scale: float = 1) -> Column:
        return Column(head, key, False, [_interval(row, key, head, form, scale) for row in rows])

    found = [
        Column(
            "method",
            "method",
            True,
            [marked(row["method"], row["role"] == "studied") for row in rows],
        ),
        text("variant", "variant"),
        text("regime", "regime"),
        text("tuning", "tuning", "none"),
        text("scope", "scope"),
        text("units", "units"),
        number("budget", "budget", "{:g}"),
        *([text("budget terms", TERMS)] if TERMS in frame.columns else []),
        number("seed", "seed", "{:d}"),
        number("FLOPs kept", "flops_kept", "{:.4f}"),
        number("end to end", "total_flops_kept", "{:.4f}"),
        number("params kept", "params_kept", "{:.3f}"),
        interval("latency_speedup", "speedup", "{:.2f}"),
        *(
            number(head, key, form, scale)
            for key, (head, form, scale) in resources.COLUMNS.items()
            if head and key in frame.columns
        ),
        interval("accuracy", "accuracy", "{:.1f}", 100),
        *(number(task, task, "{:.1f}", 100) for task in task_columns(frame)),
        number("over blind", "gain_over_blind", "{:.1f}", 100),
        number("flips", "flips", "{:.3f}"),
        text("collapse", "collapse"),
        number("ranking s", "ranking_s", "{:.3g}"),
        text("setting", "setting", rows[0]["setting"]),
        text("trial", "trial"),
        Column("status", "status", True, [shorten(row["status"], 120) for row in rows]),
    ]
    return [column for column in found if set(column.cells) - {NOTHING}]


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], others: str = "right") -> str:
    """A Markdown table of cells that are escaped already: the first column to the left, the others to `others`."""
    align = ("left", *(others,) * (len(headers) - 1))
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align)


def marked(name: str, studied: bool) -> str:
    """A method's or curve's name as every page shows it."""
    return f"{STUDIED} {name}" if studied else name


def escape(text: object) -> str:
    """Text of a record as literal Markdown: no markup, no HTML, no new cell, no new line."""
    safe = plain(str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", safe)


# --- rows ---------------------------------------------------------------------------------------------------


def _row(
    record: Mapping[str, Any], tasks: Mapping[str, str], name_tuning: bool, name_calibration: bool, name_terms: bool
) -> dict[str, Any]:
    trial, ok = record["trial"], record["status"] == "ok"
    metrics = (record.get("metrics") or {}) if ok else {}  # a failed trial measured nothing, whatever it left behind
    row = {key: plain(trial[key]) if isinstance(trial[key], str) else trial[key] for key in IDENTITY}
    row |= {column: dig(metrics, *path) for column, path in MEASURED.items()}
    row |= {column: dig(metrics, "accuracy", "tasks", task, "accuracy") for task, column in tasks.items()}
    row |= resources.figures(record) if ok else {}
    row["ranking_s"] = dig(record, "cost", "ranking_s")
    parts = [trial["method"], trial["variant"], trial["tuning"] if name_tuning and trial["tuning"] != "none" else ""]
    if name_calibration:
        parts.append(_pairs(trial["calibration"]))
    if name_terms:
        row[TERMS] = _pairs(terms(trial)) if trial["method"] != "none" else ""
        parts.append(row[TERMS])
    row["curve"] = plain(" ".join(filter(None, parts)))
    row["setting"] = plain(_pairs(setting(trial)))
    row["trial"] = record["id"]
    error = record["error"] or {}
    row["status"] = "ok" if ok else plain(f"failed: {error['type']}: {error['message']}")
    signs = ["not finite"] if error.get("type") == "FloatingPointError" else dig(metrics, "accuracy", "collapse")
    row["collapse"] = plain(", ".join(signs or []))
    return row


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        row["board"],
        row["setting"],
        row["method"] != "none",
        SCOPES.index(row["scope"]),
        UNIT_KINDS.index(row["units"]),
        row.get(TERMS, ""),
        row["role"] != "studied",
        row["curve"],
        -row["budget"],
        row["seed"],
        row["trial"],
    )


def _pairs(mapping: Mapping[str, Any]) -> str:
    """A mapping as short text: {"samples": 128, "tasks": ["a", "b"]} -> samples=128 tasks=a+b."""
    texts = {
        key: "+".join(map(str, value))
        if isinstance(value, list)
        else value
        if isinstance(value, str)
        else json.dumps(value)
        for key, value in mapping.items()
    }
    return " ".join(f"{key}={text}" for key, text in sorted(texts.items()))


def _task_column(task: str) -> str:
    name = plain(task)
    return f"task {name}" if name in COLUMNS else name


# --- cells --------------------------------------------------------------------------------------------------


def _cell(rows: Sequence[Row]) -> str:
    """Mean over seeds in points, with half their range where there are several; what failed is said, never averaged."""
    points, failed = values(rows, "accuracy"), sum(row["status"] != "ok" for row in rows)
    if not points:
        return "failed" if failed else NOTHING
    text = f"{100 * fmean(points):.1f}"
    if len(points) > 1:
        text += f" ± {50 * (max(points) - min(points)):.1f}"
    return f"{text} ({failed} failed)" if failed else text


def level_texts(panel: Panel) -> list[tuple[str, str]]:
    """What a panel's figures are to be held against, as (name, figure); the name is empty where the text is whole."""
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


def _interval(row: Row, key: str, stem: str, form: str, scale: float) -> str:
    lo, hi = row[f"{stem}_lo"], row[f"{stem}_hi"]
    text = _number(scale * row[key], form)
    return text if math.isnan(lo + hi) else f"{text} [{form.format(scale * lo)}, {form.format(scale * hi)}]"
