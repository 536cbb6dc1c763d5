"""`infoprune reference check`: measures every bar that the embedded model has to meet, with the harness itself.

    for bar in check(limit=150): print(bar.name, bar.ratio, bar.holds)

A model on which every method scores the same cannot rank methods. So the model must be accurate, and inaccurate with
blank images; random pruning must cost accuracy; and methods must differ. The trials come from two shipped boards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console

from harness import registry
from harness.bench.bar import Bar
from harness.progress import progress_bar
from harness.records.record import Record
from harness.trials import spec
from harness.types import DENSE

CONTROL = "random"  # the method of the bars on lost points
BOARDS = ("reference-check", "reference-check-heads")
MEGABYTES = 16


def check(*, limit: int | None = None, device: str = "cpu", console: Console | None = None) -> list[Bar]:
    """Run the boards and compare the figures with the bars.

    Raises RuntimeError if a trial fails.
    """
    from harness.trials.worker import Worker

    boards = [spec.read(name, **({"limit": limit} if limit else {})) for name in BOARDS]
    trials = [
        trial for place, board in enumerate(boards) for trial in board.trials() if trial.method != DENSE or place == 0
    ]
    worker = Worker(device)
    records: list[Record] = []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(trials))
        for trial in trials:
            bar.update(task, description=str(trial))
            record, _ = worker.run(trial)
            if record.error is not None:
                raise RuntimeError(f"{trial}: {record.error.message}")
            records.append(record)
            bar.advance(task)
    return bars(records, Path(registry.model(boards[0].model)))


def bars(records: Sequence[Record], model: Path) -> list[Bar]:
    """The bars from each trial's metrics; accuracies as fractions, losses in points, weights in MB."""
    dense = next(record.metrics for record in records if record.trial.method == DENSE)
    scores: dict[tuple[str, str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        trial = record.trial
        if trial.method != DENSE:
            scores[trial.units, trial.scope, trial.budget][trial.method].append(record.metrics["accuracy"]["mean"])
    bars = [Bar(f"accuracy, {name}", 0.90, task["accuracy"]) for name, task in dense["accuracy"]["tasks"].items()]
    for name, task in dense["floors"]["blank"]["tasks"].items():
        bars.append(Bar(f"accuracy with the image blanked, {name}", 0.50, task["accuracy"], at_most=True))
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e6
    bars.append(Bar("weights, MB", MEGABYTES, weights, at_most=True))

    def loss(units: str, scope: str, budget: float) -> float:
        return 100 * (dense["accuracy"]["mean"] - mean(scores[units, scope, budget][CONTROL]))

    for scope in ("vision", "language"):
        bars.append(Bar(f"points lost, {CONTROL} at 0.5 of {scope}", 5, loss("both", scope, 0.5)))
        bars.append(Bar(f"points lost, {CONTROL} at 0.3125 of {scope}", 15, loss("both", scope, 0.3125)))
        spread = [
            max(means) - min(means)
            for (units, component, _), methods in scores.items()
            if units == "both" and component == scope and (means := [mean(values) for values in methods.values()])
        ]
        bars.append(Bar(f"points between best and worst method, {scope}", 15, 100 * max(spread)))
    heads_loss = loss("heads", "vision", 0.25)
    return [*bars, Bar(f"points lost, {CONTROL} at a quarter of the heads, vision", 5, heads_loss)]
