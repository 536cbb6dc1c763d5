"""The tables of a board in Markdown.

summary(panels(board_frame(harness.records.record.load("results/demo")[0]))[0])
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

from harness.report.coarse import KEEPS
from harness.report.frame import ORDER, TASKS, TERMS, Row, declared, task_columns
from harness.report.panels import NOTHING, Panel, level_texts, marked, standings
from harness.text import TOO_FEW, plain, shorten

REST = "<rest>"  # place of columns that ORDER does not name
# The order of the figures in the table of trials.
SHOWN = (
    *("flops_kept", "total_flops_kept", "params_kept", "latency_speedup"),
    *(REST, "accuracy", TASKS, "gain_over_blind", "flips"),
)

CURRENCIES = {"flops": "FLOPs", "params": "parameters", "latency": "time"}  # the quantity that a budget is a share of


@dataclass(frozen=True)
class ShownColumn:
    """A column of the table of all trials: its head, its key in the frame, and its cells as text."""

    head: str
    key: str
    text: bool  # free text; else a number or an interval
    cells: list[str]


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
    table = markdown([escape(column.head) for column in shown], list(zip(*cells, strict=True)))
    return re.sub(" {2,}", " ", table)  # aligned, a long table is twice as large


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


def escape(text: object) -> str:
    """Text of a record as literal Markdown: no markup, no HTML, no new cell, no new line."""
    safe = plain(str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", safe)


# --- cells --------------------------------------------------------------------------------------------------


def _number(value: float, form: str) -> str:
    return NOTHING if math.isnan(value) else form.format(value)


def _interval(row: Row, key: str, bounds: tuple[str, str], form: str, scale: float) -> str:
    lo, hi = (row.get(bound, math.nan) for bound in bounds)  # a board that measured none has no such columns
    text = _number(scale * row[key], form)
    if math.isnan(lo + hi):
        return f"{text} ({TOO_FEW})" if key == "accuracy" and text != NOTHING else text
    return f"{text} [{form.format(scale * lo)}, {form.format(scale * hi)}]"
