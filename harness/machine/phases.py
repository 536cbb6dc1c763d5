"""Where the time of a trial goes: named phases with their own seconds, and a summary of these over a sweep.

    watch = PhaseTimer(print)
    with watch, watch("metric accuracy"): ...      # and in the code called there: with inside("generate"): ...
    rows = account([record.cost for record in records], wall=95.0)

Generating answers, timing and tuning are the useful work of a sweep; everything else is the harness's overhead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Protocol

from harness.progress import Progress, silent

USEFUL = ("generate", "metric latency", "tuning")
STEPS = ("load", "calibration", "solve", "surgery", "tuning")  # phases with a field of their own in a record


class PhaseTimer:
    """Tracks the current phase of a trial and sums the seconds of each phase.

    `whole` includes the phases inside a phase, `own` does not.
    """

    def __init__(self, progress: Progress = silent) -> None:
        self.start = time.perf_counter()
        self.progress, self.phase = progress, "start"
        self.whole: dict[str, float] = {}
        self.own: dict[str, float] = {}
        self.figures: dict[str, Any] = {}  # further figures of the trial's cost, by their name in the record
        self._inner = [0.0]  # seconds of the phases inside each open phase, outermost first
        self._tokens: list[Token[PhaseTimer | None]] = []

    def __enter__(self) -> PhaseTimer:
        self._tokens.append(_RUNNING.set(self))
        return self

    def __exit__(self, *error: object) -> None:
        _RUNNING.reset(self._tokens.pop())

    def set(self, name: str, value: Any) -> None:
        """Note a figure of the trial's cost, which counts even if the trial fails later."""
        self.figures[name] = value

    def add(self, name: str, amount: float) -> None:
        """Add to a figure of the trial's cost."""
        self.figures[name] = self.figures.get(name, 0) + amount

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """A phase of the trial: it is shown as progress, and a failure is reported with its name."""
        self.phase = phase
        self.progress(phase)
        with self.timed(phase):
            yield

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Time a phase without showing it."""
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


_RUNNING: ContextVar[PhaseTimer | None] = ContextVar("running", default=None)


@contextmanager
def inside(phase: str) -> Iterator[None]:
    """Time a part of the current phase, if a watch is running."""
    watch = _RUNNING.get()
    if watch is None:
        yield
    else:
        with watch.timed(phase):
            yield


@dataclass(frozen=True)
class Row:
    """The seconds of a phase over a sweep, and whether they are useful work."""

    phase: str
    seconds: float
    useful: bool


class Spent(Protocol):
    """The seconds of a trial: the `cost` of its record."""

    @property
    def total_s(self) -> float | None: ...

    @property
    def phases_s(self) -> Mapping[str, float] | None: ...


def account(costs: Iterable[Spent], wall: float | None = None) -> list[Row]:
    """The phases of these trials, longest first; with the sweep's `wall` seconds also the time between trials.

    Old records without phases count as one phase, `not told apart`.
    """
    seconds: dict[str, float] = {}
    total = 0.0
    for cost in costs:
        unassigned, phases = cost.total_s or 0.0, cost.phases_s
        total += unassigned
        rest_phase = "between phases" if phases else "not told apart"
        for phase, phase_seconds in (phases or {}).items():
            seconds[phase] = seconds.get(phase, 0.0) + phase_seconds
            unassigned -= phase_seconds
        seconds[rest_phase] = seconds.get(rest_phase, 0.0) + unassigned
    if wall is not None:
        seconds["between trials"] = wall - total  # starting workers, importing, writing records
    return [
        Row(phase, phase_seconds, phase in USEFUL)
        for phase, phase_seconds in sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    ]


def overhead(rows: Iterable[Row]) -> float:
    """The share of all seconds that is not useful work; 0 if there are no seconds."""
    rows = list(rows)
    total = sum(row.seconds for row in rows)
    return sum(row.seconds for row in rows if not row.useful) / total if total else 0.0
