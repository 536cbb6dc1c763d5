"""The Pareto plot of a board: accuracy against FLOPs kept and measured speedup, a panel per scope and regime.

A board without accuracy (random weights) shows measured speedup against FLOPs kept.

    save(panels(board_frame(load("results/demo")[0])), Path("."))    # writes pareto.svg and pareto.png

In every panel the dense model is at the left and pruning moves to the right, so up and right are better. Strong lines
are the method under study and its best rivals: every method that leads the others at some budget. Only these have
their names beside them, where there is room. The legend names all.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from harness.records.comparison import regime_order
from harness.report.frame import TERMS
from harness.report.looks import STUDIED_COLOR, Look, curve_looks
from harness.report.panels import Panel, panels, values
from harness.report.style import INK, save_png, styled

FRONT = "#9c9c9c"
LONG = re.compile(r"\b\d+\.\d{3,}")  # five digits are finer than any screen
INDENT = re.compile(r"\n +")
SMALL_TEXT: Any = {"font.size": 8.5, "axes.titlesize": 9}

# Inches: the figure, and beside, above and below a panel. LETTER is the width of a letter, LINE the height of a line.
WIDTH, NARROW, HEIGHT = 12.0, 7.0, 2.0
LEFT, TITLE, FOOT, GAP, LETTER, LINE = 0.6, 0.2, 0.7, 0.15, 0.07, 0.195
GUTTER = 0.3  # share of a panel's width for names of curves
SMALL = 8  # points
KEY: Any = {"loc": "upper left", "borderpad": 0, "borderaxespad": 0, "labelspacing": 0.4, "handlelength": 3.2}
COLUMNS = 4  # panels beside each other
FEW = 6  # a panel with at most this many curves needs no emphasis


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its column, its label, and its sign: 1 if larger is better, else -1."""

    column: str
    label: str
    sign: int


AXES = (
    Axis("flops_kept", "FLOPs kept (fraction, reduction)", -1),
    Axis("latency_speedup", "measured speedup (factor)", 1),
)


@dataclass(frozen=True)
class Upright:
    """The vertical axis: its column, the ends of its interval, scale factor, label, minimal span and maximal end."""

    column: str
    interval: tuple[str, str]
    scale: float
    label: str
    span: float
    end: float


ACCURACY = Upright("accuracy", ("accuracy_lo", "accuracy_hi"), 100, "accuracy (points)", 10, 101)
SPEEDUP = Upright("latency_speedup", ("speedup_lo", "speedup_hi"), 1, "measured speedup (factor)", 0.5, math.inf)


@dataclass(frozen=True)
class Point:
    """A curve at one budget: means over seeds, and the hull of the seeds' intervals on the vertical axis."""

    x: float
    y: float
    low: float
    high: float


class Cell(NamedTuple):
    """A panel to draw over an axis, with the points of every curve, larger budgets first."""

    panel: Panel
    axis: Axis
    curves: dict[str, list[Point]]


class Picture(Figure):
    """A figure that a notebook shows by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


def draw(frame: pd.DataFrame) -> Picture:
    """The plot of a frame of one board, or of several, one below the other."""
    boards = list(dict.fromkeys(frame["board"]))
    rows = []
    for board in boards:
        part = frame.loc[frame["board"] == board]
        if TERMS in part and not part[TERMS].count():  # a column of another board only
            part = part.drop(columns=TERMS)
        name = f"{board}: " if len(boards) > 1 else ""
        rows += [replace(panel, title=name + panel.title) for panel in panels(part)]
    with styled(**SMALL_TEXT):
        return _draw(rows, curve_looks(rows))


def save(rows: Sequence[Panel], folder: Path) -> list[Path]:
    """Draw the panels of a board into `pareto.svg` and `pareto.png` in the folder.

    A point is the mean over seeds, a bar the hull of their 95 % intervals. Failed trials have no point.
    """
    paths = [folder / "pareto.svg", folder / "pareto.png"]
    with styled(**SMALL_TEXT):
        figure = _draw(rows, curve_looks(rows))
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        paths[0].write_text(_short(drawn.getvalue()), encoding="utf-8")
        save_png(figure, paths[1])
    return paths


def _short(svg: str) -> str:
    """The same picture in about five sixths of the bytes: fewer digits, shorter names of letters, no indentation."""
    svg = LONG.sub(lambda number: f"{float(number[0]):.5g}", svg)
    return INDENT.sub("\n", svg).replace("DejaVuSans-Bold-", "b").replace("DejaVuSans-", "d")


def _draw(rows: Sequence[Panel], looks: dict[str, Look]) -> Picture:
    up = ACCURACY if any(values(group, "accuracy") for panel in rows for group in panel.groups.values()) else SPEEDUP
    lines = _grid(rows, up)
    if not lines:
        figure = Picture(figsize=(WIDTH, 1.5))
        figure.text(0.5, 0.5, "no finished trial to draw", ha="center", va="center")
        return figure
    columns = max(map(len, lines))
    width = WIDTH if columns > 1 else NARROW
    pitch = (width - LEFT) / columns
    gutter = GUTTER * pitch
    letters = int((pitch - 0.1) / (1.1 * LETTER))  # in a line of a title, which is bold
    heads = [TITLE * max(_title(cell.panel, letters).count("\n") + 1 for cell in line if cell) for line in lines]
    axes = [[cell.axis if cell else None for cell in line] for line in lines]
    # Only the last of several lines with the same axes says what is on them.
    feet = [FOOT if own != below else GAP for own, below in zip(axes, [*axes[1:], None], strict=True)]
    keys = _keys(rows, up)
    drawn = {curve for line in lines for cell in line if cell for curve in cell.curves}
    names = [_key(look) for curve, look in looks.items() if curve in drawn]
    longest = max(len(str(key.get_label())) for key in names)
    counts = [min(len(keys), int(width / 2.3)), max(1, int(width / (0.6 + LETTER * longest)))]
    tops = [LINE * math.ceil(len(handles) / count) for handles, count in zip((keys, names), counts, strict=True)]
    height = sum(tops) + 2 * GAP + sum(heads) + sum(feet) + len(lines) * HEIGHT
    figure = Picture(figsize=(width, height))
    for handles, count, above in zip((keys, names), counts, (GAP / 2, GAP + tops[0]), strict=True):
        figure.legend(handles=handles, ncols=count, bbox_to_anchor=(0.2 / width, 1 - above / height), **KEY)
    bottom = height - sum(tops) - 2 * GAP
    ends = {axis: _ends(axis, lines) for axis in AXES}
    for line, head, foot in zip(lines, heads, feet, strict=True):
        bottom -= head + HEIGHT
        heights = _heights([cell for cell in line if cell], up)
        for column, cell in enumerate(line):
            if cell:
                left, wide = LEFT + column * pitch, pitch - gutter
                ax = figure.add_axes((left / width, bottom / height, wide / width, HEIGHT / height))
                ax.set_title(_title(cell.panel, letters))
                _scale(ax, cell.axis, ends[cell.axis], heights)
                _panel(ax, cell, up, looks)
                _names(ax, cell, up, looks, int((gutter - 0.2) / LETTER))
                below, first = foot == FOOT, cell is next(filter(None, line))
                ax.set(xlabel=cell.axis.label if below else "", ylabel=up.label if first else "")
                ax.tick_params(labelbottom=below, labelleft=first)
        bottom -= foot
    return figure


def _grid(rows: Sequence[Panel], up: Upright) -> list[list[Cell | None]]:
    """The lines of the figure: one per axis and scope, a column per regime. With one regime, a column per axis."""
    axes = [axis for axis in AXES if axis.column != up.column]
    cells = {
        (axis, *_place(panel)): Cell(panel, axis, curves)
        for panel in rows
        for axis in axes
        if (curves := _curves(panel, axis, up))
    }
    axes = [axis for axis in axes if any(axis is drawn for drawn, *_ in cells)]
    regimes = sorted({regime for *_, regime in cells}, key=regime_order)
    places = dict.fromkeys(place for _, place, _ in cells)
    lines: list[list[Cell | None]]
    if len(regimes) > 1:
        lines = [[cells.get((axis, place, regime)) for regime in regimes] for axis in axes for place in places]
    else:
        lines = [[cells.get((axis, place, regime)) for axis in axes for regime in regimes] for place in places]
    if max(map(len, lines), default=0) > COLUMNS:  # too many to align
        lines = [[cell for cell in line if cell] for line in lines]
    if all(len(line) == 1 for line in lines):
        lines = [[cell for line in lines for cell in line]]
    lines = [part for line in lines for part in _even(line)]
    return [line for line in lines if any(line)]


def _even(line: list[Cell | None]) -> list[list[Cell | None]]:
    """A line in parts of at most COLUMNS panels, as even as can be."""
    size = -(-len(line) // -(-len(line) // COLUMNS)) if line else 1
    return [line[start : start + size] for start in range(0, len(line), size)]


def _place(panel: Panel) -> tuple[tuple[str, ...], str]:
    """What a panel is of but its regime, and its regime."""
    row = next(iter(panel.groups.values()))[0]
    return (row["board"], row["setting"], row["scope"], row["units"], row.get(TERMS, "")), row["regime"]


def _curves(panel: Panel, axis: Axis, up: Upright) -> dict[str, list[Point]]:
    """The points of every curve. A trial needs both measurements to count."""
    curves: dict[str, list[Point]] = {}
    for (curve, _), rows in panel.groups.items():
        measured = [row for row in rows if not math.isnan(row[axis.column] + row[up.column])]
        if measured:
            x, y = (fmean(row[column] for row in measured) for column in (axis.column, up.column))
            low, high = (values(measured, up.column) + values(measured, end) for end in up.interval)
            point = Point(x, *(up.scale * value for value in (y, min(low), max(high))))
            curves.setdefault(curve, []).append(point)
    return curves


def _strong(cell: Cell, up: Upright) -> set[str]:
    """The curves to look at: the method under study, and every rival that is the best of the rivals at some budget."""
    if len(cell.curves) <= FEW:
        return set(cell.curves)
    best: dict[float, tuple[float, str]] = {}
    for (curve, budget), rows in cell.panel.groups.items():
        if curve not in cell.panel.studied and (measured := values(rows, up.column)):
            best[budget] = max(best.get(budget, (-math.inf, "")), (fmean(measured), curve))
    return set(cell.curves) & (cell.panel.studied | {curve for _, curve in best.values()})


def _panel(ax: Axes, cell: Cell, up: Upright, looks: dict[str, Look]) -> None:
    dense, blank = _level(cell.panel, up, up.column), _level(cell.panel, up, "blank_accuracy")
    points = [point for curve in cell.curves.values() for point in curve]
    if up is ACCURACY and any(len(curve) > 1 for curve in cell.curves.values()):  # else the steps look like a curve
        _front(ax, cell.axis, points, dense)
    if dense is not None:
        ax.axhline(dense, color=INK, linestyle="--", linewidth=1, zorder=2)
        ax.plot(1, dense, marker="o", color=INK, markersize=6, zorder=6, clip_on=False)
    if blank is not None:
        ax.axhline(blank, color=INK, linestyle=":", linewidth=1.3, zorder=2)
    strong = _strong(cell, up)
    for name, curve in cell.curves.items():
        look = looks[name]
        x, y = [point.x for point in curve], [point.y for point in curve]
        layer = {"zorder": 5 if look.studied else 4 if name in strong else 3, "alpha": 1 if name in strong else 0.4}
        # all bars of a curve as one line with gaps: an `errorbar` takes four times the bytes
        ends = [end for point in curve for end in (point.low, point.high, math.nan)]
        ax.plot(np.repeat(x, 3), ends, color=look.color, linewidth=1, solid_capstyle="butt", **layer)
        wide = 2.4 if look.studied and not look.variant else 1.6 if name in strong else 1
        ax.plot(x, y, **_line(look), linewidth=wide, markersize=6.5 if look.studied else 5, **layer)


def _line(look: Look) -> dict[str, Any]:
    edge = {"markerfacecolor": "white", "markeredgewidth": 1.2} if look.hollow else {"markeredgewidth": 0}
    dash: Any = (0, tuple(length / 2 for length in look.dash)) if look.dash else "-"
    return {"color": look.color, "marker": look.marker, "linestyle": dash, **edge}


def _heights(cells: Sequence[Cell], up: Upright) -> tuple[float, float]:
    """The vertical ends of panels that lie beside each other: the same, so that they can be compared."""
    levels = [_level(cell.panel, up, column) for cell in cells for column in (up.column, "blank_accuracy")]
    points = [point for cell in cells for curve in cell.curves.values() for point in curve]
    heights = [level for level in levels if level is not None] + [end for p in points for end in (p.low, p.high)]
    low, high = min(heights), max(heights)
    pad = max(0.06 * (high - low), (up.span - (high - low)) / 2)
    return low - pad, min(high + pad, up.end)


def _ends(axis: Axis, lines: Sequence[Sequence[Cell | None]]) -> tuple[float, float]:
    """The ends of an axis over all panels, from the left to the right."""
    curves = [curve for line in lines for c in line if c and c.axis is axis for curve in c.curves.values()]
    ends = [1.0, *(point.x for curve in curves for point in curve)]
    pad = 0.04 * max(max(ends) - min(ends), 0.1)
    low, high = min(ends) - pad, max(ends) + pad
    return (low, high) if axis.sign > 0 else (high, max(low, 0))


def _scale(ax: Axes, axis: Axis, ends: tuple[float, float], heights: tuple[float, float]) -> None:
    ax.set(xlim=ends, ylim=heights)
    if axis.sign > 0:
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter("{x:g}×")
    else:
        ax.xaxis.set_major_locator(MultipleLocator(0.2 if ends[1] < 0.7 else 0.1))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:.3g}\n{1 / x:.3g}×" if x > 0 else "0")


def _front(ax: Axes, axis: Axis, points: list[Point], dense: float | None) -> None:
    """The Pareto front of the panel's one regime as a staircase, and a pale area under it."""
    places = [(point.x, point.y) for point in points] + ([] if dense is None else [(1.0, dense)])
    front: list[tuple[float, float]] = []
    for x, y in sorted(places, key=lambda place: (axis.sign * place[0], place[1]), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    if front:
        x, y = zip(*front, strict=True)
        ax.plot(x, y, color=FRONT, linewidth=1.1, drawstyle="steps-post", zorder=1.5)
        ax.fill_between(x, y, ax.get_ylim()[0], step="post", color="#f7f7f7", linewidth=0, zorder=0)


def _names(ax: Axes, cell: Cell, up: Upright, looks: dict[str, Look], letters: int) -> None:
    """Write names beside the last points of strong curves, the studied first, where they fit and touch no other."""
    low, high = ax.get_ylim()
    wide = ax.bbox.width / ax.figure.dpi  # inches
    ends = {name: (cell.curves[name][-1].y - low) / (high - low) * HEIGHT for name in _strong(cell, up)}
    taken: list[tuple[float, float]] = []
    for name in sorted(ends, key=lambda name: (not looks[name].studied, -ends[name], name)):
        look = looks[name]
        text = textwrap.wrap(_safe(look.label), letters, break_long_words=False, break_on_hyphens=False)
        half = 0.075 * len(text)
        for nudge in (0, 0.09, -0.09, 0.18, -0.18):
            middle = ends[name] + nudge
            free = all(middle + half <= bottom or middle - half >= top for bottom, top in taken)
            if free and len(text) <= 2 and max(map(len, text)) <= letters and 0 <= middle <= HEIGHT:
                taken.append((middle - half, middle + half))
                where = {"transform": ax.transAxes, "clip_on": False}
                weight = "bold" if look.studied else "normal"
                line = _line(look) | {"linestyle": ""}
                ax.plot(1 + 0.09 / wide, middle / HEIGHT, markersize=5, **line, **where)
                style = {"va": "center", "fontsize": SMALL, "fontweight": weight, "linespacing": 1.0}
                ax.text(1 + 0.18 / wide, middle / HEIGHT, "\n".join(text), **style, **where)
                break


def _key(look: Look) -> Line2D:
    """A curve in the legend."""
    wide = 2.4 if look.studied and not look.variant else 1.6
    label = f" {_safe(look.label)}"  # matplotlib leaves out labels that begin with an underscore
    return Line2D([], [], **_line(look), linewidth=wide, markersize=6, label=label)


def _keys(rows: Sequence[Panel], up: Upright) -> list[Any]:
    """The legend of what is not a curve."""
    handles: list[Any] = []
    if up is ACCURACY:
        handles.append(Line2D([], [], color=FRONT, linewidth=1.6, label="Pareto front of the panel"))
    if any(panel.level(up.column) is not None for panel in rows):
        handles.append(Line2D([], [], color=INK, linestyle="--", marker="o", markersize=6, linewidth=1, label="dense"))
    if any(panel.level("blank_accuracy") is not None for panel in rows):
        handles.append(Line2D([], [], color=INK, linestyle=":", linewidth=1.3, label="blind floor (image blanked)"))
    handles.append(Line2D([], [], color="#777777", marker="|", markersize=10, linestyle="", label="95 % interval"))
    if any(panel.studied for panel in rows):
        handles.append(Line2D([], [], color=STUDIED_COLOR, linewidth=2.4, label="method under study"))
    return handles


def _title(panel: Panel, letters: int) -> str:
    return "\n".join(textwrap.wrap(_safe(panel.title), letters, break_on_hyphens=False)[:5])


def _safe(text: str) -> str:
    """Text of a record, restricted to characters that the font has."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _level(panel: Panel, up: Upright, column: str) -> float | None:
    return None if (level := panel.level(column)) is None else up.scale * level
