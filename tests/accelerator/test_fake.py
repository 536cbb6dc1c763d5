"""The fake accelerator finds what a GPU would, planted here, and leaves no trace once it is gone."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import families, tasks
from harness.statistics.calibration import Calibration
from harness.statistics.passes import UnpaddedRows
from harness.tasks import decoding
from harness.types import VLM
from tests.support.accelerator import installed
from tests.support.accelerator.ledger import Ledger
from tests.support.calibrations import calibration_on_several_questions
from tests.support.question_files import asked


@pytest.fixture
def vlm(gpus: Ledger, tiny_folder: Path) -> VLM:
    return families.load(tiny_folder, device="cuda:1")


def refuses(call: Callable[[], object], text: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=text):
        call()


def test_what_cuda_refuses_is_refused(gpus: Ledger) -> None:
    here, there, cpu = (torch.ones(3, device=device) for device in ("cuda", "cuda:1", "cpu"))
    assert [str(x.device) for x in (here, there)] == ["cuda:0", "cuda:1"] and here.is_cuda
    mixed = "Expected all tensors to be on the same device"
    refuses(lambda: here + cpu, mixed)
    refuses(lambda: here + there, mixed)
    refuses(lambda: torch.cat([here, cpu]), mixed)
    refuses(lambda: cpu.add_(here[0]), mixed)
    refuses(lambda: here @ torch.ones((), device="cpu").expand(3), mixed)
    refuses(lambda: here[torch.tensor([0], device="cuda:1")], "indices should be either on cpu or on the same device")
    refuses(lambda: cpu[torch.tensor([0], device="cuda")], "indices should be either on cpu or on the same device")
    refuses(lambda: here.numpy(), "can't convert cuda:0 device type tensor to numpy")
    refuses(lambda: torch.rand(2, device="cuda", generator=torch.Generator()), "generator but found 'cpu'")
    refuses(lambda: here.long()[None] @ here.long()[:, None], "not implemented for torch.int64")
    refuses(lambda: setattr(here, "data", cpu), "incompatible tensor type")
    refuses(lambda: torch.ones(1, device="cuda:2"), "invalid device ordinal")
    half = here.half()[None, None, :, None]
    refuses(lambda: torch.nn.functional.scaled_dot_product_attention(half, half, half.float()), "the same dtype")


def test_what_cuda_allows_is_allowed(gpus: Ledger) -> None:
    here = torch.arange(3.0, device="cuda")
    assert (here * torch.tensor(2.0)).tolist() == [0, 2, 4]  # a number on the CPU
    assert here[torch.tensor([2, 0])].tolist() == [2, 0]  # indices on the CPU
    assert (here.to("cuda:1") + 1).cpu().tolist() == [1, 2, 3]
    assert here.to("cuda") is here and here.to("cuda:1").device.index == 1 and here.cuda(0) is here
    weight = torch.nn.Linear(3, 2).to("cuda:1").weight
    assert isinstance(copy.deepcopy(weight), torch.nn.Parameter) and isinstance(weight, torch.nn.Parameter)
    product = torch.mm(here.half()[None], here.half()[:, None], out_dtype=torch.float32)
    assert product.dtype == torch.float32 and product.item() == 5


def test_its_random_numbers_are_others_than_the_cpus_and_follow_the_seed(gpus: Ledger) -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        draws.append([torch.rand(4, device=device).cpu() for device in ("cpu", "cuda:0", "cuda:1")])
    assert all(torch.equal(first, second) for first, second in zip(*draws, strict=True))
    assert not torch.equal(draws[0][0], draws[0][1])


def test_bytes_are_held_from_the_first_to_the_last_view(gpus: Ledger) -> None:
    first = torch.zeros(100, device="cuda:1")
    view = first[:10]
    assert gpus.held == [0, 400]
    del first
    assert gpus.held == [0, 400]
    del view
    assert gpus.held == [0, 0] and gpus.peaks == [0, 400]
    gpus.limit = 1000
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.zeros(251, device="cuda")
    assert torch.zeros(240, device="cuda").sum() == 0


def test_a_planted_mix_of_devices_is_found(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = calibration_on_several_questions(vlm)
    path = vlm.blocks[-1].ffn.consumer
    calibration.features([path])
    monkeypatch.setattr(UnpaddedRows, "of", lambda self, values: values.flatten(0, -2) * self._places[0].expand(1))
    with pytest.raises(RuntimeError, match="at least two devices"):
        Calibration(vlm, calibration.samples).features([path])


def test_a_planted_item_in_the_decode_loop_is_found(vlm: VLM, gpus: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def waits() -> int:
        gpus.waits.clear()
        tasks.answer(vlm, asked(["mini_gqa"], "validation", 4))
        return sum(gpus.ours().values())

    sound, look = waits(), decoding.Finite.__call__

    def planted(self: Any, input_ids: Any, scores: Any) -> Any:
        scores.isnan().any().item()
        return look(self, input_ids, scores)

    monkeypatch.setattr(decoding.Finite, "__call__", planted)
    assert waits() >= sound + 2


def test_a_planted_leak_is_found(vlm: VLM, gpus: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = vlm.blocks[0].ffn.consumer, []

    def left() -> int:
        gc.collect()
        before = gpus.held[1]
        calibration = calibration_on_several_questions(vlm)
        calibration.features([path])
        del calibration
        gc.collect()
        return gpus.held[1] - before

    left()  # what is cached for good
    assert left() == 0
    see = UnpaddedRows.of
    monkeypatch.setattr(UnpaddedRows, "of", lambda self, values: kept.append(values) or see(self, values))
    path = vlm.blocks[-1].ffn.consumer
    assert left() > 0


def test_afterwards_there_is_no_gpu(tiny_folder: Path) -> None:
    with installed():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert not torch.cuda.is_available() and torch.accelerator.current_accelerator() is None
    vlm = families.load(tiny_folder)
    loss = calibration_on_several_questions(vlm).gate_gradients()
    assert all(type(gradient) is torch.Tensor for gradient in loss.values())
