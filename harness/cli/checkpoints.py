"""`infoprune prune`, `export` and `load`: one smaller checkpoint to take away."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from harness.cli.screen import note, out, shown_on, status, table
from harness.cli.shared import (
    Device,
    Json,
    Results,
    check_device,
    method_names,
    model_names,
    pairs,
    yaml_value,
)
from harness.types import Currency, InputError, Scope

Out = Annotated[Path, typer.Argument(help="The checkpoint's folder, new or empty.")]


def prune(
    model: Annotated[
        str, typer.Argument(help="A shipped name, a checkpoint folder or a hub id.", autocompletion=model_names)
    ],
    method: Annotated[
        str,
        typer.Option(help="A name that `infoprune list methods` shows, or a Python file.", autocompletion=method_names),
    ],
    budget: Annotated[
        str, typer.Option(help="The share of the scope's FLOPs that stays, or params=0.5, or latency=0.6 of its time.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="The checkpoint's folder, new or empty.")],
    scope: Annotated[
        Scope | None,
        typer.Option(help="Which blocks the budget is about; by default vision, or all where visual tokens go."),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(help="What is removed: both, or kinds such as ffn+layers; by default all it ranks."),
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="name=value of the method; may be given again.")] = None,
    tuning: Annotated[
        str | None, typer.Option(help="Recovery after the cut: bias, refit, or settings such as '{method: lora}'.")
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option(help="kind=share of the saving, such as layers=0.5; may be given again.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="A method that chooses visual tokens beside this one.")] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Rank each block after those before it are cut.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(help="Calibration task, parquet file or folder; may be given again.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration questions.")] = 128,
    image: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the image whose FLOPs are budgeted.")] = "448x448",
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, a tag or a branch.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of any other key of a board: device_map=auto; may be given again."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the method and of the draw of calibration questions.")] = 0,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Prune one model and write it as a checkpoint, without a board."""
    from harness import registry, tasks
    from harness.checkpoints import export

    check_device(device)
    currency, keep = _budget(budget)
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", image)
    if sides is None:
        raise InputError(f"--image {image}: use WIDTHxHEIGHT, such as 448x448")
    trial = export.single_trial(
        model,
        method,
        keep,
        currency=currency,
        scope=scope,
        units=units,
        options=pairs(option, "--option"),
        tasks=data or (),
        samples=samples,
        image=(int(sides[1]), int(sides[2])),
        dtype=dtype,
        revision=revision,
        seed=seed,
        tuning="none" if tuning is None else yaml_value(tuning, "--tuning "),
        shares=pairs(share, "--share"),
        tokens=tokens,
        sequential=sequential,
        overrides=pairs(set_, "--set"),
    )
    if data is None and model not in registry.MODELS:
        note(f"no --data: the calibration questions are the embedded sets' ({', '.join(tasks.names())})")
    with status("starting") as line:
        done = export.prune(trial, out_dir, device=device, progress=shown_on(line))
    _show(done, json_)


def export(
    row: Annotated[
        str, typer.Argument(help="A record's id, or BOARD/METHOD/SCOPE/BUDGET[/SEED]; METHOD may add its regime.")
    ],
    out_dir: Out,
    results: Results = Path("results"),
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Write the model of a board's row as a checkpoint with a model card."""
    from harness.checkpoints.export import export as run

    check_device(device)
    with status("starting") as line:
        done = run(results, row, out_dir, device=device, progress=shown_on(line))
    _show(done, json_)


def load(
    plan: Annotated[Path, typer.Argument(help="The plan.json of an exported checkpoint, or a record.")],
    model: Annotated[
        str,
        typer.Argument(
            help="The dense model: a shipped name, a checkpoint folder or a hub id.", autocompletion=model_names
        ),
    ],
    out_dir: Out,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Cut a dense model as a plan says and write it as a checkpoint."""
    from harness.checkpoints.export import load as run

    check_device(device)
    with status("starting") as line:
        done = run(plan, model, out_dir, device=device, progress=shown_on(line))
    _show(done, json_)


def _budget(text: str) -> tuple[Currency, float]:
    """What it is a share of, and the share: 0.5, flops=0.5, params=0.5, latency=0.6."""
    name, sign, share = text.rpartition("=")
    currency: Any = name if sign else "flops"
    if currency not in get_args(Currency):
        raise InputError.unknown("currency", currency, get_args(Currency), f"--budget {text}: ")
    try:
        return currency, float(share)
    except ValueError as error:
        raise InputError(f"--budget {text}: use a share, 0.5, or CURRENCY=SHARE, such as latency=0.6") from error


def _show(done: Any, json_: bool) -> None:
    exported = asdict(done)
    if json_:
        print(json.dumps(exported, indent=1))
        return
    shown = table("", "before", "after", "kept", texts=1)
    labels = {
        "macs": "multiply-adds, scope",
        "total_macs": "multiply-adds, prefill",
        "params": "parameters",
        "bytes": "weights, MB",
    }
    for key, label in labels.items():
        before, after = exported["before"][key], exported["after"][key]
        sizes = [f"{size / 1e6:,.2f}" if key == "bytes" else f"{size:,}" for size in (before, after)]
        shown.add_row(label, *sizes, f"{after / before:.4f}")
    out.print(shown)
    for line in done.notes:
        note(line)
    how = "with trust_remote_code=True" if done.form == "custom code" else "as the stock class"
    out.print(f"{done.folder}: {done.form}; plain transformers loads it {how}", soft_wrap=True, markup=False)
