"""The harness from Python: `import harness` offers these functions, and loads nothing heavy until one is called.

    import harness

    harness.sweep("demo", limit=50)
    harness.pareto(harness.results())

Names that the command line accepts are accepted here: shipped boards and models, methods, paths. What cannot be used
raises `harness.types.InputError`, one line that says what would be right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness import registry
from harness.types import GREEDY, VLM, Currency, Generation, InputError, Plan, Scope, UnitKinds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from harness.records.record import Record

log = logging.getLogger(__name__)


class Pruned(NamedTuple):
    """A pruned model, and the plan that says what of the dense one it kept: `model, plan = prune(...)`."""

    model: VLM
    plan: Plan


def load(
    model: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    random_weights: bool = False,
    generation: Generation = GREEDY,
) -> VLM:
    """Load a model: a shipped name, a checkpoint folder or a hub id. `.model` and `.processor` are transformers' own.

    revision: of a hub id. device_map: accelerate's, in place of `device`. random_weights: the geometry without its
    weights. generation: what is added to greedy decoding, as on a board. Raises InputError if there is no such model,
    or no family for its type.
    """
    from harness import families
    from harness.machine.devices import check_device

    check_device(device)
    return families.load(
        registry.model(model),
        name=model,
        dtype=dtype,
        device=device,
        revision=revision,
        attention=attention,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        random_weights=random_weights,
        generation=generation,
    )


def prune(
    model: str,
    *,
    method: str | None = None,
    budget: float = 0.5,
    currency: Currency = "flops",
    scope: Scope | None = None,
    units: UnitKinds | None = None,
    options: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    samples: int = 128,
    image: tuple[int, int] = (448, 448),
    dtype: str = "float32",
    revision: str | None = None,
    seed: int = 0,
    tuning: str | Mapping[str, Any] = "none",
    shares: Mapping[str, float] | None = None,
    tokens: str | Mapping[str, Any] | None = None,
    sequential: bool = False,
    device: str = "cpu",
    **overrides: Any,
) -> Pruned:
    """Prune one model as `infoprune prune` does, in memory: nothing is written.

    method: a registered name or a Python file; None: `infoprune_free`, the method under study without training. budget:
    the share of the scope's FLOPs (or parameters, or time: `currency`) that stays. scope: None: vision, or all where
    visual tokens go. units: as on a board; None: what the method cuts. options: the method's. tasks, samples: where the
    calibration questions come from (tasks, parquet files or folders; by default the embedded sets) and how many there
    are. image: width and height of the image whose FLOPs are budgeted. tuning, shares, tokens, sequential: as of a
    contestant on a board: `tuning="refit"`, `shares={"layers": 0.5, "ffn": 0.5}`, `tokens="pool"`. overrides: values of
    other keys of a board: `device_map="auto"`, `trust_remote_code=True`. Raises InputError for what cannot be used, and
    for a budget that cannot be met.
    """
    from harness.checkpoints import export
    from harness.machine.devices import check_device
    from harness.trials.worker import Worker

    check_device(device)
    trial = export.single_trial(
        model,
        registry.default_method() if method is None else method,
        budget,
        currency=currency,
        scope=scope,
        units=units,
        options=options,
        tasks=tasks,
        samples=samples,
        image=image,
        dtype=dtype,
        revision=revision,
        seed=seed,
        tuning=tuning,
        shares=shares,
        tokens=tokens,
        sequential=sequential,
        overrides=overrides,
    )
    pruned = Worker(device, _logged).prune(trial)
    return Pruned(pruned.vlm, pruned.plan)


def sweep(
    board: str | Path | Mapping[str, Any],
    *,
    results: str | Path = "results",
    device: str = "cpu",
    jobs: int = 1,
    **overrides: Any,
) -> list[Record]:
    """Run a board and return the records of all its trials, in the board's order; what has a record is not run again.

    board: a shipped name, a YAML file, or the content of one. overrides: other values for keys of the board, as
    `infoprune sweep --set` takes them: `limit=50`, `**{"calibration.samples": 16}`. jobs: 1 runs in this process, more
    in so many worker processes, for which a script needs `if __name__ == "__main__":`. A trial that failed has a
    record too, with its `error`. `logging` at level INFO says how far it is.
    Raises InputError for a board that cannot be used, before anything runs.
    """
    from harness.machine.devices import check_device
    from harness.records import record
    from harness.trials import spec
    from harness.trials.sweep import sweep as run

    check_device(device)
    if isinstance(board, Mapping):
        checked = spec.check(spec.override(board, overrides, "board: "), Path("of this mapping"))
    else:
        checked = spec.read(str(board), **overrides)
    outcome = run(
        checked,
        Path(results),
        device=device,
        inline=jobs == 1,
        jobs=jobs,
        progress=_logged,
    )
    paths = (outcome.folder / f"{trial.id}.json" for trial in checked.trials())
    return [record.read(path) for path in paths if path.is_file()]


def results(path: str | Path = "results") -> pd.DataFrame:
    """The records of a results folder, or of one board's folder in it, as a table: a row a trial, the columns of
    board.csv. The path of such a file gives the same table, with figures of six digits.

    Accuracies and kept shares are fractions, speedups and reductions factors, `ranking_s` seconds; a column that
    a board has no use for is empty there. Raises InputError if there are no records.
    """
    from harness.report import frame

    return frame(Path(path))


def pareto(frame: pd.DataFrame) -> Figure:
    """Accuracy over FLOPs kept and over measured speedup, from what `results` returns; a notebook shows it at once.

    The frame may be filtered before: `pareto(frame[frame.scope == "vision"])`. Without accuracy, as with random
    weights, the plot is of speedup over FLOPs kept. `.savefig("pareto.svg")` writes it. Raises InputError if the frame
    lacks a column.
    """
    from harness.report import plots

    try:
        return plots.draw(frame)
    except KeyError as error:
        raise InputError(f"pareto: the frame has no column {error}; rows may be left out, columns may not") from error


def _logged(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
    """Progress, as lines of the log."""
    log.info("%s%s", "" if done is None else f"{done} trials are done; ", text)
