"""InfoSelect: channels leave in the reverse order of the pursuit, at the error that the pursuit says; layers weigh."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines import infoprune_free, infoselect
from baselines.infoselect import channel_damage, pursuit
from harness.pruning.solver import solve
from harness.statistics import Moment
from harness.statistics.calibration import Calibration
from harness.types import VLM, Additive, Budget, Keep, Kind
from tests.support.linears import inputs_of, weight_of

WEIGHTS = ("ablation", "gradient", "one")
problems = st.tuples(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**16))


def problem(channels: int, out: int, seed: int) -> tuple[Tensor, Tensor]:
    """What 40 tokens send through the channels (40, channels), and the weight (out, channels) that reads it."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, channels, generator=random, dtype=torch.float64)
    return inputs, torch.randn(out, channels, generator=random, dtype=torch.float64)


def moment_of(inputs: Tensor) -> Moment:
    return Moment(len(inputs), inputs.mean(0), inputs.T @ inputs / len(inputs))


def least_error(inputs: Tensor, weight: Tensor, kept: list[int]) -> float:
    """Mean squared error of the outputs from these channels alone, weight and bias fitted to them; by lstsq."""
    outputs = inputs @ weight.T
    read = torch.cat([inputs[:, kept], torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    fitted = read @ torch.linalg.lstsq(read, outputs, driver="gelsd").solution
    return float((outputs - fitted).square().sum() / len(inputs))


def literal_damage(inputs: Tensor, weight: Tensor, order: list[int]) -> list[float]:
    """The rise of the error in the order of removal, never falling, as a share of the outputs' second moment."""
    errors = [least_error(inputs, weight, order[:n]) for n in range(len(order), -1, -1)]
    energy = float((inputs @ weight.T).square().sum() / len(inputs))
    return list(accumulate(((after - before) / energy for before, after in pairwise(errors)), max))


# --- channels ---------------------------------------------------------------------------------------------


@given(problems)
def test_pursuit_takes_the_channel_that_leaves_the_least_error(sizes: tuple[int, int, int]) -> None:
    """Against trying every next channel, each with its own least squares."""
    inputs, weight = problem(*sizes)
    picked, gains = pursuit(moment_of(inputs).covariance, weight)
    order, channels = picked.tolist(), len(picked)
    assert sorted(order) == list(range(channels))
    error = least_error(inputs, weight, [])
    for n in range(channels):
        best = min(least_error(inputs, weight, [*order[:n], other]) for other in order[n:])
        error -= float(gains[n])
        assert least_error(inputs, weight, order[: n + 1]) <= best * (1 + 1e-6) + 1e-9
        assert error == pytest.approx(least_error(inputs, weight, order[: n + 1]), rel=1e-6, abs=1e-9)


def test_channels_that_say_the_same_are_taken_once() -> None:
    covariance = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0.1]], dtype=torch.float64)
    order, gains = pursuit(covariance, torch.ones(1, 3, dtype=torch.float64))
    assert order.tolist()[:2] in ([0, 2], [1, 2]) and float(gains[2]) == 0


@given(problems)
def test_damage_is_the_rise_of_the_error_and_keeps_the_order(sizes: tuple[int, int, int]) -> None:
    inputs, weight = problem(*sizes)
    damage = channel_damage(moment_of(inputs), weight)
    order = pursuit(moment_of(inputs).covariance, weight)[0].tolist()
    assert sorted(range(len(order)), key=damage.__getitem__) == order[::-1]
    assert [damage[channel] for channel in order[::-1]] == pytest.approx(
        literal_damage(inputs, weight, order), rel=1e-6, abs=1e-9
    )


def test_silent_channels_do_no_damage() -> None:
    inputs, weight = problem(6, 3, 0)
    inputs[:, [1, 4]] = 0
    damage = channel_damage(moment_of(inputs), weight)
    assert [place for place, value in enumerate(damage) if value < 1e-12] == [1, 4]
    assert channel_damage(moment_of(torch.zeros(5, 3)), torch.ones(2, 3)) == [0, 0, 0]


def test_the_model_loses_channels_in_the_pursuits_order(tiny: VLM, calibration: Calibration) -> None:
    ranking = infoselect.rank(tiny, calibration, seed=0)
    plan = solve(tiny, ranking, Budget("all", 0.5, "ffn", calibration.extents))
    cut = 0
    for block in tiny.blocks:
        inputs = inputs_of(tiny, calibration, block.ffn.consumer)
        order = pursuit(moment_of(inputs).covariance, weight_of(tiny, block.ffn.consumer))[0].tolist()
        part = plan.parts[block.name, "ffn"]
        assert isinstance(part, Keep) and part.indices == tuple(sorted(order[: len(part.indices)]))
        cut += block.ffn.count - len(part.indices)
    assert cut > 0


# --- layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weigh", WEIGHTS)
def test_weights_scale_what_a_layer_loses(tiny: VLM, calibration: Calibration, weigh: Any) -> None:
    found = infoselect.rank(tiny, calibration, seed=0, weigh=weigh)
    heads = infoprune_free.rank(tiny, calibration, seed=0).scores
    weights = infoselect.layer_weights(tiny, calibration, weigh)
    for block in tiny.blocks:
        inputs = inputs_of(tiny, calibration, block.ffn.consumer)
        plain: dict[Kind, Sequence[float]] = {
            "heads": cast(Additive, heads[block.name, "heads"]).damage,
            "ffn": channel_damage(moment_of(inputs), weight_of(tiny, block.ffn.consumer)),
        }
        for kind in plain:
            weight = weights[block.name, kind]
            assert weight > 0 and found.log[block.name]["weight"][kind] == pytest.approx(weight, rel=5e-3)
            damage = cast(Additive, found.scores[block.name, kind]).damage
            assert damage == pytest.approx([weight * value for value in plain[kind]], rel=1e-4, abs=1e-9)


def test_layers_weigh_what_the_answers_lose(tiny: VLM, calibration: Calibration) -> None:
    measured, first_order, alike = (infoselect.layer_weights(tiny, calibration, weigh) for weigh in WEIGHTS)
    dense, gradients = calibration.answer_loss(), calibration.gate_gradients()
    rises: dict[tuple[str, Kind], float] = {}
    for block, kind in tiny.select("all"):
        closed = torch.zeros(block.units(kind).count)
        rises[block.name, kind] = calibration.answer_loss({(block.name, kind): closed}) - dense
    assert set(measured) == set(first_order) == set(alike) == set(rises)
    floor = 1e-3 * max(rises.values())
    for key, rise in rises.items():
        assert measured[key] == pytest.approx(max(rise, floor), rel=1e-3)
        assert first_order[key] == pytest.approx(float((gradients[key] ** 2).sum(1).mean()))
        assert alike[key] == 1
