"""Seconds belong to the innermost phase, and a sweep's account adds up."""

from __future__ import annotations

import pytest

from harness.machine import phases
from harness.machine.phases import PhaseTimer, account, inside, overhead
from harness.records.record import Cost
from tests.support.progress import Heard


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(phases.time, "perf_counter", lambda: self.now)


def test_a_phase_has_what_the_phases_inside_it_have_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), Heard()
    watch = PhaseTimer(said)
    with watch, watch("metric accuracy"):
        clock.now += 1
        for _ in range(2):
            with inside("generate"):
                clock.now += 10
        clock.now += 2
    assert watch.own == {"generate": 20, "metric accuracy": 3}
    assert watch.whole == {"generate": 20, "metric accuracy": 23}
    assert said == ["metric accuracy"] and watch.phase == "metric accuracy"  # a part is no phase of its own to the user


def test_a_failure_is_timed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = PhaseTimer()
    with pytest.raises(ZeroDivisionError), watch, watch("solve"), inside("deep"):
        clock.now += 5
        raise ZeroDivisionError
    assert watch.own == {"deep": 5, "solve": 0} and watch.phase == "solve"
    with inside("deep"):  # nobody watches any more
        clock.now += 5
    assert watch.own["deep"] == 5


def test_watches_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, outer, inner = Clock(monkeypatch), PhaseTimer(), PhaseTimer()
    with outer:
        with inner, inside("a"):
            clock.now += 1
        with inside("b"):
            clock.now += 2
    assert (outer.own, inner.own) == ({"b": 2}, {"a": 1})


def cost(total: float, **own: float) -> Cost:
    return Cost(total_s=total, phases_s=own)


def test_an_account_adds_up_to_the_wall_clock() -> None:
    costs = [cost(10, generate=6, solve=1), cost(5, generate=4.5), Cost(total_s=3), Cost()]
    rows = account(costs, wall=20)
    assert {row.phase: row.seconds for row in rows} == {
        "generate": 10.5,
        "between phases": 3.5,
        "not told apart": 3,
        "between trials": 2,
        "solve": 1,
    }
    assert sum(row.seconds for row in rows) == 20
    assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True)
    assert overhead(rows) == pytest.approx(9.5 / 20)
    assert overhead(account(costs)) == pytest.approx(7.5 / 18)
    assert overhead(account([])) == 0
