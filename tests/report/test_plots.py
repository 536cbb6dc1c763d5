"""The static plot: a panel and a front per regime, intervals, names where they fit, points that are no curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color
from PIL import Image

from harness.records.record import Record
from harness.report.frame import board_frame
from harness.report.panels import panels
from harness.report.plots import FRONT, Picture, draw, save
from tests.support.records import board_record


def figures(kept: float, accuracy: float) -> dict[str, Any]:
    return {
        "flops": {"kept": kept},
        "accuracy": {"mean": accuracy, "lo": accuracy - 0.05, "hi": accuracy + 0.04},
    }


def drawn(*items: Record) -> Picture:
    return draw(board_frame([board_record(metrics=figures(1.0, 0.95)), *items]))


def title(ax: Any) -> str:
    return ax.get_title(loc="left").replace("\n", " ")


def staircase(ax: Any) -> list[float]:
    lines = [line for line in ax.lines if same_color(line.get_color(), FRONT)]
    return sorted(float(y) for line in lines for y in line.get_ydata())


def test_every_regime_has_a_panel_and_a_front_of_its_own() -> None:
    refit: dict[str, Any] = {"recovery": {"method": "refit"}}
    items = []
    for scope in ("vision", "all"):
        for budget, accuracy in ((0.5, 0.6), (0.25, 0.5)):
            items.append(board_record("taylor", scope, budget, metrics=figures(budget, accuracy)))
            items.append(board_record("taylor", scope, budget, metrics=figures(budget, accuracy + 0.3), **refit))
    figure = drawn(*items)
    fronts = {title(ax): staircase(ax) for ax in figure.axes}
    assert fronts == {
        f"Scope {scope}, heads and FFN, regime {regime}": pytest.approx(steps)
        for scope in ("vision", "all")
        for regime, steps in (("none", [50, 60, 95]), ("refit", [80, 90, 95]))
    }
    places = [ax.get_position() for ax in figure.axes]
    assert places[0].y0 == places[1].y0 and places[0].x0 == places[2].x0, "a line per scope, a column per regime"


def test_an_interval_is_a_bar() -> None:
    (ax,) = drawn(*(board_record("taylor", "vision", 0.5, seed, metrics=figures(0.5, 0.6)) for seed in (0, 1))).axes
    bars = [np.asarray(line.get_ydata(), float) for line in ax.lines if np.isnan(line.get_ydata()).any()]
    assert bars == [pytest.approx([55, 64, math.nan], nan_ok=True)]


def test_many_panels_have_common_axes_and_a_picture_of_a_size_to_look_at(tmp_path: Path) -> None:
    """Three scopes, four regimes, two axes: four beside each other, named at the left and below only."""
    ways: list[dict[str, Any]] = [
        {}, {"recovery": {"method": "bias"}}, {"recovery": {"method": "refit"}}, {"regime": "trained"},
    ]  # fmt: skip
    items = [board_record()]
    for scope in ("vision", "language", "all"):
        for way in ways:
            items += [board_record("taylor", scope, budget, **way) for budget in (0.75, 0.5, 0.25)]
    board = panels(board_frame(items))
    figure = draw(board_frame(items))
    lines: dict[float, list[Any]] = {}
    for ax in figure.axes:
        lines.setdefault(ax.get_position().y0, []).append(ax)
    assert [len(line) for line in lines.values()] == [4] * 6
    for line in lines.values():
        assert len({ax.get_ylim() for ax in line}) == 1 and [bool(ax.get_ylabel()) for ax in line] == [
            True,
            *[False] * 3,
        ]
    for half in (list(lines.values())[:3], list(lines.values())[3:]):
        assert len({ax.get_xlim() for line in half for ax in line}) == 1
        assert [{bool(ax.get_xlabel()) for ax in line} for line in half] == [{False}, {False}, {True}]
    _, path = save(board, tmp_path)
    with Image.open(path) as picture:
        assert picture.mode == "P" and picture.width == 1800 and picture.height < 3000


def test_single_points_do_not_look_like_curves() -> None:
    methods = ("taylor", "random", "infoprune", "wanda")
    items = [board_record(name, "vision", 0.5, metrics=figures(0.5, 0.5 + i / 50)) for i, name in enumerate(methods)]
    (ax,) = drawn(*items).axes
    assert not staircase(ax) and not ax.patches
    for line in ax.lines:
        points = np.asarray(line.get_xydata())
        bar = bool(np.isnan(points[:, 1]).any()) and len(set(points[:, 0])) == 1
        assert len(points) == 1 or bar or line.get_linestyle() == "--", "points, intervals, and the dense model's line"
    assert "infoprune" in [text.get_text() for text in ax.texts]


def test_names_beside_curves_fit_and_the_legend_has_them_all() -> None:
    """Of 20 methods, the one under study and the best of the others have their names beside them."""
    items = []
    for i in range(20):
        name = "infoprune" if i == 3 else f"method{i:02d}"
        items += [board_record(name, "vision", b, metrics=figures(b, 0.9 - i / 50 - (1 - b) / 9)) for b in (0.5, 0.3)]
    variant = {"variant": "a-very-long-option=with-a-long-value", "options": {"x": 1}}
    items.append(board_record("infoprune", "vision", 0.3, metrics=figures(0.3, 0.3), **variant))
    figure = drawn(*items)
    figure.canvas.draw()
    (ax,) = figure.axes
    assert {text.get_text() for text in ax.texts} == {"infoprune", "method00"}, "a long name is left to the legend"
    for text in ax.texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1
    said = [text.get_text().strip() for text in figure.legends[1].get_texts()]
    assert len(said) == 21 and said[:2] == ["infoprune", "infoprune a-very-long-option=with-a-long-value"]
    panel = ax.get_window_extent()
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.y0 > panel.y1 and box.x1 <= figure.bbox.x1, "the legend is above the panels"
