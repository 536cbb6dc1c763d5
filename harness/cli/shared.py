"""What the commands share: the flags that mean the same everywhere, their checks, and what a shell completes."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from harness import registry
from harness.trials import yaml_text
from harness.types import InputError


def complete(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What a shell offers for a word that is one of these names."""

    def begin(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return begin


board_names, method_names = complete(registry.boards), complete(registry.methods)
model_names = complete(lambda: [*registry.MODELS, *registry.geometries()])

Results = Annotated[Path, typer.Option(help="Folder of records, one sub-folder a board.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions per task; the same ones on every machine.")]
Inline = Annotated[bool, typer.Option("--inline", help="Run in this process instead of a worker process.")]
Jobs = Annotated[int, typer.Option(min=1, help="Workers at a time; with --device cuda spread over all GPUs.")]
MOST = 1e6  # of a limit: what waits for a worker takes no infinity, nor milliseconds beyond 32 bits
TimeLimit = Annotated[float | None, typer.Option(min=0.1, help="Seconds a trial may take; then it is a failure.")]
MemoryLimit = Annotated[
    float | None, typer.Option(min=0.1, help="GB that a trial's worker may use (resident); what Ray sets aside for it.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")]


def check_device(device: str) -> None:
    from harness.machine import devices  # loads torch

    devices.check_device(device, "--device")


def check_workers(inline: bool, jobs: int, time_limit: float | None, memory_limit: float | None) -> None:
    """Raise InputError for a limit that is none, and for what needs worker processes where there are to be none."""
    for option, limit in (("--time-limit", time_limit), ("--memory-limit", memory_limit)):
        if limit is not None and not limit <= MOST:  # NaN, too
            raise InputError(f"{option} {limit:g}: use at most {MOST:g}, or leave it out for no limit")
    asked = {"--jobs": jobs > 1, "--time-limit": time_limit is not None, "--memory-limit": memory_limit is not None}
    for option, given in asked.items():
        if inline and given:
            raise InputError(f"{option}: needs worker processes; leave out --inline")


class Interrupted(Exception):
    """The user stopped a command that keeps what was finished and goes on from there."""


@contextmanager
def resumable() -> Iterator[None]:
    """Raise Interrupted for an interrupt inside; as a decorator, of such a command."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted from error


def homes_expanded(app: typer.Typer) -> None:
    """Let every command of the app read `~` in what it is given as a home folder: paths, TASK@FOLDER, key=value too."""
    for info in app.registered_commands:
        info.callback = _expanded(info.callback) if info.callback else None
    for group in app.registered_groups:
        if group.typer_instance:
            homes_expanded(group.typer_instance)


def _expanded(command: Callable[..., Any]) -> Callable[..., Any]:
    def expand(value: Any) -> Any:
        if isinstance(value, list):
            return [expand(item) for item in value]
        if isinstance(value, Path):
            return Path(os.path.expanduser(value))
        if not isinstance(value, str):
            return value
        # At the start, and after the signs that a path may follow.
        return "".join(map(os.path.expanduser, re.split(r"(?<=[@=])(?=~/)", value)))

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        return command(**{name: expand(value) for name, value in given.items()})

    return call


def pairs(texts: Iterable[str] | None, option: str) -> dict[str, Any]:
    """The names and YAML values of an option that is given as name=value, perhaps several times."""
    values = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"{option} {text}: use name=value")
        if name in values:
            raise InputError(f"{option} {text}: {name} is given twice; give it once")
        values[name] = yaml_value(value, f"{option} {name}=")
    return values


def yaml_value(text: str, where: str) -> Any:
    """The value of a text in YAML."""
    return yaml_text.value(text, f"{where}{text}: ")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown until the first trial is done"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
