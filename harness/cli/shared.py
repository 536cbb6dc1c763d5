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
Jobs = Annotated[int, typer.Option(min=1, help="Workers at a time; with --device cuda spread over all GPUs.")]
TimeLimit = Annotated[float | None, typer.Option(min=0.1, help="Seconds a trial may take; then it is a failure.")]
MemoryLimit = Annotated[
    float | None, typer.Option(min=0.1, help="GB that a trial's worker may use (resident); what Ray sets aside for it.")
]
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


def check_workers(inline: bool, jobs: int, time_limit: float | None, memory_limit: float | None) -> None:
    """Raise InputError for what needs worker processes where there are to be none."""
    asked = {"--jobs": jobs > 1, "--time-limit": time_limit is not None, "--memory-limit": memory_limit is not None}
    for option, given in asked.items():
        if inline and given:
            raise InputError(f"{option}: needs worker processes; leave out --inline")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "no finished trial to estimate the time from"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
