"""`infoprune quality`: do the methods' scores order units as the model's loss does?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.screen import err, note, out
from harness.cli.shared import Device, Json, check_device, method_names, model_names
from harness.types import DENSE, InputError


def quality(
    model: Annotated[
        str, typer.Option(help="A shipped model's name, a checkpoint folder or a hub id.", autocompletion=model_names)
    ] = "mini-qwen2-vl",
    questions: Annotated[int, typer.Option(min=2, help="Of the dev split, that damage is measured on.")] = 256,
    channels: Annotated[
        int, typer.Option(min=0, help="FFN channels to leave out, one at a time; of heads all are.")
    ] = 200,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="A name or a Python file; may be given again. Without it, all methods.",
            autocompletion=method_names,
        ),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the outcome; damages found there are reused.")] = (
        Path("runs/quality")
    ),
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Rank correlation of every method's unit scores with the true damage of leaving units out."""
    from harness import families, registry
    from harness.checks.score_quality import damage_settings, measure
    from harness.files import check_writable
    from harness.progress import progress_bar
    from harness.report.quality import write

    names = methods or [name for name in registry.methods() if name != DENSE]
    contestants = [registry.method(name) for name in names]
    called = [method.name for method in contestants]
    for given, name in zip(names, called, strict=True):
        if called.count(name) > 1:
            raise InputError(f"--method {given}: {called.count(name)} methods are called {name!r}; name each once")
    source = registry.model(model)
    check_device(device)
    check_writable(out_dir, "--out")
    stored = _stored(out_dir / "quality.json")
    vlm = families.load(source, name=model, device=device)
    for line in vlm.notes:
        note(line)
    with progress_bar(err) as bar:
        wanted = damage_settings(vlm, questions, channels)
        measured = measure(vlm, names, wanted, lambda items, text: bar.track(items, description=text), stored)
    studied = frozenset(method.name for method in contestants if method.role == "studied")
    files = write(measured, out_dir, studied, methods or ())
    if json_:
        print(json.dumps(measured, indent=1))
        return
    for name, outcome in measured["methods"].items():
        if "error" in outcome:
            err.print(f"{name}: {outcome['error']}", soft_wrap=True, markup=False)
    for file in files:
        out.print(str(file), soft_wrap=True, markup=False)


def _stored(path: Path) -> dict[str, Any] | None:
    """An earlier outcome, whose damages may fit."""
    if not path.is_file():
        return None
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON; delete it to measure anew") from error
    return outcome if isinstance(outcome, dict) else None
