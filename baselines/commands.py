"""`infoprune theory` and `infoprune inspect heads|ffn|survivors`: the studied method's theorems and figures.

infoprune theory --out runs/theory
infoprune inspect heads --model mini-qwen2-vl --out runs/inspect

The measurements are in `baselines.infoprune`. This file imports nothing heavy at the top, because `infoprune --help`
loads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from harness.statistics import Calibration
    from harness.types import VLM, Component, Kind, Plan, Ranking

METHOD = "infoprune_free"  # what its figures rank with: one ranking serves all budgets
SEED = 0

Model = Annotated[str, typer.Option(help="A shipped model's name, a checkpoint folder or a hub id.")]
Out = Annotated[
    Path, typer.Option("--out", help="Folder for picture, CSV and JSON; a JSON with the same settings is reused.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Samples = Annotated[int, typer.Option(min=1, help="Calibration questions.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")]
Keep = Annotated[float, typer.Option("--budget", help="Share of the FLOPs of a component's heads or FFNs that stays.")]

inspect = typer.Typer(
    help="The figures of the InfoPrune paper for any model: PNG and CSV.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    add_completion=False,
)


def theory(
    model: Model = "mini-qwen2-vl",
    out: Out = Path("runs/theory"),
    samples: Samples = 1500,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """The three theorems of InfoPrune, measured: points, correlations, and where a claim does not hold."""
    from baselines.infoprune import figures, findings
    from baselines.infoprune.theory import DECODED, MASKS, measure
    from harness.cli.screen import out as screen
    from harness.files import save

    settings = {"masks": MASKS, "decoded": DECODED}
    with _loaded(model, device, out) as (vlm, track):
        record = _record(
            out / "theory.json",
            _settings(vlm, samples, settings),
            lambda: {"points": measure(vlm, _samples(samples), track)},
        )
    points = record["points"]
    _csv(out / "theory.csv", [{"theorem": name[-1]} | point for name in points for point in points[name]])
    figures.theory(record, out / "theory.png")
    save(out / "theory.md", findings.page(record))
    correlations = findings.summary(points)
    sentences = findings.findings(correlations, points)
    if json_:
        print(
            json.dumps(
                {"model": model, "samples": samples, "findings": sentences, "correlations": correlations}, indent=1
            )
        )
        return
    for theorem, title in findings.TITLES.items():
        screen.print(f"[bold]{title}[/bold]")
        for sentence in sentences[theorem]:
            screen.print(f"  {sentence.replace('**', '')}", soft_wrap=True, markup=False)
    _say(out, "theory.md", "theory.png", "theory.csv", "theory.json")


@inspect.command()
def heads(
    model: Model = "mini-qwen2-vl",
    out: Out = Path("runs/inspect"),
    samples: Samples = 192,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Figure 1: negative entropy of every head; beside it J, Taylor and the true damage, and how they agree."""
    from baselines.infoprune import figures
    from baselines.infoprune.inspect import heads as measure
    from harness.statistics import Calibration

    with _loaded(model, device, out) as (vlm, track):
        record = _record(
            out / "heads.json",
            _settings(vlm, samples, {}),
            lambda: {"rows": measure(vlm, Calibration(vlm, _samples(samples)), track)},
        )
    _csv(out / "heads.csv", record["rows"])
    figures.heads(record, out / "heads.png")
    _say(out, "heads.png", "heads.csv", "heads.json", record=record if json_ else None)


@inspect.command()
def ffn(
    model: Model = "mini-qwen2-vl",
    out: Out = Path("runs/inspect"),
    budget: Keep = 0.5,
    samples: Samples = 192,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Figure 2: row density of W1, W2 and W1 x W2; their spectra, and what the method chooses at a budget."""
    from baselines.infoprune import figures
    from baselines.infoprune.inspect import ffn as measure
    from harness.statistics import Calibration

    with _loaded(model, device, out) as (vlm, track):

        def make() -> dict[str, Any]:
            calibration = Calibration(vlm, _samples(samples))
            ranking = _rank(vlm, calibration)
            return {"rows": measure(vlm, ranking, _plans(vlm, calibration, ranking, "ffn", budget), track)}

        record = _record(out / "ffn.json", _settings(vlm, samples, {"budget": budget}), make)
    rows = [{key: value for key, value in row.items() if key != "spectrum"} for row in record["rows"]]
    _csv(out / "ffn.csv", rows)
    figures.ffn(record, out / "ffn.png")
    _say(out, "ffn.png", "ffn.csv", "ffn.json", record=record if json_ else None)


@inspect.command()
def survivors(
    model: Model = "mini-qwen2-vl",
    out: Out = Path("runs/inspect"),
    budget: Keep = 0.5,
    samples: Annotated[int, typer.Option(min=1, help="Calibration questions of each data set.")] = 128,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Figure 5: the heads that stay at a budget when the method is calibrated on each data set."""
    from baselines.infoprune import figures
    from baselines.infoprune.inspect import survivors as measure
    from harness import tasks
    from harness.statistics import Calibration

    with _loaded(model, device, out) as (vlm, track):

        def make() -> dict[str, Any]:
            rankings, plans = {}, {}
            for task in track(tasks.names(), "data sets"):
                calibration = Calibration(vlm, _samples(samples, task))
                rankings[task] = _rank(vlm, calibration)
                by_component = _plans(vlm, calibration, rankings[task], "heads", budget)
                plans |= {(task, component): plan for component, plan in by_component.items()}
            return {"rows": measure(vlm, rankings, plans)}

        record = _record(out / "survivors.json", _settings(vlm, samples, {"budget": budget}), make)
    _csv(out / "survivors.csv", record["rows"])
    figures.survivors(record, out / "survivors.png")
    _say(out, "survivors.png", "survivors.csv", "survivors.json", record=record if json_ else None)


# --- shared helpers ---------------------------------------------------------------------------------------


@contextmanager
def _loaded(model: str, device: str, out: Path) -> Iterator[tuple[VLM, Any]]:
    """The model, and a function that shows the progress of a loop on stderr; checks the flags first."""
    from harness import families, registry
    from harness.cli.screen import err
    from harness.cli.shared import check_device
    from harness.files import check_writable
    from harness.progress import progress_bar

    source = registry.model(model)
    check_device(device)
    check_writable(out, "--out")
    with progress_bar(err) as bar:
        loading = bar.add_task(f"loading {model}", total=1)
        vlm = families.load(source, name=model, device=device)
        registry.method(METHOD).check_model(vlm)
        bar.advance(loading)
        measuring = bar.add_task("measuring", total=None)
        yield vlm, lambda items, text: bar.track(items, description=text)
        bar.update(measuring, total=1, completed=1)


def _samples(samples: int, *names: str) -> Sequence[Any]:
    from harness import tasks
    from harness.types import Questions

    return tasks.samples(Questions(tuple(names or tasks.names()), "calibration"), samples, SEED)


def _settings(vlm: VLM, samples: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a measurement, with the method's defaults; a stored one with the same settings is reused."""
    from harness import registry

    settings = {**settings, "options": dict(registry.method(METHOD).options)}
    return {"model": vlm.name, "weights": vlm.weights_hash, "samples": samples, "seed": SEED, "settings": settings}


def _record(path: Path, settings: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The stored measurement if its model, samples and settings are the same; otherwise a new one, which is stored.

    Raises InputError if the file is not JSON.
    """
    from harness.cli.screen import err
    from harness.files import save
    from harness.types import InputError

    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON; delete it to measure anew") from error
        if isinstance(stored, dict) and all(stored.get(key) == value for key, value in settings.items()):
            err.print(f"{path}: measured before; delete it to measure anew", soft_wrap=True, markup=False)
            return stored
    record = {**settings, **make()}
    save(path, json.dumps(record, allow_nan=False) + "\n")
    return record


def _rank(vlm: VLM, calibration: Calibration) -> Ranking:
    from harness import registry

    return registry.method(METHOD).rank(vlm, calibration, seed=SEED)


def _plans(vlm: VLM, calibration: Calibration, ranking: Ranking, kind: Kind, budget: float) -> dict[str, Plan]:
    """One plan per component, each for a budget over that component alone."""
    from harness.pruning.solver import solve
    from harness.types import Budget

    components: set[Component] = {block.component for block in vlm.blocks}
    return {part: solve(vlm, ranking, Budget(part, budget, kind, calibration.extents)) for part in sorted(components)}


def _csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from harness.files import save
    from harness.report.spreadsheet import rows_text

    heads = list(dict.fromkeys(key for row in rows for key in row))
    save(path, rows_text(heads, [[row.get(head, "") for head in heads] for row in rows]))


def _say(out: Path, *names: str, record: Mapping[str, Any] | None = None) -> None:
    """The files that were written, or instead of them a record as JSON."""
    from harness.cli.screen import out as screen

    if record is not None:
        print(json.dumps(record, indent=1))
        return
    for name in names:
        screen.print(str(out / name), soft_wrap=True, markup=False)
