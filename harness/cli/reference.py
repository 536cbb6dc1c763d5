"""`infoprune reference train` and `check`: the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.shared import Device, Json, Limit, check_device, err, out


def train(
    out_dir: Annotated[Path, typer.Option("--out", help="Checkpoint folder; a run found there goes on.")],
    images: Annotated[int | None, typer.Option(min=1, help="Length of the run (default: the recipe's).")] = None,
    data: Annotated[Path | None, typer.Option(help="Train on this parquet file instead of generated scenes.")] = None,
    start: Annotated[Path | None, typer.Option(help="Checkpoint folder to begin from, to fine-tune.")] = None,
    device: Device = "cpu",
) -> None:
    """Train the embedded model anew, or fine-tune it on a parquet file; resumable."""
    from harness.reference.run import run

    check_device(device)
    run(out_dir, images=images, data=data, start=start, device=device, console=err)


def check(limit: Limit = None, device: Device = "cpu", json_: Json = False) -> None:
    """Measure every bar of the embedded model: accuracy, blindness, size, discrimination. Exit 0 only if all hold."""
    from harness.reference.check import check as measure

    bars = measure(limit=limit, device=device, console=err)
    if json_:
        print(json.dumps({"bars": [bar.to_json() for bar in bars]}, indent=1))
    else:
        table = Table("bar", "measured", "goal", "holds")
        for bar in bars:
            table.add_row(bar.name, f"{bar.ratio:.4g}", bar.bound, "yes" if bar.holds else "[red]no[/red]")
        out.print(table)
    if not all(bar.holds for bar in bars):
        raise typer.Exit(1)
