"""How the figures of reports look, whatever the user's own style is.

with styled(): save_png(Figure(), path)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

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


def save_png(figure: Figure, path: Path) -> None:
    """Draw it in a palette, which takes about a third of the bytes of full colours.

    Not by median cut: it drops the rare colours of a colour bar.
    """
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(path, dpi=(DPI, DPI))
