"""What a method's own training costs is what is taken off a tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import registry
from harness.statistics.calibration import Calibration
from harness.types import VLM, Budget, Tuning
from tests.support.calibrations import calibration_on_one_question
from tests.support.layouts import extents_of

TRAINED = [name for name in registry.methods() if registry.method(name).steps({})]


def questions_learned(vlm: VLM, name: str, steps: int) -> int:
    """The questions that go through the model with gradients while the method ranks."""
    seen = 0

    def note(module: object, args: object, kwargs: dict[str, Any]) -> None:
        nonlocal seen
        seen += len(kwargs["input_ids"]) * torch.is_grad_enabled()

    one = calibration_on_one_question(vlm).samples
    samples = [one[i % len(one)] for i in range(64)]  # four whole batches of a tuning
    method = registry.method(name)
    budget = Budget("language", 0.6, "both", extents_of(vlm))
    with vlm.model.register_forward_pre_hook(note, with_kwargs=True):
        method.rank(vlm, Calibration(vlm, samples, batch_size=Tuning.batch), seed=0, budget=budget, steps=steps)
    return seen


@pytest.mark.parametrize("name", TRAINED)
def test_the_steps_taken_off_a_tuning_have_the_questions_of_the_training(tiny: VLM, name: str) -> None:
    more = questions_learned(tiny, name, 14) - questions_learned(tiny, name, 4)
    method = registry.method(name)
    assert more > 0 and more == (method.steps({"steps": 14}) - method.steps({"steps": 4})) * Tuning.batch


def test_a_method_without_a_batch_of_its_own_has_that_of_a_tuning(tmp_path: Path) -> None:
    text = "REGIME = 'trained'\n\ndef rank(vlm, calibration, *, seed, steps: int = 30): ...\n"
    for batch, steps in (("", 30), ("BATCH = 4\n", 8)):  # 7.5, rounded up
        path = tmp_path / f"gates{steps}.py"
        path.write_text(batch + text)
        assert registry.method(str(path)).steps({}) == steps
