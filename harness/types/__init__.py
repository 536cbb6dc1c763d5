"""Plain, frozen values that all packages share. This one imports no other and no torch.

The path of a trial: a `VLM` has `Block`s, a block has `Units` (heads and FFN channels) and may go as a whole, a method
turns them into a `Ranking`, the solver turns a ranking and a `Budget` into a `Plan`, and each `Trial` yields a record.
"""

from harness.types.errors import InputError as InputError
from harness.types.errors import wanted as wanted
from harness.types.kinds import BOTH as BOTH
from harness.types.kinds import KINDS as KINDS
from harness.types.kinds import WIDTHS as WIDTHS
from harness.types.kinds import Kind as Kind
from harness.types.kinds import UnitKinds as UnitKinds
from harness.types.kinds import check_shares as check_shares
from harness.types.kinds import kinds as kinds
from harness.types.kinds import unit_kinds as unit_kinds
from harness.types.metric import ANSWERED as ANSWERED
from harness.types.metric import Column as Column
from harness.types.metric import MetricContext as MetricContext
from harness.types.metric import Result as Result
from harness.types.metric import at as at
from harness.types.model import GREEDY as GREEDY
from harness.types.model import SCOPES as SCOPES
from harness.types.model import VLM as VLM
from harness.types.model import Block as Block
from harness.types.model import Component as Component
from harness.types.model import Extent as Extent
from harness.types.model import Generation as Generation
from harness.types.model import Rows as Rows
from harness.types.model import Sample as Sample
from harness.types.model import Scope as Scope
from harness.types.model import Units as Units
from harness.types.plan import TOLERANCE as TOLERANCE
from harness.types.plan import Align as Align
from harness.types.plan import Budget as Budget
from harness.types.plan import Choice as Choice
from harness.types.plan import Currency as Currency
from harness.types.plan import Keep as Keep
from harness.types.plan import Plan as Plan
from harness.types.plan import TokenPlan as TokenPlan
from harness.types.plan import differs as differs
from harness.types.ranking import Additive as Additive
from harness.types.ranking import Dense as Dense
from harness.types.ranking import Global as Global
from harness.types.ranking import LowRank as LowRank
from harness.types.ranking import Option as Option
from harness.types.ranking import Options as Options
from harness.types.ranking import Ordinal as Ordinal
from harness.types.ranking import Ranking as Ranking
from harness.types.ranking import Replacement as Replacement
from harness.types.ranking import Score as Score
from harness.types.ranking import TokenRule as TokenRule
from harness.types.ranking import hull as hull
from harness.types.trial import DENSE as DENSE
from harness.types.trial import REGIMES as REGIMES
from harness.types.trial import CalibrationSpec as CalibrationSpec
from harness.types.trial import Chooser as Chooser
from harness.types.trial import ImageConversion as ImageConversion
from harness.types.trial import LatencySpec as LatencySpec
from harness.types.trial import Loading as Loading
from harness.types.trial import Questions as Questions
from harness.types.trial import ReferenceInput as ReferenceInput
from harness.types.trial import Trial as Trial
from harness.types.trial import Tuning as Tuning
from harness.types.trial import regime as regime
from harness.types.trial import short_hash as short_hash
