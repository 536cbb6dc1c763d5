"""`infoprune gate` and `infoprune verdict`: did a change make things worse, and does a board's bar hold?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import rich.box
import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.shared import Json, err, out

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "refused": "magenta"}


def gate(
    baseline: Annotated[str, typer.Argument(help="Results folder, record file, or git revision of results.")],
    candidate: Annotated[str, typer.Argument(help="The same, with the change.")],
    margin: Annotated[float, typer.Option(help="Accuracy that may be lost, as a fraction.")] = 0.01,
    latency: Annotated[float, typer.Option(help="Time that may be taken, as a multiple of the baseline's.")] = 1.05,
    flops: Annotated[float, typer.Option(help="FLOPs that may be spent, as a multiple of the baseline's.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="Error rate of the tests.")] = 0.05,
    json_: Json = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there, for a build server.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown there, for a pull request.")] = None,
) -> None:
    """Compare the records of two revisions. Exit 0: pass, 1: fail, 3: inconclusive, 2: cannot be compared."""
    from harness.costs import Limits
    from harness.gate import EXIT, compare
    from harness.report import verdicts

    limits = Limits(margin, latency, flops, alpha)
    with _watched(few=50) as progress:
        found = compare(baseline, candidate, limits, progress)
    for path, made in ((junit, verdicts.junit), (markdown, verdicts.markdown)):
        if path is not None:
            verdicts.save(path, made(found))
    if json_:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        table = _table("trial", *verdicts.heads(found).values())
        for row in (*found.pooled, *found.trials):
            table.add_row(escape(row.name), *(_finding(verdicts, metric, row) for metric in verdicts.heads(found)))
        if table.row_count:
            out.print(table)
        for line in verdicts.remarks(found):
            out.print(escape(line), soft_wrap=True)
        out.print(f"gate: [bold {COLOURS[found.verdict]}]{found.verdict}[/]")
    raise typer.Exit(EXIT[found.verdict])


@contextmanager
def _watched(few: int) -> Iterator[Any]:
    """A progress bar that shows itself only if there are more than a few steps to wait for."""
    from harness.progress import progress_bar

    with ExitStack() as stack:
        bar = progress_bar(err)
        task = bar.add_task("", total=None)

        def progress(made: int, total: int) -> None:
            if total > few and not bar.live.is_started:
                stack.enter_context(bar)
            bar.update(task, completed=made, total=total)

        yield progress


def _finding(verdicts: Any, metric: Any, row: Any) -> str:
    finding = row.findings.get(metric)
    text = escape(verdicts.cell(metric, finding))
    return text if finding is None else f"[{COLOURS[finding.outcome]}]{text}[/]"


def verdict(
    board: Annotated[Path, typer.Argument(metavar="BOARD_FOLDER", help="Folder of one board's records.")],
    json_: Json = False,
) -> None:
    """Does the method under study reach its bar on this board? Exit 0 if every bar holds, else 1."""
    from harness.verdict import verdict as judge

    with _watched(few=2) as progress:
        bars = judge(board, progress)
    holds = all(one.holds for one in bars)
    if json_:
        print(json.dumps({"holds": holds, "bars": [one.to_json() for one in bars]}, indent=1, allow_nan=False))
    else:
        for one in bars:
            _bar(one)
    raise typer.Exit(0 if holds else 1)


def _bar(bar: Any) -> None:
    out.print(f"[bold]{escape(bar.name)}[/bold]  scope {bar.scope}, {escape(bar.regime)}, tuning {escape(bar.tuning)}")
    table = _table("budget", "accuracy", "against the best rival", "against random", "holds")
    for at in bar.budgets:
        accuracy = "–" if at.accuracy is None else f"{100 * at.accuracy:.1f}"
        cells = [_against(at.rival, at.rival and at.rival.name), _against(at.floor, "")]
        table.add_row(f"{at.budget:g}", accuracy, *cells, "[green]yes[/]" if at.holds else "[red]no[/]")
    out.print(table)
    others = [
        f"{one.name} {100 * one.mean:.1f}"
        + (f" (over {one.budgets} budgets, against {100 * one.own:.1f})" if one.budgets < len(bar.budgets) else "")
        for one in sorted(bar.rivals, key=lambda one: -one.mean)
    ]
    mean = "not known" if bar.mean is None else f"{100 * bar.mean:.1f}"
    out.print(escape(f"mean over the budgets: {mean}; {', '.join(others) or 'no rival'}"), soft_wrap=True)
    for note in bar.notes:
        out.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    held = sum(at.holds for at in bar.budgets)
    highest = "its mean is the highest" if bar.highest else "its mean is not the highest"
    said = f"{held} of {len(bar.budgets)} budgets hold, {bar.goal} needed; {highest}"
    out.print(f"{'[green]holds[/]' if bar.holds else '[red]does not hold[/]'}: {said}\n")


def _against(other: Any, name: str | None) -> str:
    if other is None:
        return "–"
    points = f"{100 * other.estimate:+.1f} [{100 * other.lo:+.1f}, {100 * other.hi:+.1f}]"
    return escape(f"{points} {name or ''}".strip())


def _table(*heads: str) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, no_wrap=place > 0, justify="left")
    return table
