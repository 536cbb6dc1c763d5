"""Statistics of comparisons: intervals, paired differences, non-inferiority, power, ratios of times, hypervolumes."""

from harness.stats.best import against_best as against_best
from harness.stats.draws import Spread as Spread
from harness.stats.draws import between as between
from harness.stats.intervals import Estimate as Estimate
from harness.stats.intervals import clustered_interval as clustered_interval
from harness.stats.intervals import gap as gap
from harness.stats.paired import Answers as Answers
from harness.stats.paired import Difference as Difference
from harness.stats.paired import Pairs as Pairs
from harness.stats.paired import average as average
from harness.stats.paired import difference as difference
from harness.stats.paired import differences as differences
from harness.stats.paired import holm as holm
from harness.stats.paired import noninferiority as noninferiority
from harness.stats.paired import pair as pair
from harness.stats.power import minimum_detectable_effect as minimum_detectable_effect
from harness.stats.power import questions_needed as questions_needed
from harness.stats.ratios import Ratio as Ratio
from harness.stats.ratios import mean_ratio as mean_ratio
from harness.stats.ratios import quotient as quotient
