"""Hand out trials so that each ranking is computed once: a worker first takes all trials of its current ranking.

feed = Feed(trials, claim); trial = feed.take(); trial = feed.take(near=trial)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable

from harness.types import Trial


class Feed:
    """The trials still to run, by ranking, in their original order.

    claim: called right before a trial is handed out. A trial that it refuses is skipped.
    """

    def __init__(self, trials: Iterable[Trial], claim: Callable[[Trial], bool]) -> None:
        self._claim = claim
        self._fresh: dict[Hashable, deque[Trial]] = {}
        self._begun: dict[Hashable, deque[Trial]] = {}
        for trial in trials:
            self._fresh.setdefault(trial.ranking, deque()).append(trial)

    def take(self, near: Trial | None = None) -> Trial | None:
        """The next trial: of `near`'s ranking, else of an unbegun ranking, else of the one with most trials left."""
        while self._fresh or self._begun:
            key = self._choose(near)
            queue = self._begun.setdefault(key, self._fresh.pop(key)) if key in self._fresh else self._begun[key]
            trial = queue.popleft()
            if not queue:
                del self._begun[key]
            if self._claim(trial):
                return trial
        return None

    def _choose(self, near: Trial | None) -> Hashable:
        if near is not None and near.ranking in self._begun:
            return near.ranking
        if self._fresh:
            return next(iter(self._fresh))
        return max(self._begun, key=lambda key: len(self._begun[key]))
