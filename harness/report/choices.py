"""What to choose: for each budget the best of all methods, kinds of units and recoveries, and how to make it.

    from harness.report.leaderboards import frame
    best(frame(Path("results/demo")), 0.5, scope="vision").command

The best of many is a little lucky: its accuracy on new questions is likely lower than the one that it was chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, cast

import pandas as pd

from harness.report.panels import NOTHING, budget_text, values
from harness.report.tables import escape as escaped
from harness.report.tables import markdown
from harness.text import TOO_FEW
from harness.types import DENSE, REGIMES, TOLERANCE, WIDTHS, InputError, kinds
from harness.types.kinds import in_words

FACTORS = (1.33, 2.0, 3.2, 5.0)  # how much cheaper: the rows of the table
HEADS = ("budget", "best choice", "cuts", "regime", "accuracy", "speedup", "weights MB", "make it")
LEGEND = (
    "For each budget the most accurate of all methods, kinds of units and recoveries: first without training, then "
    "with it if that is better. The best of many is a little lucky: expect slightly less on new questions. The command "
    "writes the model as a checkpoint."
)
TRAINING_FREE = ("none", "bias", "refit")  # the first words of such regimes


@dataclass(frozen=True)
class Choice:
    """The best trials of a budget. accuracy, lo, hi: fractions, means over seeds; speedup: a factor. NaN: unknown."""

    budget: float
    name: str  # method and variant
    regime: str
    units: str
    accuracy: float
    lo: float
    hi: float
    speedup: float
    weight_bytes: float
    trial: str  # id of the first seed's record

    @property
    def trains(self) -> bool:
        """Whether gates or weights are trained to make the model."""
        return self.regime.partition(" ")[0].rstrip(",") not in TRAINING_FREE

    @property
    def command(self) -> str:
        """The command that writes this model as a checkpoint."""
        return f"infoprune export {self.trial} my-model"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; an unknown figure is None."""
        values = {**asdict(self), "trains": self.trains, "command": self.command}
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}

    @property
    def cells(self) -> list[str]:
        """The cells under HEADS, as plain text."""
        known = not math.isnan(self.lo + self.hi)
        interval = f" [{100 * self.lo:.1f}, {100 * self.hi:.1f}]" if known else f" ({TOO_FEW})"
        return [
            budget_text(self.budget),
            self.name,
            in_words(self.units),
            self.regime,
            f"{100 * self.accuracy:.1f}{interval}",
            NOTHING if math.isnan(self.speedup) else f"{self.speedup:.2f}×",
            NOTHING if math.isnan(self.weight_bytes) else f"{self.weight_bytes / 1e6:,.1f}",
            self.command,
        ]


def best(frame: pd.DataFrame, budget: float, *, scope: str = "all", training: bool = True) -> Choice | None:
    """The most accurate choice that costs at most this share, by budget and by measurement; None if no trial does.

    Of the budgets on the board only the largest that fits counts, so that costs are equal. training: whether choices
    that need training count. Failed trials never count.
    """
    # Heads or FFNs alone: their budget is a share of their own cost. Other regimes: older forms of a method, or fewer
    # bits, which save no FLOPs.
    own = [set(kinds(units)) < set(WIDTHS) for units in frame.units]
    known = [regime.partition(" ")[0].rstrip(",") in REGIMES and ", int" not in regime for regime in frame.regime]
    frame = frame.loc[[not alone and named for alone, named in zip(own, known, strict=True)], :]
    rows: Any = frame[(frame.method != DENSE) & (frame.scope == scope) & (frame.status == "ok")]
    groups: dict[Any, list[Any]] = {}
    for row in rows.to_dict("records"):
        kept = max(row["budget"], row["flops_kept"])  # they differ where a budget is a share of time or parameters
        if kept <= budget * (1 + TOLERANCE) and not math.isnan(row["accuracy"]):
            groups.setdefault((row["curve"], row["regime"], row["units"], row["budget"]), []).append(row)
    choices = [_choice(seeds) for seeds in groups.values()]
    choices = [choice for choice in choices if training or not choice.trains]
    largest = max((choice.budget for choice in choices), default=None)
    return max((choice for choice in choices if choice.budget == largest), key=_order, default=None)


def table(frame: pd.DataFrame, scope: str = "all") -> list[Choice]:
    """The best choices at 1.33x, 2x, 3.2x and 5x of a board, without training and, where it is better, with it.

    Empty unless the board compares several kinds of units in this scope: otherwise its tables say it.
    """
    whole = frame[(frame.scope == scope) & (frame.method != DENSE)]
    if whole.units.nunique() < 2:
        return []
    rows: dict[Choice, None] = {}
    for factor in FACTORS:
        for training in (False, True):
            choice = best(frame, 1 / factor, scope=scope, training=training)
            if choice is not None and abs(choice.budget * factor - 1) < 0.02:
                rows[choice] = None
    return list(rows)


def text(choices: Sequence[Choice]) -> str:
    """The choices as a Markdown table."""
    rows = [[*map(escaped, choice.cells[:-1]), f"`{choice.cells[-1]}`"] for choice in choices]
    return markdown(HEADS, rows, "left")


def _choice(seeds: Sequence[Any]) -> Choice:
    first = min(seeds, key=lambda row: row["seed"])

    def mean(column: str) -> float:
        measured = values(seeds, column) if column in first else []
        return fmean(measured) if measured else math.nan

    figures = [mean(column) for column in ("accuracy", "accuracy_lo", "accuracy_hi", "latency_speedup", "weight_bytes")]
    return Choice(first["budget"], first["curve"], first["regime"], first["units"], *figures, trial=first["trial"])


def _order(choice: Choice) -> tuple[float, bool, str]:
    """The more accurate; of equals one without recovery, then any: speedups differ between runs."""
    return choice.accuracy, choice.regime == "none", choice.trial


def recommend(
    frame: pd.DataFrame, model: str, budget: float, *, scope: str = "all", training: bool = True
) -> tuple[str, Choice]:
    """The board that answers best for this model, and its best choice.

    Of several boards and settings at equal budgets, the one with the most accurate answer counts. Boards on the split
    dev count only if there are no others, because they chose options and judge nothing. Raises InputError if no board
    has a trial of the model in this scope within the budget.
    """
    if model not in set(frame.model):
        raise InputError.unknown("model", model, sorted(set(frame.model)), "no board has trials of it; ")
    answers, rows_of_model = [], cast(pd.DataFrame, frame[frame.model == model])
    for key, rows in rows_of_model.groupby(["board", "setting"]):
        choice = best(rows, budget, scope=scope, training=training)
        if choice is not None:
            judged = "dev" not in set(rows.split)
            answers.append((judged, choice.budget, choice.accuracy, str(cast(Any, key)[0]), choice))
    if not answers:
        raise InputError(
            f"model {model}: no board has a trial in scope {scope} that keeps at most {budget:g}"
            f"{'' if training else ' and needs no training'}; sweep a board with such a budget first"
        )
    *_, board, choice = max(answers, key=lambda answer: answer[:-1])
    return board, choice
