"""`infoprune recommend`: the best way to make a model this much cheaper, from the records."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.markup import escape

from harness.cli.screen import out, shown_on, status, table
from harness.cli.shared import Device, Json, Results, board_names, check_device, model_names
from harness.types import InputError, Scope


def recommend(
    budget: Annotated[float, typer.Option(help="The share of the scope's FLOPs that may stay, such as 0.5.")],
    model: Annotated[
        str, typer.Option(help="The model, as the boards name it.", autocompletion=model_names)
    ] = "mini-qwen2-vl",
    scope: Annotated[Scope, typer.Option(help="Which blocks the budget is about.")] = "all",
    training: Annotated[bool, typer.Option(help="Whether a choice may need training.")] = True,
    board: Annotated[str | None, typer.Option(help="Only this board's records.", autocompletion=board_names)] = None,
    results: Results = Path("results"),
    out_dir: Annotated[Path | None, typer.Option("--out", help="Make the model, in this new or empty folder.")] = None,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Name the most accurate choice of a budget among all methods, kinds of units and recoveries, from the records."""
    from harness.report import choices, leaderboards

    if not 0 < budget <= 1:
        raise InputError(f"--budget {budget:g}: use a share in (0, 1], such as 0.5")
    if board is not None and not (results / board).is_dir():
        raise InputError(f"--board {board}: no such board in {results}")
    frame = leaderboards.frame(results if board is None else results / board)
    name, choice = choices.recommend(frame, model, budget, scope=scope, training=training)
    if out_dir is not None:
        from harness.checkpoints.export import export

        check_device(device)
        with status("starting") as line:
            export(results, choice.trial, out_dir, device=device, progress=shown_on(line))
    command = choice.command if results == Path("results") else f"{choice.command} --results {quote(str(results))}"
    if json_:
        print(json.dumps({"board": name, **choice.to_json(), "command": command}, indent=1, allow_nan=False))
        return
    shown = table("", f"board {name}", texts=2)
    for head, cell in zip(choices.HEADS, [*choice.cells[:-1], command], strict=True):
        shown.add_row(head, escape(cell))
    out.print(shown)
    if out_dir is not None:
        out.print(f"written: {out_dir}", soft_wrap=True, markup=False)
