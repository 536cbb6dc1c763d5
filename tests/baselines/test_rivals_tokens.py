"""The contestants that choose visual tokens, against slow literal versions of their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity

from baselines import divprune, fastv, pool, random_tokens, visionzip
from harness import registry
from harness.types import TokenRule

METHODS = ("random_tokens", "pool", "fastv", "visionzip", "divprune")


def states(count: int, seed: int = 0, width: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_tokens_gives_a_rule_and_no_scores(name: str) -> None:
    method = registry.method(name)
    ranking = method.module.rank(None, None, seed=1)
    assert method.units == "tokens" and not ranking.scores and isinstance(ranking.tokens, TokenRule)
    assert ranking.tokens.layer == (2 if name == "fastv" else 0)


def test_random_tokens_depend_on_the_seed_alone() -> None:
    first, again, other = (random_tokens.keep_tokens(states(40, i), 15, s) for i, s in ((0, 3), (1, 3), (0, 4)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(set(first.tolist())) == 15 and max(first.tolist()) < 40


def test_fastv_keeps_the_largest() -> None:
    attention = torch.tensor([0.1, 0.4, 0.1, 0.2, 0.1])
    assert fastv.keep_tokens(states(5), 3, attention).tolist() == [1, 3, 0]


@given(st.integers(2, 12), st.integers(0, 5), st.data())
def test_divprune_takes_the_farthest_again_and_again(count: int, seed: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, count))
    x = states(count, seed)

    def apart(i: int, j: int) -> float:
        return 1 - float(cosine_similarity(x[i], x[j], dim=0))

    chosen: list[int] = []
    for _ in range(number):
        best, farthest = -1, -math.inf
        for i in range(count):
            if i in chosen:
                continue
            others = chosen or [j for j in range(count) if j != i]
            nearest = min(apart(i, j) for j in others)
            if nearest > farthest + 1e-6:
                best, farthest = i, nearest
        chosen.append(best)
    assert divprune.keep_tokens(x, number).tolist() == chosen


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(6, 6, 3, 3), (6, 6, 2, 2), (5, 7, 5, 7), (8, 4, 4, 2)]
)
def test_pooling_is_adaptive_average_pooling(height: int, width: int, rows: int, columns: int) -> None:
    x = states(height * width)
    places, weights = pool.keep_tokens(x, rows * columns, [(height, width)])
    expected = adaptive_avg_pool2d(x.T.reshape(-1, height, width), (rows, columns)).flatten(1).T
    torch.testing.assert_close(weights @ x, expected)
    assert places.tolist() == [
        (row * height // rows) * width + column * width // columns for row in range(rows) for column in range(columns)
    ]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), st.data())
def test_pooling_meets_any_count(grids: list[tuple[int, int]], data: st.DataObject) -> None:
    """Every cell is a mean, every token is in a cell of its own grid, and no two cells begin alike."""
    total = sum(height * width for height, width in grids)
    count = data.draw(st.integers(len(grids), max(len(grids), total)))
    if count > total:
        return
    places, weights = pool.keep_tokens(states(total), count, grids)
    assert len(set(places.tolist())) == len(places) == count
    torch.testing.assert_close(weights.sum(1), torch.ones(count))
    shares = pool.shares(count, grids)
    seen = (weights > 0).any(0)
    start = 0
    for share, (height, width) in zip(shares, grids, strict=True):
        assert share <= height * width
        assert share == 0 or seen[start : start + height * width].all()
        start += height * width


@given(st.integers(3, 30), st.integers(0, 5), st.floats(0, 0.9), st.data())
def test_visionzip_keeps_what_is_attended_and_merges_the_rest(
    size: int, seed: int, contextual: float, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    x, attention = states(size, seed), torch.rand(size, generator=torch.Generator().manual_seed(seed))
    others = min(round(contextual * count), size - count, count)
    ordered = sorted(range(size), key=lambda i: -float(attention[i]))
    dominant = ordered[: count - others]
    rest = sorted(set(range(size)) - set(dominant))
    targets = [rest[i * max(1, len(rest) // others)] for i in range(others)] if others else []
    joined: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        if targets and i not in targets:
            joined[max(targets, key=lambda t: float(cosine_similarity(x[i], x[t], dim=0)))].append(i)
    expected = [x[i] for i in dominant]
    expected += [x[t] + (torch.stack([x[i] for i in joined[t]]).mean(0) if joined[t] else 0) for t in targets]
    places, weights = visionzip.keep_tokens(x, count, attention, contextual)
    assert places.tolist() == dominant + targets
    torch.testing.assert_close(weights @ x, torch.stack(expected), rtol=1e-4, atol=1e-5)
