"""What methods are calibrated on here, but where a module says otherwise."""

from __future__ import annotations

import pytest

from harness.statistics.calibration import Calibration
from harness.types import VLM
from tests.support.calibrations import calibration_on_one_question


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_one_question(tiny)
