"""What a method may read about a model: input moments, gradients and attention entropies on calibration samples."""

from harness.statistics.calibration import Calibration as Calibration
from harness.statistics.gradients import answer_logits as answer_logits
from harness.statistics.moments import Lazy as Lazy
from harness.statistics.moments import Moment as Moment
from harness.statistics.output_energy import output_energy as output_energy
from harness.statistics.unit_weights import linears as linears
from harness.statistics.unit_weights import unit_sums as unit_sums
