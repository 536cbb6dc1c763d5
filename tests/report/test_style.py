"""Pictures in a palette look as drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from harness.report.style import save_png, styled


def test_the_rare_colours_of_a_colour_bar_stay(tmp_path: Path) -> None:
    """Of a map that uses one end of its colours, the bar beside it shows the other end too."""
    with styled():
        figure = Figure(figsize=(12, 8))
        maps = ("RdBu_r", "viridis", "plasma", "PiYG", "cividis", "coolwarm")
        for ax, colors in zip(figure.subplots(2, 3).flat, maps, strict=True):
            figure.colorbar(ax.imshow([[0.5, 1.0], [1.0, 0.0]], colors, vmin=-1, vmax=1), ax=ax)
        save_png(figure, tmp_path / "map.png")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.mode == "P"
        assert np.abs(np.asarray(picture.convert("RGB"), int) - drawn).max() <= 25
