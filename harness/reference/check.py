"""`infoprune reference check`: every bar the embedded model has to meet, measured by the harness itself.

    for bar in check(limit=150): print(bar.name, bar.ratio, bar.holds)

An exam that everyone passes ranks nobody: besides being good, and blind without its images, the model must lose
accuracy when it is pruned at random, and methods must come out apart. The trials are two shipped boards.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from harness import registry, spec
from harness.bars import Bar
from harness.progress import progress_bar
from harness.types import Trial

CONTROL = "random"  # what every bar on discrimination is about
BOARDS = ("reference-check", "reference-check-heads")
MEGABYTES = 16


def check(*, limit: int | None = None, device: str = "cpu", console: Console | None = None) -> list[Bar]:
    """Run the boards and hold the figures against the bars.

    Raises RuntimeError when a trial fails.
    """
    from harness.runner import Worker

    boards = [spec.read(name, **({"limit": limit} if limit else {})) for name in BOARDS]
    trials = [
        trial for place, board in enumerate(boards) for trial in board.trials() if trial.method != "none" or place == 0
    ]
    worker = Worker(device)
    results: list[tuple[Trial, dict[str, Any]]] = []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(trials))
        for trial in trials:
            bar.update(task, description=f"{trial.method} {trial.scope} {trial.budget:g}")
            made, _ = worker.run(trial)
            if made["status"] != "ok":
                raise RuntimeError(f"{trial.method} {trial.scope} {trial.budget:g}: {made['error']['message']}")
            results.append((trial, made["metrics"]))
            bar.advance(task)
    return bars(results, Path(registry.model(boards[0].model)))


def bars(results: list[tuple[Trial, dict[str, Any]]], model: Path) -> list[Bar]:
    """The bars from each trial's metrics; accuracies as fractions, losses in points, weights in MB."""
    dense = next(metrics for trial, metrics in results if trial.method == "none")
    scores: dict[tuple[str, str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial, metrics in results:
        if trial.method != "none":
            scores[trial.units, trial.scope, trial.budget][trial.method].append(metrics["accuracy"]["mean"])
    found = [Bar(f"accuracy, {name}", 0.90, own["accuracy"]) for name, own in dense["accuracy"]["tasks"].items()]
    for name, own in dense["floors"]["blank"]["tasks"].items():
        found.append(Bar(f"accuracy with the image blanked, {name}", 0.50, own["accuracy"], at_most=True))
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e6
    found.append(Bar("weights, MB", MEGABYTES, weights, at_most=True))

    def loss(units: str, scope: str, budget: float) -> float:
        return 100 * (dense["accuracy"]["mean"] - mean(scores[units, scope, budget][CONTROL]))

    for scope in ("vision", "language"):
        found.append(Bar(f"points lost, {CONTROL} at 0.5 of {scope}", 5, loss("both", scope, 0.5)))
        found.append(Bar(f"points lost, {CONTROL} at 0.3125 of {scope}", 15, loss("both", scope, 0.3125)))
        spread = [
            max(means) - min(means)
            for (units, own, _), methods in scores.items()
            if units == "both" and own == scope and (means := [mean(values) for values in methods.values()])
        ]
        found.append(Bar(f"points between best and worst method, {scope}", 15, 100 * max(spread)))
    lost = loss("heads", "vision", 0.25)
    return [*found, Bar(f"points lost, {CONTROL} at a quarter of the heads, vision", 5, lost)]
