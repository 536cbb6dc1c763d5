"""A method looks the same on every board, no two methods look alike, and variants are told apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from harness import registry
from harness.report.looks import COLORS, DASHES, MARKERS, STUDIED_COLOR, looks

METHODS = [name for name in registry.methods() if name != "none"]
# What an eye without red or green cones sees of linear RGB (Machado, Oliveira and Fernandes 2009).
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def linear(color: str) -> np.ndarray:
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of linear RGB, in which a distance of 2 is just seen."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(np.array(matrix) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089], 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_method_has_a_look_of_its_own_and_only_studied_ones_are_vermilion() -> None:
    made = looks([(name, name, registry.method(name).role == "studied") for name in METHODS])
    styles = {name: (look.color, look.marker) for name, look in made.items()}
    assert len(set(styles.values())) == len(METHODS)
    for name, (color, _) in styles.items():
        assert (color == STUDIED_COLOR) == (registry.method(name).role == "studied"), name


def test_a_look_does_not_depend_on_the_board() -> None:
    every = [(name, name, name == "mine") for name in (*METHODS, "mine", "yours", "./folder/method.py")]
    together = looks(every)
    for entry in every:
        alone = looks([entry])[entry[0]]
        assert (alone.color, alone.marker) == (together[entry[0]].color, together[entry[0]].marker)
    assert together["mine"].color == STUDIED_COLOR


def test_methods_without_an_entry_share_a_look_with_none() -> None:
    rivals = [name for name in METHODS if registry.method(name).role != "studied"]
    free = (len(COLORS) - 1) * (len(MARKERS) - 1) - len(rivals)  # vermilion and circles are the studied methods'
    names = [*METHODS, *(f"new{i}" for i in range(free))]
    made = looks([(name, name, False) for name in names])
    assert len({(look.color, look.marker) for look in made.values()}) == len(names)
    assert {look.marker for look in made.values()} <= set(MARKERS)


def test_variants_differ_in_dash_or_filling_and_their_labels_drop_what_they_share() -> None:
    said = ["", " arm=factor", " arm=factor,whiten=False", " beta=0.0"]
    curves = [f"infoprune{variant} samples=256 split=dev" for variant in said]
    made = looks([*((curve, "infoprune", True) for curve in curves), ("taylor norm=l1", "taylor", False)])
    assert [made[curve].label for curve in curves] == [
        "infoprune", "infoprune arm=factor", "infoprune arm=factor whiten=False", "infoprune beta=0.0",
    ]  # fmt: skip
    assert made["taylor norm=l1"].label == "taylor norm=l1", "a single curve keeps its settings"
    assert len({(made[curve].color, made[curve].marker) for curve in curves}) == 1
    assert len({(made[curve].dash, made[curve].hollow) for curve in curves}) == len(curves)
    assert not made[curves[0]].dash and not made[curves[0]].hollow


def test_long_labels_stay_apart() -> None:
    long = "x" * 80
    ends = [f"m {long}{end}" for end in ("a", "b")] + [f"m {end}{long}" for end in ("a", "b")]
    ends += [f"m {long}{end}{long}" for end in ("a", "b", "c")]
    labels = [look.label for look in looks([(curve, "m", False) for curve in ends]).values()]
    assert len(set(labels)) == len(labels) and max(map(len, labels)) < 70


@pytest.mark.parametrize("eye", BLIND)
def test_colours_are_apart_for_the_colour_blind(eye: str) -> None:
    seen = {name: lab(np.array(BLIND[eye]) @ linear(color)) for name, color in COLORS.items()}
    for (first, one), (second, other) in combinations(seen.items(), 2):
        assert np.linalg.norm(one - other) > 15, (first, second)


@pytest.mark.parametrize("paper", ["#ffffff", "#14171a"])
def test_colours_are_seen_on_white_and_on_a_dark_page(paper: str) -> None:
    def luminance(color: str) -> float:
        return float(linear(color) @ [0.2126, 0.7152, 0.0722]) + 0.05

    for name, color in COLORS.items():
        low, high = sorted((luminance(color), luminance(paper)))
        assert high / low > 2, name
    assert len(set(DASHES)) == len(DASHES)
