"""The trials of a board that compete, and how they stand.

panels(board_frame(harness.records.record.load("results/demo")[0]))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import pandas as pd

from harness.records.comparison import common
from harness.report.coarse import KEEPS, competing
from harness.report.frame import TERMS, Row
from harness.types import DENSE
from harness.types.kinds import in_words

STUDIED_SIGN = "◆"
NOTHING = "–"


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
        if row["method"] == DENSE:
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


def marked(name: str, studied: bool) -> str:
    """A method's or curve's name, with the mark of the method under study."""
    return f"{STUDIED_SIGN} {name}" if studied else name


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
