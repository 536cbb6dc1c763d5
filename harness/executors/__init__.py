"""Where trials run: `local` in worker processes of this machine, `ray` on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from harness.types import Trial

if TYPE_CHECKING:
    import pyarrow

Result = tuple[dict[str, Any], "pyarrow.Table | None"]


class Worker(Protocol):
    """What runs trials on one device, one after the other; see `harness.runner.Worker`."""

    def run(self, trial: Trial, answers: Sequence[Any] = ()) -> Result: ...

    def share(self, trial: Trial) -> Any:
        """This trial's ranking, for other workers to adopt; None if there is nothing to share."""
        ...

    def adopt(self, ranking: Any) -> None: ...

    def answer(self, trial: Trial, part: tuple[int, int]) -> Any:
        """Answers to a share of this trial's questions (which of how many), for another worker's `run`, or None."""
        ...


Make = Callable[[str, int, Callable[[str], None]], Worker]  # device, workers that share the processor, progress


def real(device: str, jobs: int, progress: Callable[[str], None]) -> Worker:
    """The worker that loads models; importing it is what takes long."""
    from harness import runner

    if jobs > 1:
        runner.share_processor(jobs)
    return runner.Worker(device, progress)


def failed(trial: Trial, device: str, kind: str, message: str) -> Result:
    """The failure record of a trial whose worker did not live to make one."""
    from harness.runner import blank, fail

    made = blank(trial, device)
    fail(made, kind, message, "worker")
    return made, None


def late(trial: Trial, device: str, seconds: float) -> Result:
    """The failure record of a trial that was ended after so many seconds."""
    return failed(trial, device, "TimeLimit", f"not done within {seconds:g} s")
