"""The contract of a metric: the columns that it declares, and the context that it measures in.

COLUMNS = (Column("flips", "flips", better="lower", form="{:.3f}"),)

def measure(pruned, dense, trial, context: MetricContext) -> dict: ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from harness.types.errors import InputError
from harness.types.model import VLM
from harness.types.trial import Trial

if TYPE_CHECKING:
    import pyarrow
    import torch

Result = Mapping[str, Any]  # the return value of `measure`, as the record stores it
T = TypeVar("T")
ANSWERED = ("accuracy", "floors", "fidelity")  # metrics that need the model's answers


def at(*path: str) -> Callable[[Result, Trial], Any]:
    """A reader of the value at this path of a metric's result; it gives None where the path ends early."""

    def read(result: Result, trial: Trial) -> Any:
        value: Any = result
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return read


@dataclass(frozen=True)
class Column:
    """One figure of a metric, and how tables, CSV, JSON and the page's axes show it.

    `name` is the column of board.csv. `title` is the head in the table of trials; without a title the figure appears in
    the data only. `read` gets the figure from the metric's result; the default is the value under `name`.
    """

    name: str
    title: str = ""
    unit: str = ""  # share, factor, points, bytes, seconds ...; shown on axes
    better: Literal["higher", "lower", ""] = ""  # if set, the page offers the column as an axis
    form: str = "{:.3g}"  # its format in the table
    scale: float = 1.0  # shown value / stored value
    interval: tuple[str, str] | None = None  # columns of its lower and upper bound
    axis: str = ""  # its label on an axis; the default is the title with the unit
    legend: str = ""  # a sentence for the reader of the table
    read: Callable[[Result, Trial], Any] | None = None

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower", ""):
            raise InputError(f"column {self.name!r}: better is {self.better!r}; it must be 'higher', 'lower' or ''")

    def value(self, result: Result, trial: Trial) -> float | None:
        """The figure as a number; None where the result has none, or one that no float holds."""
        try:
            value = (self.read or at(self.name))(result, trial)
            known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            return float(value) if known else None
        except OverflowError:
            return None

    @property
    def label(self) -> str:
        """The label of the column on an axis."""
        return self.axis or (f"{self.title or self.name} ({self.unit})" if self.unit else self.title or self.name)


class MetricContext(Protocol):
    """The services that a metric gets besides the two models and the trial."""

    replies: Mapping[Any, Any]  # the pruned model's answers from other workers, by batch of questions

    def progress(self, text: str = "", *, done: int | None = None, total: int | None = None) -> None:
        """Report the current work, and how much of it is done if that is counted."""
        ...

    def inputs(self, vlm: VLM, batch: int = 1, image_size: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
        """The reference input, repeated `batch` times and encoded for this model. `image_size` replaces its size."""
        ...

    def stages(
        self, vlm: VLM, batch: int = 1, image_size: tuple[int, int] | None = None
    ) -> dict[str, Callable[[], Any]]:
        """The timed stages (vision, language, all, decode) of this model on the reference input."""
        ...

    def machine(self, vlm: VLM) -> Any:
        """Measured rates of this model's device, per second: `matmul_flops` and `copy_bytes`."""
        ...

    def once(self, vlm: VLM, key: Any, make: Callable[[], T]) -> T:
        """The result of `make`, cached under `key` while the model lives, for other metrics and trials too."""
        ...

    def attach_samples(self, table: pyarrow.Table) -> None:
        """Store these answers beside the record."""
        ...
