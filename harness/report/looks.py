"""The look of every curve: a colour and a marker per method, a dash and a label per variant.

python -c "from harness.report.looks import looks; print(looks([('taylor', 'taylor', False)]))"

A method keeps its colour and marker on every board, so that readers learn them once. Those of the built-in methods are
in `looks.yaml`, beside their files.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import product

import yaml

from harness import registry
from harness.report.panels import Panel

# Okabe and Ito's palette for colour-blind readers, without yellow and black, which a white or a dark page hides.
STUDIED_COLOR = "#D55E00"
COLORS = {
    "vermilion": STUDIED_COLOR,
    "blue": "#0072B2",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "grey": "#666666",
}
# Matplotlib's markers and chart.js's names for them. The circle is for the method under study and the dense model.
MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "<": "triangle-left",
    ">": "triangle-right",
}
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (2, 2), (8, 3, 2, 3), (12, 4))  # on, off, in pixels
LONGEST = 64  # characters of a label


@dataclass(frozen=True)
class Look:
    """The look of a curve, the same in every panel."""

    color: str
    marker: str
    variant: int  # 0: the method's first curve on the board
    studied: bool
    label: str

    @property
    def dash(self) -> tuple[float, ...]:
        return DASHES[self.variant % len(DASHES)]

    @property
    def hollow(self) -> bool:
        """Every second variant has hollow markers, because a single point has no dash."""
        return self.variant % 2 == 1


def curve_looks(panels: Sequence[Panel]) -> dict[str, Look]:
    """The look of every curve of a board, by the curve's name."""
    studied = {curve for panel in panels for curve in panel.studied}
    firsts = [rows[0] for panel in panels for rows in panel.groups.values()]
    return looks([(row["curve"], row["method"], row["curve"] in studied) for row in firsts])


def looks(curves: Sequence[tuple[str, str, bool]]) -> dict[str, Look]:
    """Looks for these (curve, method, whether it is under study), studied curves first, then by name."""
    curves = sorted(set(curves), key=lambda entry: (not entry[2], entry[1], len(entry[0]), entry[0]))
    styles = _styles({method: studied for _, method, studied in curves})
    labels = _labels([(curve, method) for curve, method, _ in curves])
    seen: Counter[str] = Counter()
    result = {}
    for curve, method, studied in curves:
        result[curve] = Look(*styles[method], seen[method], studied, labels[curve])
        seen[method] += 1
    return result


def _styles(methods: dict[str, bool]) -> dict[str, tuple[str, str]]:
    """The colour and marker of each method. A method without an entry gets a free pair that its name chooses."""
    table = _table()
    taken = set(table.values())
    styles = {}
    for method, studied in sorted(methods.items()):
        if method not in table:
            names = ["vermilion"] if studied else [name for name in COLORS if name != "vermilion"]
            pairs = list(product(names, [marker for marker in MARKERS if marker != "o"]))
            start = int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
            turns = [pairs[(start + turn) % len(pairs)] for turn in range(len(pairs))]
            pair = next((pair for pair in turns if pair not in taken), turns[0])
            taken.add(pair)
        else:
            pair = table[method]
        styles[method] = (COLORS[pair[0]], pair[1])
    return styles


@cache
def _table() -> dict[str, tuple[str, str]]:
    text = (resources.files(registry.BUILT_IN) / "looks.yaml").read_text(encoding="utf-8")
    return {method: (color, marker) for method, (color, marker) in yaml.safe_load(text).items()}


def _labels(curves: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A short, unique label per curve: without the settings that all curves of its method share."""
    parts = {curve: re.split(r"[ ,]", curve.removeprefix(method).strip()) for curve, method in curves}
    labels: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for curve, method in curves:
        others = [parts[other] for other, its in curves if its == method]
        shared = set.intersection(*map(set, others)) if len(others) > 1 else set()
        label = _cut(" ".join([method, *(part for part in parts[curve] if part and part not in shared)]))
        numbers[label] += 1
        labels[curve] = f"{label} ({numbers[label]})" if numbers[label] > 1 else label
    return labels


def _cut(text: str) -> str:
    """At most LONGEST characters, cut in the middle: names differ at their ends."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 2]}...{text[1 - half :]}"
