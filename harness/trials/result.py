"""The result of a trial: its record with the samples, or the record of a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness import registry
from harness.machine.facts import facts
from harness.records.record import Code, Failure, MethodFacts, Record
from harness.trials.methods import methods_of
from harness.types import REGIMES, Trial, regime

if TYPE_CHECKING:
    import pyarrow


class Result(NamedTuple):
    """A trial's record, and the answers that are stored beside it."""

    record: Record
    samples: pyarrow.Table | None = None


def contestant(trial: Trial) -> MethodFacts:
    """What the code says of a trial's method now."""
    (method, _), *others = used = methods_of(trial)
    own = max((one.regime(options) for one, options in used), key=REGIMES.index)
    roles = {one.role for one, _ in used}
    role = "studied" if "studied" in roles else "floor" if roles == {"floor"} else "reference"
    resolved = {**method.options, **trial.options}
    for chooser, options in others:
        resolved |= {f"tokens.{key}": value for key, value in {**chooser.options, **options}.items()}
    if trial.control != "none" and own != "trained":  # a control takes only the widths of the plan
        own = "none"
    return MethodFacts(
        title=method.title,
        variant=trial.variant,
        role=role if trial.control == "none" else "reference",
        regime=regime(own, trial.tuning),
        resolved=resolved,
        file=trial.method_file,
    )


def failure(trial: Trial, device: str, kind: str, message: str) -> Result:
    """The record of a trial that failed outside its worker, so without measurements."""
    error = Failure(kind, message[:2000], "worker")
    return Result(Record(trial, contestant(trial), error, env=facts(device), code=code()))


def code() -> Code:
    """Version of this package, and the git revision it runs from, if any."""
    return Code(**registry.code())
