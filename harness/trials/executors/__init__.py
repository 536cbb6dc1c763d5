"""Two ways to run trials: `local` in worker processes of this machine, `ray` on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from harness.progress import Progress
from harness.types import Trial

if TYPE_CHECKING:
    from harness.trials.result import Result


class Worker(Protocol):
    """The interface of workers, which run trials on one device one by one; see `harness.trials.worker.Worker`."""

    def run(self, trial: Trial, answers: Sequence[Any] = ()) -> Result: ...

    def share(self, trial: Trial) -> Any:
        """This trial's ranking, for other workers to adopt; None if it cannot be shared."""
        ...

    def adopt(self, ranking: Any) -> None: ...

    def answer(self, trial: Trial, part: tuple[int, int]) -> Any:
        """Answers to one share of this trial's questions, for another worker's `run`; None if they cannot be shared.

        part: number of the share, and how many shares exist.
        """
        ...


MakeWorker = Callable[[str, int, Progress], Worker]  # arguments: device, number of workers on this processor, progress


def make_worker(device: str, jobs: int, progress: Progress) -> Worker:
    """The worker for real models. The imports are local because they load torch and lmms-eval."""
    from harness.tasks import suite  # noqa: F401 (the first trial would load it)
    from harness.trials import worker

    if jobs > 1:
        worker.share_processor(jobs)
    return worker.Worker(device, progress)


def failed(trial: Trial, device: str, kind: str, message: str) -> Result:
    """The failure record of a trial whose worker died first."""
    from harness.trials.result import failure

    return failure(trial, device, kind, message)


def late(trial: Trial, device: str, seconds: float) -> Result:
    """The failure record of a trial that passed its time limit."""
    return failed(trial, device, "TimeLimit", f"not done within {seconds:g} s")
