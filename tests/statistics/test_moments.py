"""Moments in several passes are those of one, bit for bit; they are let go; a pass ends where it may."""

from __future__ import annotations

import gc
import io
import pickle
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import ray.cloudpickle.cloudpickle as cloudpickle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines import infoprune_free, svd_llm
from baselines.infoprune.moments import regularised_moments
from harness import registry
from harness.checks import method_contract, ranking_rules
from harness.pruning import surgery
from harness.pruning.solver import solve
from harness.statistics import moments
from harness.statistics.calibration import Calibration
from harness.statistics.moments import Sum
from harness.statistics.unit_weights import block_linears
from harness.types import VLM, Budget, Choice, InputError, Options, Plan

ONE = 1  # byte of room: a pass for every moment


def streamed(vlm: VLM, room: int = ONE) -> Calibration:
    return Calibration(vlm, method_contract.samples(), batch_size=4, room=room)


def every(vlm: VLM) -> list[str]:
    return [path for block in vlm.blocks for path in block_linears(block)]


@contextmanager
def watched(vlm: VLM, paths: Iterable[str]) -> Iterator[list[str]]:
    """The modules among these that ran to their end, in turn."""
    ran: list[str] = []
    with ExitStack() as hooks:
        for path in paths:
            module = vlm.model.get_submodule(path)
            hooks.callback(module.register_forward_hook(lambda *_, path=path: ran.append(path)).remove)
        yield ran


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every pass over the samples."""
    calls: list[int] = []
    visit = Calibration.visit

    def counted(self: Calibration, *how: Any) -> None:
        calls.append(1)
        visit(self, *how)

    monkeypatch.setattr(Calibration, "visit", counted)
    return calls


@settings(max_examples=10)
@given(st.integers(0, 100_000), st.randoms(use_true_random=False))
def test_several_passes_are_one_bit_for_bit(tiny: VLM, room: int, random: Any) -> None:
    paths = every(tiny)
    whole = streamed(tiny, 1 << 30).moments(paths)
    parts = streamed(tiny, room).moments(paths)
    order = list(paths)
    random.shuffle(order)
    for path in order:  # any order, though only that of the model is cheap
        one, other = whole[path], parts[path]
        assert one.count == other.count
        assert torch.equal(one.mean, other.mean) and torch.equal(one.second, other.second)


def test_passes_are_as_few_as_there_is_room_for(tiny: VLM, passes: list[int]) -> None:
    paths = [block.ffn.consumer for block in tiny.blocks]
    (one,) = {moments.size(tiny.model, path) for path in paths}
    for room, number in ((4 * one, 1), (4 * one - 1, 2), (2 * one, 2), (one, 4), (ONE, 4)):
        passes.clear()
        found = streamed(tiny, room).moments(paths)
        assert len(passes) == 1
        assert all(found[path] is found[path] for path in paths)
        assert len(passes) == number


def test_of_the_largest_moments_there_is_one_at_a_time(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most: list[int] = []
    empty = Sum.empty.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Sum], width: int, device: torch.device) -> Sum:
        gc.collect()
        made = empty(cls, width, device)
        if width == tiny.blocks[0].ffn.count:
            most.append(len(alive))
            alive.add(made.gram)
        return made

    monkeypatch.setattr(Sum, "empty", classmethod(counted))
    calibration = streamed(tiny)
    infoprune_free.rank(tiny, calibration, seed=0, arm="factor")
    svd_llm.rank(tiny, calibration, seed=0)
    assert most == [0] * 2 * len(tiny.blocks)


def test_what_is_left_of_a_stream_is_let_go_with_the_bill(tiny: VLM) -> None:
    for room, left in ((ONE, False), (1 << 30, True)):
        calibration = streamed(tiny, room)
        with calibration.billed():
            found = weakref.ref(calibration.moments(every(tiny))[tiny.blocks[-1].ffn.consumer].second)
        gc.collect()
        assert (found() is not None) == left


def test_a_pass_ends_behind_the_last_linear_it_is_for(tiny: VLM) -> None:
    vision, language = ([b.path for b in tiny.blocks if b.component == c] for c in ("vision", "language"))
    consumers = {block.path: block.ffn.consumer for block in tiny.blocks}
    cases = (
        (vision[0], vision),
        (language[0], [*vision, language[0]]),
        (language[-1], [*vision, *language, "lm_head"]),
    )
    for asked, expected in cases:
        with watched(tiny, [*consumers, "lm_head"]) as ran:
            calibration = streamed(tiny)  # of two batches
            calibration.moments([consumers[asked]])
            calibration.features([consumers[asked]])
        assert ran == expected * 4
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())


def test_a_stream_goes_on_where_it_ended(tiny: VLM) -> None:
    """The towers run until the language model is reached; of that each block twice at most, for a pass a block."""
    consumers = {c: [b.ffn.consumer for b in tiny.blocks if b.component == c] for c in ("vision", "language")}
    paths = [*consumers["vision"], *consumers["language"]]
    with watched(tiny, paths) as ran:
        for moment in streamed(tiny).moments(paths).values():
            assert moment
    number = len(consumers["vision"])
    assert [ran.count(path) for path in consumers["vision"]] == [2 * number] * number  # two batches
    assert [ran.count(path) for path in consumers["language"]] == [4] * (len(consumers["language"]) - 1) + [2]
    assert not any("forward" in vars(module) for module in tiny.model.modules())


def test_nan_is_said_at_the_pass_that_meets_it(tiny: VLM) -> None:
    vlm = replace(tiny, model=deepcopy(tiny.model))
    vlm.model.get_parameter(f"{vlm.blocks[1].ffn.consumer}.weight").data[0, 0] = torch.nan
    clean, last, first, *_ = [block.heads.consumer for block in vlm.blocks]
    found = streamed(vlm).moments([first, last, clean])
    assert found[last].second.isfinite().all() and found[clean].second.isfinite().all()
    for path in (first, vlm.blocks[3].heads.consumer):
        with pytest.raises(InputError, match=f"{path}: .* NaN"):
            streamed(vlm).moments([path])[path]
    with pytest.raises(InputError, match=f"{first}: .* NaN"):
        found[first]
    with pytest.raises(KeyError):
        found["elsewhere"]
    assert not any(module._forward_pre_hooks for module in vlm.model.modules())


def test_who_streams_pays_for_every_pass_once(tiny: VLM, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0 * len(passes))
    paths = [block.ffn.consumer for block in tiny.blocks]
    for room, bill in ((ONE, 10 * len(paths)), (1 << 30, 10)):
        calibration = streamed(tiny, room)
        for _ in range(2):
            with calibration.billed() as clock:
                for moment in calibration.moments(paths).values():
                    assert moment
                assert clock() == bill


@pytest.mark.parametrize("name", registry.methods())
def test_a_method_ranks_and_cuts_alike_with_hardly_any_room(tiny: VLM, name: str) -> None:
    method = registry.method(name)
    extents = streamed(tiny).extents
    asked = Budget("all", 0.5, method.units, extents=extents)  # type: ignore[arg-type]
    cut = []
    rankings = []
    for room in (1 << 30, ONE):
        calibration = streamed(tiny, room)
        rankings.append(method.rank(tiny, calibration, seed=0, budget=asked))
        if rankings[-1].scores:
            plan = solve(tiny, rankings[-1], asked, tolerance=0.05)
            cut.append(surgery.apply(tiny, plan, rankings[-1]).model.state_dict())
    assert ranking_rules.differences(*rankings) == [] and rankings[0] == replace(rankings[1], scores=rankings[0].scores)
    if cut:
        assert cut[0].keys() == cut[1].keys() and all(torch.equal(value, cut[1][key]) for key, value in cut[0].items())


@pytest.mark.parametrize("arm", ["factor", "compose-act"])
def test_what_makes_an_option_brings_no_model_along(tiny: VLM, arm: Any) -> None:
    class Light(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            assert not isinstance(obj, Calibration | nn.Linear | type(tiny.model))
            return super().reducer_override(obj)

    ranking = infoprune_free.rank(tiny, streamed(tiny), seed=0, arm=arm)
    Light(sink := io.BytesIO()).dump(ranking)
    other = pickle.loads(sink.getvalue())
    for block in (tiny.blocks[0], tiny.blocks[-1]):
        points = ranking.scores[block.name, "ffn"]
        assert isinstance(points, Options)
        place = len(points.points) // 2
        plan = Plan({(block.name, "ffn"): Choice(place, points.points[place].label)}, 1.0, 1.0)
        one, two = (surgery.apply(tiny, plan, each).model.state_dict() for each in (ranking, other))
        assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_a_little_data_is_said_once_however_often_it_is_made(tiny: VLM, caplog: pytest.LogCaptureFixture) -> None:
    few = Calibration(tiny, method_contract.samples()[:1], room=ONE)
    paths = [block.ffn.consumer for block in tiny.blocks]
    found, scarce = regularised_moments(few, paths)
    assert not scarce
    for _ in range(2):
        assert all(torch.equal(found[path].second, found[path].second) for path in paths)
    assert scarce and len(caplog.records) == len(scarce)


def test_wide_moments_are_made_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(40, 23, generator=torch.Generator().manual_seed(0))
    made = []
    for strip in (4096, 7):
        monkeypatch.setattr(moments, "STRIP", strip)
        sum_ = Sum.empty(23, torch.device("cpu"))
        sum_.add(rows[:25])
        sum_.add(rows[25:])
        made.append(sum_.moment())
    torch.testing.assert_close(made[1].second, rows.double().T @ rows.double() / 40)
    assert torch.equal(made[1].second[:7, 7:], made[1].second[7:, :7].T)
    torch.testing.assert_close(made[0].covariance, torch.cov(rows.double().T, correction=0))


def test_the_room_is_a_share_of_the_weights(tiny: VLM) -> None:
    assert moments.room(tiny.model) == moments.LEAST == Calibration(tiny, method_contract.samples()).room
    large = nn.Linear(2**20, 2**15, device="meta")  # 128 GiB
    assert moments.room(large) == int(0.2 * (2**37 + 2**17))
