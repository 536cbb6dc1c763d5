"""Pooling: means of neighbouring visual tokens on their grid, the plainest way to fewer tokens.

    the grid is split into `count` cells of nearly equal size; each cell's mean goes on

Where the count is a product of rows and columns in the grid's proportion, this is adaptive average pooling. Else some
rows of cells have one cell more, so that any count is met. A pooled token has the position of its cell's first token.
Several grids (images, tiles) share the count in proportion to their sizes. Where a family puts tokens between those of
the grid (LLaVA-OneVision's ends of lines), neighbours in reading order are pooled.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any

import torch

from harness.statistics import Calibration
from harness.types import VLM, Ranking, TokenRule

UNITS = "tokens"

Layer = Annotated[int, "of the language model that first reads fewer tokens; ours is 0, as pooling reads no attention"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, layer: Layer = 0) -> Ranking:
    """A rule that passes on means of neighbouring tokens, from `layer` on."""
    return Ranking({}, tokens=TokenRule(keep_tokens, layer))


def keep_tokens(states: Any, count: int, grids: Any) -> Any:
    """The first position of each cell, (count,), and the cells as rows of weights, (count, n)."""
    weights = torch.zeros(count, len(states), device=states.device)
    firsts, start, cell = [], 0, 0
    for number, (height, width) in zip(shares(count, grids), grids, strict=True):
        for top, bottom, left, right in cells(number, height, width):
            rows, columns = torch.meshgrid(torch.arange(top, bottom), torch.arange(left, right), indexing="ij")
            places = (start + rows * width + columns).flatten().to(states.device)
            weights[cell, places] = 1 / len(places)
            firsts.append(start + top * width + left)
            cell += 1
        start += height * width
    return torch.tensor(firsts, device=states.device), weights


def shares(count: int, grids: Any) -> Any:
    """How many cells each grid gets: in proportion to its size, and `count` in all."""
    total = sum(height * width for height, width in grids)
    ends, seen = [0], 0
    for height, width in grids:
        seen += height * width
        ends.append(round(count * seen / total))
    return [end - begin for begin, end in itertools.pairwise(ends)]


def cells(number: int, height: int, width: int) -> Any:
    """Top, bottom, left and right of `number` cells that cover the grid; cells may overlap by one as in torch."""
    if number == 0:
        return []
    fewest, most = math.ceil(number / width), min(height, number)
    rows = min(max(round(math.sqrt(number * height / width)), fewest), most)
    spans = []
    for row in range(rows):
        columns = (row + 1) * number // rows - row * number // rows
        top, bottom = row * height // rows, math.ceil((row + 1) * height / rows)
        spans += [
            (top, bottom, column * width // columns, math.ceil((column + 1) * width / columns))
            for column in range(columns)
        ]
    return spans
