"""What heads and channels send on: scores of widths for methods that are about something else, such as layers.

output_energy(calibration)["language.2", "ffn"]    # (count,)
"""

from __future__ import annotations

from harness.statistics.calibration import Calibration
from harness.types import Kind


def output_energy(calibration: Calibration) -> dict[tuple[str, Kind], tuple[float, ...]]:
    """The mean squared output of each unit, by block and kind: (count,), for heads and channels.

    A channel sends its activation times a column of the consumer, so its mean squared output is exact. A head's is the
    sum over its columns, as if they did not correlate.
    """
    vlm = calibration.vlm
    pairs = vlm.select("all")
    features = calibration.features(block.units(kind).consumer for block, kind in pairs)
    energies: dict[tuple[str, Kind], tuple[float, ...]] = {}
    for block, kind in pairs:
        units = block.units(kind)
        weight = vlm.model.get_parameter(f"{units.consumer}.weight").detach().double()
        columns = weight.square().sum(0) * features[units.consumer].square
        energies[block.name, kind] = tuple(columns.reshape(units.count, -1).sum(1).tolist())
    return energies
