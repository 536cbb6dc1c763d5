"""Where a trial's time goes: named phases, each with the seconds that are its own, and a sweep's account of them.

    watch = Watch(print)
    with watch, watch("metric accuracy"): ...      # and deeper down: with inside("generate"): ...
    rows = account(records, wall=95.0)

The useful work of a sweep is generating answers, timing and tuning; everything else is the harness's own cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

USEFUL = ("generate", "metric latency", "tuning")
STEPS = ("load", "calibration", "solve", "repair", "surgery", "tuning")  # phases whose seconds stand in a record apart


class Watch:
    """Names the phase a trial is in and sums the seconds of each: `whole`, and `own` without the phases inside it."""

    def __init__(self, progress: Callable[[str], None] = lambda text: None) -> None:
        self.start = time.perf_counter()
        self.progress, self.phase = progress, "start"
        self.whole: dict[str, float] = {}
        self.own: dict[str, float] = {}
        self._inner = [0.0]  # seconds of the phases inside each open phase, outermost first
        self._tokens: list[Token[Watch | None]] = []

    def __enter__(self) -> Watch:
        self._tokens.append(_RUNNING.set(self))
        return self

    def __exit__(self, *error: object) -> None:
        _RUNNING.reset(self._tokens.pop())

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """A phase of the trial: shown, and what a failure is said to have happened in."""
        self.phase = phase
        self.progress(phase)
        with self.timed(phase):
            yield

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            inner = self._inner.pop()
            self._inner[-1] += seconds
            self.whole[phase] = self.whole.get(phase, 0.0) + seconds
            self.own[phase] = self.own.get(phase, 0.0) + seconds - inner


_RUNNING: ContextVar[Watch | None] = ContextVar("running", default=None)


@contextmanager
def inside(phase: str) -> Iterator[None]:
    """A part of whatever phase is going on; counted if a watch runs."""
    watch = _RUNNING.get()
    if watch is None:
        yield
    else:
        with watch.timed(phase):
            yield


@dataclass(frozen=True)
class Row:
    """A phase's seconds over a sweep, and whether they are what the sweep is for."""

    phase: str
    seconds: float
    useful: bool


def account(records: Iterable[Mapping[str, Any]], wall: float | None = None) -> list[Row]:
    """The phases of these records' trials, longest first; with the sweep's `wall` seconds also what lay between them.

    Records of before phases were written count as one phase, `not told apart`.
    """
    seconds: dict[str, float] = {}
    total = 0.0
    for record in records:
        cost = record.get("cost") or {}
        spent = float(cost.get("total_s") or 0.0)
        phases = cost.get("phases_s")
        total += spent
        rest = "between phases" if phases else "not told apart"
        for phase, own in (phases or {}).items():
            seconds[phase] = seconds.get(phase, 0.0) + own
            spent -= own
        seconds[rest] = seconds.get(rest, 0.0) + spent
    if wall is not None:
        seconds["between trials"] = wall - total  # a worker's start and imports, writing records
    return [
        Row(phase, own, phase in USEFUL) for phase, own in sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    ]


def overhead(rows: Iterable[Row]) -> float:
    """The share of all seconds that is not useful; 0 without any."""
    rows = list(rows)
    total = sum(row.seconds for row in rows)
    return sum(row.seconds for row in rows if not row.useful) / total if total else 0.0
