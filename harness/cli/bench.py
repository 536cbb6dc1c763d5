"""`infoprune bench`: the performance bars of the harness and of pruned models, measured here and now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from harness.cli.screen import err, out, shown_on, status, table
from harness.cli.shared import Device, Json, check_device


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer questions, smaller inputs.")] = False,
    device: Device = "cpu",
    only: Annotated[
        list[str] | None,
        typer.Option(help="A part, such as speed or compression; an unknown one shows all. May be given again."),
    ] = None,
    json_: Json = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the bars there as JSON.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Also fail if a bar is worse than in this earlier --out.")
    ] = None,
) -> None:
    """Measure every performance bar as a ratio, in one run. Exit 1 if one that was measured does not hold."""
    from harness.bench.performance import bars, report, worse
    from harness.files import check_file, save
    from harness.machine.facts import facts

    check_device(device)
    if out_file is not None:
        check_file(out_file, "--out")
    if against is not None:
        worse([], against, facts(device), quick)  # an unusable file is refused before the bench runs for minutes
    with status("bench") as line:
        results = list(bars(quick=quick, device=device, progress=shown_on(line), only=only or ()))
    content = report(results, device, quick)
    if out_file is not None:
        save(out_file, json.dumps(content, indent=1) + "\n")
    if json_:
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        _show(results)
    lines = [] if against is None else worse(results, against, content["env"], quick)
    for text in lines:
        err.print(f"[red]worse:[/red] {escape(text)}", soft_wrap=True)
    if lines or any(bar.holds is False for bar in results):
        raise typer.Exit(1)


def _show(results: list[Any]) -> None:
    shown = table("bar", "ratio", "interval", "goal", "holds")
    for bar in results:
        if bar.ratio is None:
            shown.add_row(escape(bar.name), "–", f"run: {escape(bar.command)}", bar.bound, "not measured")
            continue
        interval = "" if bar.lo is None else f"{bar.lo:.3g} to {bar.hi:.3g}"
        verdict = "[green]yes[/]" if bar.holds else "[red]no[/]" if bar.sound else "[red]no: not sound[/]"
        shown.add_row(escape(bar.name), f"{bar.ratio:.3g}", interval, bar.bound, verdict)
    out.print(shown)
