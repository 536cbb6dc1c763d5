"""Calibration statistics equal their slow, literal versions, cost one pass each, and leave the model as found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from harness.families import encode
from harness.statistics.calibration import Calibration, linears
from harness.types import VLM, InputError, Sample
from tests.support.linears import output_gradients_of

QUESTIONS = ["What colour is the star?", "How many?", "Is there a small circle left of the large red square?"] * 2


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(QUESTIONS), 48, 64, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(image.numpy()) for image in pixels]
    return [
        Sample(image, text, "no" if len(text) < 30 else "yes it is")
        for image, text in zip(images, QUESTIONS, strict=True)
    ]


def inputs_of(vlm: VLM, samples: Sequence[Sample], path: str) -> Tensor:
    """What the Linear reads, rows of all samples, each run alone and so without padding; float64."""
    seen: list[Tensor] = []
    hook = vlm.model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for sample in samples:
        with torch.no_grad():
            vlm.model(**encode(vlm.processor, [[sample.image]], [sample.question], [sample.answer]))
    hook.remove()
    return torch.cat([rows.flatten(0, -2) for rows in seen]).double()


@pytest.mark.parametrize("position", [0, -1], ids=["vision", "language"])
@pytest.mark.parametrize("kind", ["heads", "ffn"])
def test_moments_are_those_of_all_real_tokens(tiny: VLM, samples: list[Sample], position: int, kind: str) -> None:
    path = tiny.blocks[position].units("heads" if kind == "heads" else "ffn").consumer
    rows = inputs_of(tiny, samples, path)
    moment = Calibration(tiny, samples, batch_size=4).moments([path])[path]
    assert moment.count == len(rows)
    torch.testing.assert_close(moment.mean, rows.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moment.second, rows.T @ rows / len(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moment.covariance, torch.cov(rows.T, correction=0), atol=1e-5, rtol=1e-5)


def test_each_statistic_costs_one_pass(tiny: VLM, samples: list[Sample]) -> None:
    calls: list[int] = []
    hook = tiny.model.register_forward_pre_hook(lambda *_: calls.append(1))
    calibration = Calibration(tiny, samples, batch_size=4)  # two batches
    first, second = (block.heads.consumer for block in tiny.blocks[:2])
    calibration.moments([first])
    calibration.moments([first, first])
    assert len(calls) == 2
    assert list(calibration.moments([second, first])) == [second, first]
    assert len(calls) == 4
    assert calibration.gate_gradients() is calibration.gate_gradients()
    assert len(calls) == 6
    hook.remove()


def test_who_uses_what_others_made_pays_for_it_too(
    tiny: VLM, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def pass_of_ten(*_: object) -> None:
        nonlocal now
        now += 10

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    hook = tiny.model.register_forward_pre_hook(pass_of_ten)
    calibration = Calibration(tiny, samples, batch_size=len(samples))
    first, second = (block.heads.consumer for block in tiny.blocks[:2])
    bills = []
    for wanted in ([first], [first], [first, second], []):
        with calibration.billed() as clock:
            calibration.moments(wanted)
            bills.append(clock())
    with calibration.billed() as clock:
        calibration.singly.gate_gradients()
    with calibration.billed() as again:
        calibration.singly.gate_gradients()
        assert again() == clock() == 10 * len(samples)
    hook.remove()
    assert bills == [10, 10, 20, 0]


def test_gate_gradient_is_the_sum_of_activation_times_gradient(tiny: VLM, samples: list[Sample]) -> None:
    vlm = replace(tiny, model=deepcopy(tiny.model).requires_grad_())
    calibration = Calibration(vlm, samples, batch_size=4)
    gradients = calibration.gate_gradients()
    assert set(gradients) == {(block.name, kind) for block, kind in tiny.select("all")}
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        literal = []
        for batch in calibration.batches():
            seen: list[Tensor] = []

            def keep(_: torch.nn.Module, args: tuple[Tensor], seen: list[Tensor] = seen) -> None:
                args[0].retain_grad()
                seen.append(args[0])

            hook = vlm.model.get_submodule(units.consumer).register_forward_pre_hook(keep)
            vlm.model(**batch).loss.backward()
            hook.remove()
            assert seen[0].grad is not None
            product = (seen[0] * seen[0].grad).detach().flatten(0, -2).sum(0)
            literal.append(product.reshape(units.count, units.width).sum(1).double())
        torch.testing.assert_close(gradients[block.name, kind], torch.stack(literal), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("position", [0, -1], ids=["vision", "language"])
def test_output_gradients_are_those_of_each_samples_own_loss(tiny: VLM, samples: list[Sample], position: int) -> None:
    """In batches with padding as alone; and with the inputs they make the gradient by the weight."""
    paths = linears(tiny.blocks[position].heads)
    calibration = Calibration(tiny, samples, batch_size=4)
    grams: dict[str, Tensor] = {}

    def add(path: str, rows: Tensor) -> None:
        assert rows.shape[1] == tiny.model.get_parameter(f"{path}.weight").shape[0]
        grams[path] = grams.get(path, torch.zeros(())) + rows.double().T @ rows.double()

    calibration.visit_output_gradients(paths, add)
    assert set(grams) == set(paths)
    for path in paths:
        alone = output_gradients_of(tiny, calibration, path)
        scale = float(grams[path].diagonal().max())
        torch.testing.assert_close(grams[path], alone.T @ alone, atol=1e-4 * scale, rtol=1e-3)
    single = Calibration(tiny, samples[:1])
    rows, weights = [], []
    single.visit_output_gradients(paths[:1], lambda _, gradients: rows.append(gradients))
    single.visit_gradients(paths[:1], lambda found: weights.append(found[paths[0]]))
    tokens = int((next(single.batches())["labels"] != -100).sum())
    product = rows[0].double().T @ inputs_of(tiny, samples[:1], paths[0])
    torch.testing.assert_close(product / tokens, weights[0].double(), atol=1e-6, rtol=1e-3)


def test_gate_gradient_is_the_slope_of_the_loss(tiny: VLM, samples: list[Sample]) -> None:
    exact = replace(tiny, model=deepcopy(tiny.model).double())
    calibration = Calibration(exact, samples, batch_size=len(samples))
    (batch,) = calibration.batches()
    for block in (tiny.blocks[0], tiny.blocks[-1]):
        units, step = block.heads, 1e-2
        consumer = exact.model.get_submodule(units.consumer)
        columns = consumer.get_parameter("weight").data[:, units.width : 2 * units.width]  # the second head's
        whole, losses = columns.clone(), []
        for sign in (1, -1):
            columns.copy_(whole * (1 + sign * step))
            with torch.no_grad():
                logits = exact.model(**batch).logits[:, :-1].flatten(0, 1)  # its own loss is rounded to float32
            losses.append(float(torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten())))
        columns.copy_(whole)
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(calibration.gate_gradients()[block.name, "heads"][0, 1]) == pytest.approx(
            slope, rel=1e-3, abs=1e-6
        )


def test_the_model_is_left_as_found(tiny: VLM, samples: list[Sample]) -> None:
    vlm = replace(tiny, model=deepcopy(tiny.model).requires_grad_().train())
    block = vlm.blocks[1]
    vlm.model.get_submodule(block.ffn.consumer).eval()
    vlm.model.get_parameter(f"{block.ffn.consumer}.weight").requires_grad_(False)
    modes = [module.training for module in vlm.model.modules()]
    learning = [weight.requires_grad for weight in vlm.model.parameters()]
    weights = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    calibration = Calibration(vlm, samples)
    calibration.moments([block.heads.consumer])
    calibration.gate_gradients()
    calibration.visit_output_gradients([block.heads.consumer], lambda path, rows: None)
    assert [module.training for module in vlm.model.modules()] == modes
    assert [weight.requires_grad for weight in vlm.model.parameters()] == learning
    assert all(weight.grad is None for weight in vlm.model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in vlm.model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in vlm.model.modules())


def test_nan_names_the_first_layer_it_reaches(tiny: VLM, samples: list[Sample]) -> None:
    vlm = replace(tiny, model=deepcopy(tiny.model))
    vlm.model.get_parameter(f"{vlm.blocks[0].ffn.consumer}.weight").data[0, 0] = torch.nan
    calibration = Calibration(vlm, samples)
    clean, *spoilt = [block.heads.consumer for block in vlm.blocks]
    assert calibration.moments([clean])[clean].second.isfinite().all()
    with pytest.raises(InputError, match=f"{spoilt[0]}: .* NaN"):
        calibration.moments([*reversed(spoilt), clean])
    with pytest.raises(InputError, match=rf"{vlm.blocks[0].name} heads: .* NaN"):
        calibration.gate_gradients()
    with pytest.raises(InputError, match=f"{spoilt[-1]}: the answer loss has a NaN"):
        calibration.visit_output_gradients([spoilt[-1]], lambda path, rows: None)


def test_unusable_settings_are_refused(tiny: VLM, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="samples: empty"):
        Calibration(tiny, [])
    with pytest.raises(InputError, match="batch_size: 0"):
        Calibration(tiny, samples, batch_size=0)
