"""What the commands share: the two consoles, the flags that mean the same everywhere, and how a duration reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.types import InputError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Results = Annotated[Path, typer.Option(help="Folder of records, one sub-folder a board.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions per task; the same ones on every machine.")]
Inline = Annotated[bool, typer.Option("--inline", help="Run in this process instead of a worker process.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")]


def check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise InputError(f"--device {device}: use cpu, cuda or cuda:N")
    if int(number or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "no finished trial to estimate the time from"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
