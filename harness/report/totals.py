"""Summary figures of a method's curve: hypervolume, area under the curve, mean rank, and costs.

    python -c "from pathlib import Path; from harness.records.record import load; \
               from harness.report import totals; from harness.report.samples import Samples; \
               from harness.report.frame import board_frame; from harness.report.panels import panels; \
               records = load('results/demo')[0]; \
               print(totals.find(panels(board_frame(records)), Samples(Path('results/demo')), records))"

The hypervolume's interval is a bootstrap over images of the stored scores. Scores of several seeds are averaged first,
so the interval holds only for these seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from harness.records.comparison import common
from harness.records.record import Cost, Record
from harness.report.coarse import KEEPS
from harness.report.panels import NOTHING, Panel, places, ranked, values
from harness.report.samples import Answers, Questions, Samples
from harness.stats.hypervolume import hypervolume, hypervolume_intervals

RESAMPLES = 2000
HEADS = (
    "hypervolume",
    "area under the curve",
    "mean rank",
    "ranking s",
    "tuning s",
    "samples",
    "peak memory GB",
)
LEGEND = (
    "The second table has each curve as a whole. Hypervolume: the area between the front of (FLOPs kept, accuracy) "
    "and the corner of all FLOPs and the blind floor (0 where that was not measured), times 100, with its 95 % "
    "interval from a bootstrap over images (seeds averaged first). Area under the curve: accuracy in points, averaged "
    "over the range of budgets. Hypervolume, area and the mean of the ranks are given only where every budget was "
    "measured. Ranking, tuning: seconds, medians over the trials; one ranking serves all budgets, or one where a "
    "method ranks for each, and the passes over the calibration set that it uses count in full (in records of "
    "versions that did not bill them, a pass counts for the method that asked for it first). Samples: drawn for "
    "calibration, whether or not a method looks at them. Peak memory: the largest of the trials' figures, of ranking, "
    "cutting and tuning, the model included (in records of versions that did not tell trials apart, of all that their "
    "process had run)."
)


@dataclass(frozen=True)
class Total:
    """The summary of one curve of a panel. None: not measured, or not at every budget of the panel.

    hypervolume: area between the (FLOPs kept, accuracy) front and the corner of the whole scope and the blind floor (0
    if that was not measured), both fractions; lo, hi: its interval. area: mean accuracy over the range of budgets, a
    fraction (trapezoids). ranking_s, tuning_s: medians over the trials. drawn (calibration samples), memory_bytes:
    maxima over the trials.
    """

    curve: str
    hypervolume: float | None
    lo: float | None
    hi: float | None
    area: float | None
    rank: float | None
    ranking_s: float | None
    tuning_s: float | None
    drawn: float | None
    memory_bytes: float | None


def find(panels: Sequence[Panel], samples: Samples, records: Sequence[Record]) -> list[list[Total]]:
    """The totals of every panel's curves, in the order of the panel's table."""
    known = {record.id: record for record in records}
    return [_panel(panel, samples, known) for panel in panels]


def cells(total: Total) -> list[str]:
    """The cells of a total under HEADS, with accuracies in points."""
    volume = _text(total.hypervolume, "{:.1f}", 100)
    if total.lo is not None and total.hi is not None:
        volume += f" [{100 * total.lo:.1f}, {100 * total.hi:.1f}]"
    return [
        volume,
        _text(total.area, "{:.1f}", 100),
        _text(total.rank, "{:.1f}"),
        _text(total.ranking_s, "{:.3g}"),
        _text(total.tuning_s, "{:.3g}"),
        _text(total.drawn, "{:g}"),
        _text(total.memory_bytes, "{:.2f}", 1e-9),
    ]


def shown(totals: Sequence[Total]) -> tuple[list[str], dict[str, list[str]]]:
    """The heads of non-empty columns, and each curve's cells in them."""
    rows = {total.curve: cells(total) for total in totals}
    filled = [place for place in range(len(HEADS)) if any(row[place] != NOTHING for row in rows.values())]
    return [HEADS[place] for place in filled], {curve: [row[place] for place in filled] for curve, row in rows.items()}


def _text(value: float | None, form: str, scale: float = 1) -> str:
    return NOTHING if value is None else form.format(scale * value)


def _panel(panel: Panel, samples: Samples, records: Mapping[str, Record]) -> list[Total]:
    budgets, standing = common(panel.groups), places(panel)
    curves = dict.fromkeys(curve for curve, _ in panel.groups)
    ranks = {
        curve: [place for (name, at), place in standing.items() if name == curve and at in budgets] for curve in curves
    }
    complete = [curve for curve in curves if len(ranks[curve]) == len(budgets)]
    floor = (1.0, panel.level("blank_accuracy") or 0.0)
    fronts = {curve: _front(panel, curve, budgets) for curve in complete}
    intervals = _intervals(panel, fronts, budgets, floor, samples, records)
    totals = []
    for curve in ranked(panel, standing):
        rows = [row for (name, _), group in panel.groups.items() if name == curve for row in group]
        costs = [records[row["trial"]].cost for row in rows if row["status"] == "ok"]
        volume = area = None
        if curve in fronts:
            flops, accuracy = fronts[curve]
            volume = float(hypervolume(flops, accuracy, floor))
            area = _area(budgets, accuracy) if len(budgets) > 1 and not any(row.get(KEEPS) for row in rows) else None
        lo, hi = intervals.get(curve, (None, None))
        rank = fmean(ranks[curve]) if curve in complete else None
        ranking, tuning = (_middle(costs, key) for key in ("ranking_s", "tuning_s"))
        drawn, memory = (_largest(costs, key) for key in ("calibration_samples", "peak_memory_bytes"))
        totals.append(Total(curve, volume, lo, hi, area, rank, ranking, tuning, drawn, memory))
    return totals


def _front(panel: Panel, curve: str, budgets: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs kept and accuracy at these budgets, means over seeds. Without a FLOP count, the budget replaces it."""
    groups = [panel.groups[curve, budget] for budget in budgets]
    flops = [fmean(values(group, "flops_kept") or [budget]) for group, budget in zip(groups, budgets, strict=True)]
    return np.array(flops), np.array([fmean(values(group, "accuracy")) for group in groups])


def _area(budgets: Sequence[float], accuracy: np.ndarray) -> float:
    return float(np.trapezoid(accuracy, budgets) / (budgets[-1] - budgets[0]))


def _middle(costs: Sequence[Cost], name: str) -> float | None:
    known = [value for cost in costs if (value := getattr(cost, name)) is not None]
    return median(known) if known else None


def _largest(costs: Sequence[Cost], name: str) -> Any:
    return max((value for cost in costs if (value := getattr(cost, name))), default=None)


# --- the interval -------------------------------------------------------------------------------------------


def _intervals(
    panel: Panel,
    fronts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    budgets: Sequence[float],
    floor: tuple[float, float],
    samples: Samples,
    records: Mapping[str, Record],
) -> dict[str, tuple[float, float]]:
    """The intervals of all fronts whose trials have samples of the same questions, from one common bootstrap."""
    reference: Questions | None = None
    columns: dict[str, list[np.ndarray]] = {}
    for curve in fronts:
        budget_scores = []
        for budget in budgets:
            trials = [row["trial"] for row in panel.groups[curve, budget] if not math.isnan(row["accuracy"])]
            scores = []
            for trial in trials:
                answers = _read(samples, records[trial], reference)
                if answers is not None:
                    reference = answers.questions
                    scores.append(answers.score)
            if len(scores) < len(trials):
                break
            budget_scores.append(np.mean(scores, axis=0))
        else:
            columns[curve] = budget_scores
    if reference is None or not columns:
        return {}
    table = np.column_stack([column for budget_scores in columns.values() for column in budget_scores])
    strata = [task for task, _, _ in reference.rows]
    images = [(task, image) for task, _, image in reference.rows]
    points = [fronts[curve][0] for curve in columns]
    volumes = hypervolume_intervals(points, table, images, strata, floor, resamples=RESAMPLES)
    return {
        curve: (volume.lo, volume.hi)
        for curve, volume in zip(columns, volumes, strict=True)
        if math.isfinite(volume.lo) and math.isfinite(volume.hi)
    }


def _read(samples: Samples, record: Record, reference: Questions | None) -> Answers | None:
    """The samples of a trial; None if they are unusable or answer other questions."""
    answers = samples.read(record)
    if answers is not None and not np.isfinite(answers.scores).all():
        samples.leave_out(record, "a score is not finite")
    elif answers is not None and reference not in (None, answers.questions):
        samples.leave_out(record, "asks other questions than trials of the same panel")
    else:
        return answers
    return None
