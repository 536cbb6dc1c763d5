"""Two figures that decide speed and size on a GPU: how often the host waits for it, and the peak of its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baselines import dgmr, infoselect
from harness import families, tasks
from harness.metrics.memory import weight_bytes
from harness.statistics import moments
from harness.statistics.calibration import Calibration
from harness.statistics.unit_weights import block_linears
from harness.types import VLM
from tests.support.accelerator.ledger import Ledger
from tests.support.calibrations import calibration_on_several_questions
from tests.support.question_files import asked

BATCH = 3  # questions of a batch of the calibration


@pytest.fixture
def vlm(gpus: Ledger, tiny_folder: Path) -> VLM:
    return families.load(tiny_folder, device="cuda")


def counted(gpus: Ledger, call: Callable[[], object]) -> int:
    """The waits that our code asks for during a call."""
    gpus.waits.clear()
    call()
    return sum(gpus.ours().values())


def test_answers_wait_per_batch_and_not_per_token(vlm: VLM, gpus: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.tasks import decoding

    numbers = {}
    for longest in (4, 16):
        monkeypatch.setattr(decoding, "LONGEST", longest)
        numbers[longest] = counted(gpus, lambda: tasks.answer(vlm, asked(["mini_gqa"], "validation", 4)))
        assert numbers[longest] > 0
    assert numbers[4] == numbers[16], dict(gpus.ours())


@pytest.mark.parametrize(
    ("statistic", "most"),
    [("moments", 6), ("features", 6), ("gate_gradients", 11), ("output_gradients", 12), ("attention_entropy", 8)],
)
def test_calibration_waits_a_few_times_per_batch(vlm: VLM, gpus: Ledger, statistic: str, most: int) -> None:
    """The waits of one more batch, however many Linears are asked about."""
    paths = [path for block in vlm.blocks for path in block_linears(block)]
    samples = calibration_on_several_questions(vlm).samples

    def waits(batches: int) -> int:
        calibration = Calibration(vlm, samples[: BATCH * batches], 1 if statistic == "attention_entropy" else BATCH)
        calls: dict[str, Callable[[], object]] = {
            "moments": lambda: calibration.moments(paths),
            "features": lambda: calibration.features(paths),
            "gate_gradients": calibration.gate_gradients,
            "output_gradients": lambda: calibration.visit_output_gradients(paths, lambda path, rows: None),
            "attention_entropy": calibration.attention_entropy,
        }
        return counted(gpus, calls[statistic])

    more = waits(2) - waits(1)
    assert 0 < more <= most * (BATCH if statistic == "attention_entropy" else 1), dict(gpus.ours())


@pytest.mark.parametrize("channels", [128, 256])
def test_picks_of_channels_are_not_waited_for(gpus: Ledger, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, 64, generator=generator)
    on_gpu, blocks = weight.to("cuda"), channels // dgmr.BLOCK
    rounds = channels // weight.shape[1]
    assert counted(gpus, lambda: dgmr._picks(on_gpu)) <= 4 * max(blocks, rounds) + 2
    second = (weight @ weight.T).double() + torch.eye(channels, dtype=torch.float64)
    arguments = second.to("cuda"), weight.double().T.to("cuda")
    assert counted(gpus, lambda: infoselect.pursuit(*arguments)) <= 2
    assert dgmr._picks(on_gpu) == dgmr._picks(weight)
    assert torch.equal(infoselect.pursuit(*arguments)[0].cpu(), infoselect.pursuit(second, weight.double().T)[0])


@pytest.mark.parametrize("share", [4, 1])
def test_the_peak_of_moments_is_as_planned(vlm: VLM, gpus: Ledger, share: int) -> None:
    """The weights, the room for moments, and the activations of a batch; not the moments of all Linears."""
    paths = [path for block in vlm.blocks for path in block_linears(block)]
    sizes = [moments.size(vlm.model, path) for path in paths]
    samples = calibration_on_several_questions(vlm).samples
    room = max(sum(sizes) // share, max(sizes))

    def peak(calibration: Calibration, see: Callable[[], object]) -> int:
        gpus.reset_peaks()
        see()
        return gpus.peaks[0] - weight_bytes(vlm)

    def look() -> None:
        for moment in Calibration(vlm, samples, 1, room=room).moments(paths).values():
            del moment

    activations = peak(vlm, lambda: Calibration(vlm, samples, 1).features(paths))  # type: ignore[arg-type]
    product = max(sizes)  # of one batch, before it is added
    assert peak(vlm, look) <= room + 2 * product + activations  # type: ignore[arg-type]
