"""`infoprune bench`: the performance bars of the harness and of pruned models, measured here and now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import rich.box
import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.shared import Device, Json, check_device, err, out


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer questions, smaller inputs.")] = False,
    device: Device = "cpu",
    json_: Json = False,
    save: Annotated[Path | None, typer.Option("--out", help="Write the bars there as JSON.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Also fail if a bar is worse than in this earlier --out.")
    ] = None,
) -> None:
    """Measure every performance bar as a ratio, in one run. Exit 1 if one that was measured does not hold."""
    from harness.bench import bars, measured, worse
    from harness.machine import facts

    check_device(device)
    if against is not None:
        worse([], against, facts(device), quick)  # said before the minutes that it takes
    with err.status("bench") as status:
        found = list(bars(quick=quick, device=device, progress=lambda text: status.update(escape(text))))
    made = measured(found, device, quick)
    if save is not None:
        from harness.files import put

        put(save, lambda temporary: temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8"))
    if json_:
        print(json.dumps(made, indent=1, allow_nan=False))
    else:
        _show(found)
    lost = [] if against is None else worse(found, against, made["env"], quick)
    for line in lost:
        err.print(f"[red]worse:[/red] {escape(line)}", soft_wrap=True)
    if lost or any(bar.holds is False for bar in found):
        raise typer.Exit(1)


def _show(found: list[Any]) -> None:
    table = Table("bar", "ratio", "interval", "goal", "holds", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for bar in found:
        if bar.ratio is None:
            table.add_row(escape(bar.name), "–", f"run: {escape(bar.command)}", bar.bound, "not measured")
            continue
        interval = "" if bar.lo is None else f"{bar.lo:.3g} to {bar.hi:.3g}"
        verdict = "[green]yes[/]" if bar.holds else "[red]no[/]" if bar.sound else "[red]no: not sound[/]"
        table.add_row(escape(bar.name), f"{bar.ratio:.3g}", interval, bar.bound, verdict)
    out.print(table)
