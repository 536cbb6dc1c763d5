"""Rank the blocks in forward order, each on what the blocks before it let through once they are cut.

    ranking = ranked_in_forward_order(vlm, ranking, scope, solve, rank)

One pass over the dense model scores every block on inputs that it will not get: the blocks before it are cut too. The
released code of several methods cuts a block before it scores the next one. Here every method may do so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.pruning import surgery
from harness.types import VLM, InputError, Plan, Ranking, Scope


def ranked_in_forward_order(
    vlm: VLM,
    ranking: Ranking,
    scope: Scope,
    solve: Callable[[Ranking], tuple[Plan, Ranking]],
    rank: Callable[[VLM, VLM], Ranking],
) -> Ranking:
    """The ranking of `vlm` with the scores of each block made again after the blocks before it are cut.

    solve: the plan for a ranking, and the ranking that its options come from. rank: ranks the blocks of its second
    argument; its first is the same model with all blocks. Raises InputError if the method gives a block alone other
    scores than among all: then it looks at several blocks at once.
    """
    names = [block.name for block in vlm.blocks if scope in ("all", block.component)]
    alone = rank(vlm, replace(vlm, blocks=(vlm.block(names[0]),)))
    if alone.numbers(names[0]) != ranking.numbers(names[0]):
        raise InputError("sequential: this method ranks several blocks together, so it cannot rank them one by one")
    for place, name in enumerate(names[1:], 1):
        plan, source = solve(ranking)
        before = {key: part for key, part in plan.parts.items() if key[0] in names[:place]}
        cut = surgery.apply(vlm, replace(plan, parts=before), source)
        again = rank(cut, replace(cut, blocks=(cut.block(name),)))
        scores = {key: again.scores[key] if key[0] == name else score for key, score in ranking.scores.items()}
        ranking = replace(ranking, scores=scores)
    return ranking
