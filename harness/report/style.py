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
import pandas as pd
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
COMMON = 32  # colours of a picture that its palette keeps as they are


@contextmanager
def styled(**changes: Any) -> Iterator[None]:
    """Draw and save within it. `changes`: matplotlib parameters that differ, such as `{"font.size": 9}`."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | changes)
        yield


def save_png(figure: Figure, path: Path) -> None:
    """Draw it in a palette, which takes about a third of the bytes of full colours.

    The commonest colours, of grounds and lines, stay as they are. The rest of the palette covers the variety of the
    others, not their number, as median cut does, which drops the rare colours of a colour bar. Each colour counts once,
    which is much quicker than each pixel.
    """
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba()).view(np.uint32)[..., 0]
    colour_of, colours = pd.factorize(pixels.ravel())
    order = np.argsort(-np.bincount(colour_of), kind="stable")
    ranked = colours[order].view(np.uint8).reshape(-1, 4)[:, :3]
    common, others = ranked[:COMMON], ranked[COMMON:]
    palette, places = common.ravel().tolist(), np.arange(len(common), dtype=np.uint8)
    if len(others):
        shared = Image.fromarray(others[None]).quantize(256 - COMMON, Image.Quantize.MAXCOVERAGE, kmeans=1)
        palette += shared.getpalette() or []
        places = np.concatenate([places, COMMON + np.asarray(shared)[0]])
    place_of = np.empty(len(colours), dtype=np.uint8)
    place_of[order] = places
    picture = Image.fromarray(place_of[colour_of].reshape(pixels.shape))
    picture.putpalette(palette)
    picture.save(path, dpi=(DPI, DPI), optimize=True)
