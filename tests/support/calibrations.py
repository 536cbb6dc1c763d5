"""Calibrations on made samples, and each sample by itself."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from harness.families import encode
from harness.statistics.calibration import Calibration
from harness.types import VLM, Sample

ANSWERS = ["two", "red", "yes", "a large circle", "no", "three", "blue"]


def calibration_on_one_question(vlm: VLM) -> Calibration:
    """Eight square pictures, all with the same answer; the question is cut at different lengths."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 64, 64, 3), generator=generator, dtype=torch.uint8)
    samples = [
        Sample(Image.fromarray(image.numpy()), "How many stars?"[: 9 + i], "two") for i, image in enumerate(pixels)
    ]
    return Calibration(vlm, samples, batch_size=3)


def calibration_on_several_questions(vlm: VLM) -> Calibration:
    """Seven wide pictures, whose answers have different lengths."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(ANSWERS), 56, 84, 3), generator=generator, dtype=torch.uint8)
    questions = ["How many stars?", "What colour is it?", "Is there a small square left of the circle?"]
    samples = [Sample(Image.fromarray(p.numpy()), questions[i % 3], ANSWERS[i]) for i, p in enumerate(pixels)]
    return Calibration(vlm, samples, batch_size=3)


def encoded_alone(vlm: VLM, calibration: Calibration) -> list[dict[str, Any]]:
    """Each sample encoded by itself, with labels, and so without padding."""
    return [encode(vlm.processor, [[s.image]], [s.question], [s.answer]) for s in calibration.samples]
