"""The scores of a ranking as plain numbers, and when they count as equal to a literal version's."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.types import Additive, Kind, Options, Ranking


def scores_of(ranking: Ranking, key: tuple[str, Kind]) -> list[float]:
    score = ranking.scores[key]
    assert not isinstance(score, Options)
    return list(score.damage if isinstance(score, Additive) else score.order)


def close(scores: list[float], literal: list[float] | Tensor, rel: float = 1e-3) -> None:
    expected = torch.as_tensor(literal, dtype=torch.float64)
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.tensor(scores, dtype=torch.float64), expected, rtol=rel, atol=1e-5 * scale)
