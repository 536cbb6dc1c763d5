"""How the figures of reports look, whatever the user's own style is.

with styled(): Figure().savefig(path, dpi=DPI)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib

# Text as outlines and a fixed salt give the same bytes each time and the same look everywhere.
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
INK = "#222222"
DPI = 150


@contextmanager
def styled(**changes: Any) -> Iterator[None]:
    """Draw and save within it. `changes`: matplotlib parameters that differ, such as `{"font.size": 9}`."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | changes)
        yield
