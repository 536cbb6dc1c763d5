"""`infoprune prune`, `export` and `load`: one smaller checkpoint to take away."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import yaml
from rich.console import Console
from rich.table import Table

from harness.cli.shared import Device, Json, Results, check_device, err, out
from harness.types import Currency, InputError, Scope

Out = Annotated[Path, typer.Argument(help="The checkpoint's folder, new or empty.")]


def prune(
    model: Annotated[str, typer.Argument(help="A shipped name, a checkpoint folder or a hub id.")],
    method: Annotated[str, typer.Option(help="See `infoprune list methods`.")],
    budget: Annotated[
        str, typer.Option(help="The share of the scope's FLOPs that stays, or params=0.5, or latency=0.6 of its time.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="The checkpoint's folder, new or empty.")],
    scope: Annotated[Scope, typer.Option(help="Which blocks the budget is about.")] = "vision",
    option: Annotated[list[str] | None, typer.Option(help="name=value of the method; may be given again.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Calibration task, parquet file or folder; may be given again.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration questions.")] = 128,
    image: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the image whose FLOPs are budgeted.")] = "448x448",
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, a tag or a branch.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Prune one model and write it as a checkpoint, without a board."""
    from harness import registry, spec, tasks
    from harness.export import prune as run

    check_device(device)
    if method == "none":
        raise InputError("--method none: is the model as it is; there is nothing to prune")
    if data is None and model not in registry.MODELS:
        err.print(f"no --data: the calibration questions are the embedded sets' ({', '.join(tasks.names())})")
    currency, share = _budget(budget)
    width, _, height = image.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InputError(f"--image {image}: use WIDTHxHEIGHT, such as 448x448")
    content = {
        "name": "prune",
        "model": model,
        "methods": [{"method": method, "options": dict(map(_pair, option or []))}],
        "budgets": [share],
        "currency": currency,
        "scopes": [scope],
        "units": registry.method(method).units,
        "tasks": data or tasks.names(),
        "metrics": ["flops"],
        "calibration": {"samples": samples},
        "reference_input": {"image": [int(width), int(height)]},
        "dtype": dtype,
        "revision": revision,
    }
    trial = spec.check(content, Path("of these flags")).trials()[-1]
    with _status() as status:
        done = run(replace(trial, seed=seed), out_dir, device=device, progress=status.update)
    _show(done, json_)


def export(
    row: Annotated[str, typer.Argument(help="A record's id, or BOARD/METHOD/SCOPE/BUDGET[/SEED].")],
    out_dir: Out,
    results: Results = Path("results"),
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Write the model of a board's row as a checkpoint with a model card."""
    from harness.export import export as run

    check_device(device)
    with _status() as status:
        done = run(results, row, out_dir, device=device, progress=status.update)
    _show(done, json_)


def load(
    plan: Annotated[Path, typer.Argument(help="The plan.json of an exported checkpoint, or a record.")],
    model: Annotated[str, typer.Argument(help="The dense model: a shipped name, a checkpoint folder or a hub id.")],
    out_dir: Out,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Cut a dense model as a plan says and write it as a checkpoint."""
    from harness.export import load as run

    check_device(device)
    with _status() as status:
        done = run(plan, model, out_dir, device=device, progress=status.update)
    _show(done, json_)


def _budget(text: str) -> tuple[str, float]:
    """What it is a share of, and the share: 0.5, flops=0.5, params=0.5, latency=0.6."""
    currency, sign, share = text.rpartition("=")
    currency = currency if sign else "flops"
    if currency not in get_args(Currency):
        raise InputError.unknown("currency", currency, get_args(Currency), f"--budget {text}: ")
    try:
        return currency, float(share)
    except ValueError as error:
        raise InputError(f"--budget {text}: use a share, 0.5, or CURRENCY=SHARE, such as latency=0.6") from error


def _pair(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"--option {text}: use name=value")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--option {text}: the value is no YAML scalar") from error


def _status() -> Any:
    return err.status("starting") if err.is_terminal else Console(quiet=True).status("")


def _show(done: Any, json_: bool) -> None:
    found = asdict(done)
    if json_:
        print(json.dumps(found, indent=1))
        return
    table = Table("", "before", "after", "kept")
    labels = {
        "macs": "multiply-adds, scope",
        "total_macs": "multiply-adds, prefill",
        "params": "parameters",
        "bytes": "weights, MB",
    }
    for key, label in labels.items():
        before, after = found["before"][key], found["after"][key]
        shown = [f"{size / 1e6:,.2f}" if key == "bytes" else f"{size:,}" for size in (before, after)]
        table.add_row(label, *shown, f"{after / before:.4f}")
    out.print(table)
    how = "with trust_remote_code=True" if done.form == "custom code" else "as the stock class"
    out.print(f"{done.folder}: {done.form}; plain transformers loads it {how}", soft_wrap=True, markup=False)
