"""The Pareto plot of a board: accuracy over FLOPs kept and over measured speedup, a row of panels for every scope.

A board without accuracy (random weights) shows its measured speedup over FLOPs kept.

    python -c "from pathlib import Path; from harness.record import load; from harness.report import plots, tables; \
               plots.save(tables.board_frame(load('results/demo')[0]), Path('.'))"

In both columns the dense model stands at the left and pruning goes to the right, so up and right is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.optimize import isotonic_regression

from harness.report.tables import Panel, panels, values
from harness.text import shorten

# Text as outlines and a fixed salt: the picture is the same bytes each time and looks the same everywhere.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#777777",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "infoprune-bench",
    "text.parse_math": False,
}
# Okabe and Ito's palette, safe for colour-blind eyes; vermilion is kept for the studied method.
STUDIED = "#D55E00"
PALETTE = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A7A7A")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)))
INK, FRONT = "#222222", "#9c9c9c"
FACTORS = (1, 1.25, 1.6, 2, 3.2, 5, 10)

# Inches.
WIDTH, LEFT, BETWEEN = 12.0, 0.75, 0.75
HEIGHT, NAME, HEAD, ROW_HEAD, FOOT = 3.5, 0.24, 0.3, 0.85, 0.65
DPI = 150


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its column, its name, and the sign that makes more of it better."""

    column: str
    label: str
    sign: int


AXES = (
    Axis("flops_kept", "FLOPs kept in the scope (fraction)", -1),
    Axis("latency_speedup", "measured speedup of the scope (factor)", 1),
)


@dataclass(frozen=True)
class Upright:
    """The vertical axis: its column, its factor, its name, and the least span and greatest end shown."""

    column: str
    scale: float
    label: str
    span: float
    end: float


ACCURACY = Upright("accuracy", 100, "accuracy (points, mean over tasks)", 10, 101)
SPEEDUP = Upright("latency_speedup", 1, "measured speedup of the scope (factor)", 0.5, math.inf)


@dataclass(frozen=True)
class Point:
    """A method at one budget: mean over seeds, and the least and greatest of the vertical axis."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Look:
    """How a curve is drawn, the same in every panel."""

    color: str
    marker: str
    dash: Any
    studied: bool


def save(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw a board's frame into `pareto.svg` and `pareto.png` in the folder.

    A point is the mean over seeds, a band their least and greatest; failed trials have no point.
    """
    paths = [folder / "pareto.svg", folder / "pareto.png"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own style is
        matplotlib.rcParams.update(STYLE)
        rows = panels(frame)
        figure = _draw(rows, curve_looks(rows))
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], dpi=DPI, metadata={"Software": None})
    return paths


def _draw(rows: Sequence[Panel], looks: dict[str, Look]) -> Figure:
    accurate = any(_curves(panel, AXES[0], ACCURACY) for panel in rows)
    up = ACCURACY if accurate else SPEEDUP
    axes = [axis for axis in AXES if axis.column != up.column and any(_curves(panel, axis, up) for panel in rows)]
    if not axes:
        figure = Figure(figsize=(WIDTH, 1.5))
        figure.text(0.5, 0.5, "no finished trial to draw", ha="center", va="center")
        return figure
    gutter = 0.5 + 0.085 * max(len(_label(curve)) for curve in looks)
    tall = max(HEIGHT, NAME * len(looks))
    height = HEAD + len(rows) * (ROW_HEAD + tall + FOOT)
    width = (WIDTH - LEFT - (len(axes) - 1) * BETWEEN) / len(axes) - gutter
    figure = Figure(figsize=(WIDTH, height))
    for row, panel in enumerate(rows):
        bottom = height - HEAD - (row + 1) * (ROW_HEAD + tall) - row * FOOT
        for column, axis in enumerate(axes):
            left = LEFT + column * (width + gutter + BETWEEN)
            box = (left / WIDTH, bottom / height, width / WIDTH, tall / height)
            ax = figure.add_axes(box)
            _panel(ax, panel, axis, up, looks)
            if column == 0:
                ax.set_title(_safe(panel.title, 110), pad=34 if axis.sign < 0 else 8)
    _legend(figure, rows, up, height)
    return figure


def _panel(ax: Axes, panel: Panel, axis: Axis, up: Upright, looks: dict[str, Look]) -> None:
    dense, blank = _level(panel, up, up.column), _level(panel, up, "blank_accuracy")
    curves = _curves(panel, axis, up)
    points = [point for curve in curves.values() for point in curve]
    _limits(ax, axis, up, points, [level for level in (dense, blank) if level is not None])
    if up is ACCURACY:
        _front(ax, axis, points, dense)
    if dense is not None:
        ax.axhline(dense, color=INK, linestyle="--", linewidth=1.2, zorder=2)
        ax.plot(1, dense, marker="o", color=INK, markersize=8, zorder=6, clip_on=False)
    if blank is not None:
        ax.axhline(blank, color=INK, linestyle=":", linewidth=1.6, zorder=2)
    for name, curve in curves.items():
        look = looks[name]
        x = [point.x for point in curve]
        low, high = [point.low for point in curve], [point.high for point in curve]
        if low != high:
            ax.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0, zorder=3)
        ax.plot(
            x,
            [point.y for point in curve],
            color=look.color,
            linestyle=look.dash,
            linewidth=3 if look.studied else 1.7,
            marker=look.marker,
            markersize=8.5 if look.studied else 6.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=5 if look.studied else 4,
        )
    _names(ax, {name: curve[-1] for name, curve in curves.items()}, looks)


def _curves(panel: Panel, axis: Axis, up: Upright) -> dict[str, list[Point]]:
    """The points of every curve, larger budgets first; a trial without both measurements has none."""
    curves: dict[str, list[Point]] = {}
    for (curve, _), rows in panel.groups.items():
        pairs = [(row[axis.column], up.scale * row[up.column]) for row in rows]
        pairs = [pair for pair in pairs if not math.isnan(sum(pair))]
        if pairs:
            x, y = zip(*pairs, strict=True)
            curves.setdefault(curve, []).append(Point(fmean(x), fmean(y), min(y), max(y)))
    return curves


def _limits(ax: Axes, axis: Axis, up: Upright, points: list[Point], levels: list[float]) -> None:
    heights = [height for point in points for height in (point.low, point.high)] + levels
    low, high = min(heights, default=0.0), max(heights, default=up.scale)
    pad = max(0.06 * (high - low), (up.span - (high - low)) / 2)
    ax.set_ylim(low - pad, min(high + pad, up.end))
    ax.set_ylabel(up.label)
    ax.set_xlabel(axis.label)
    ends = [1.0, *(point.x for point in points)]
    pad = 0.03 * max(max(ends) - min(ends), 0.1)
    low, high = min(ends) - pad, max(ends) + pad
    if axis.sign > 0:
        ax.set_xlim(low, high)
        ax.xaxis.set_major_formatter("{x:g}×")
        return
    ax.set_xlim(high, max(low, 0))
    top = ax.secondary_xaxis("top")
    factors = [factor for factor in FACTORS if 1 / factor >= low]
    top.set_xticks([1 / factor for factor in factors], [f"{factor:g}×" for factor in factors], fontsize=9.5)
    top.set_xlabel("FLOPs reduction (factor)", fontsize=9.5)


def _front(ax: Axes, axis: Axis, points: list[Point], dense: float | None) -> None:
    """The staircase that nothing on the board lies beyond, and a pale floor under what it dominates."""
    places = [(point.x, point.y) for point in points] + ([] if dense is None else [(1.0, dense)])
    front: list[tuple[float, float]] = []
    for x, y in sorted(places, key=lambda place: (axis.sign * place[0], place[1]), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    if front:
        x, y = zip(*front, strict=True)
        ax.plot(x, y, color=FRONT, linewidth=1.3, drawstyle="steps-post", zorder=1.5)
        ax.fill_between(x, y, ax.get_ylim()[0], step="post", color="#f7f7f7", linewidth=0, zorder=0)


def _names(ax: Axes, ends: dict[str, Point], looks: dict[str, Look]) -> None:
    """Name the curves at the right edge, as near to the height of their last points as they can stand apart."""
    if not ends:
        return
    low, high = ax.get_ylim()
    width, tall = ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi  # inches
    names = sorted(ends, key=lambda name: (ends[name].y, name))
    gap = NAME / tall
    steps = gap * np.arange(len(names))
    heights = np.array([(ends[name].y - low) / (high - low) for name in names])
    places = np.clip(isotonic_regression(heights - steps).x, gap / 2, 1 - gap / 2 - steps[-1]) + steps
    for name, place in zip(names, places, strict=True):
        look, end = looks[name], (ends[name].x, ends[name].y)
        mark, text = 1 + 0.22 / width, 1 + 0.34 / width
        line = {"arrowstyle": "-", "color": look.color, "alpha": 0.45, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        where = {"xycoords": "data", "textcoords": "axes fraction", "annotation_clip": False}
        ax.annotate("", xy=end, xytext=(mark, float(place)), arrowprops=line, **where)
        ax.plot(mark, place, look.marker, color=look.color, markersize=6, transform=ax.transAxes, clip_on=False)
        weight = "bold" if look.studied else "normal"
        ax.text(text, place, _label(name), transform=ax.transAxes, va="center", color=look.color, fontweight=weight)


def _legend(figure: Figure, rows: Sequence[Panel], up: Upright, height: float) -> None:
    handles: list[Any] = []
    if up is ACCURACY:
        handles.append(Line2D([], [], color=FRONT, linewidth=1.6, label="Pareto front"))
    if any(panel.level(up.column) is not None for panel in rows):
        handles.append(
            Line2D([], [], color=INK, linestyle="--", marker="o", markersize=7, linewidth=1.2, label="dense")
        )
    if any(panel.level("blank_accuracy") is not None for panel in rows):
        handles.append(Line2D([], [], color=INK, linestyle=":", linewidth=1.6, label="blind floor (image blanked)"))
    if any(len(values(group, up.column)) > 1 for panel in rows for group in panel.groups.values()):
        handles.append(Patch(color="#999999", alpha=0.35, label="least to greatest over seeds"))
    if any(panel.studied for panel in rows):
        handles.append(Line2D([], [], color=STUDIED, linewidth=3, marker="o", markersize=8, label="method under study"))
    place = (LEFT / WIDTH, 1 - 0.05 / height)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, ncols=len(handles), borderpad=0, borderaxespad=0
    )


def curve_looks(rows: Sequence[Panel]) -> dict[str, Look]:
    """A look for every curve of the board, by name, so that it is the same in every panel."""
    studied = sorted({curve for panel in rows for curve in panel.studied})
    others = sorted({curve for panel in rows for curve, _ in panel.groups} - set(studied))
    looks = {name: Look(STUDIED, "o", DASHES[i % len(DASHES)], True) for i, name in enumerate(studied)}
    for i, name in enumerate(others):
        dash = DASHES[i // len(PALETTE) % len(DASHES)]
        looks[name] = Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], dash, False)
    return looks


def _label(curve: str) -> str:
    return _safe(curve, 24)


def _safe(text: str, limit: int) -> str:
    """Text of a record with only the characters that the font is sure to have."""
    return shorten(text.encode("latin-1", "replace").decode("latin-1"), limit, "...")


def _level(panel: Panel, up: Upright, column: str) -> float | None:
    level = panel.level(column)
    return None if level is None else up.scale * level
