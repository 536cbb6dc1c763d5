"""`infoprune gate`, `verdict` and `compare`: is it worse, does the bar hold, and how do two boards differ?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from harness.cli.screen import err, note, out, table
from harness.cli.shared import Json, Results, board_names
from harness.text import TOO_FEW

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
    from harness.files import check_file, save
    from harness.report import verdicts
    from harness.verdicts.gate import EXIT, compare
    from harness.verdicts.regressions import Limits

    limits = Limits(margin, latency, flops, alpha)
    for option, path in (("--junit", junit), ("--markdown", markdown)):
        if path is not None:
            check_file(path, option)
    with _watched(few=50) as progress:
        outcome = compare(baseline, candidate, limits, progress)
    for path, render in ((junit, verdicts.junit), (markdown, verdicts.markdown)):
        if path is not None:
            save(path, render(outcome))
    if json_:
        print(json.dumps(outcome.to_json(), indent=1, allow_nan=False))
    else:
        shown = table("trial", *verdicts.heads(outcome).values())
        for row in (*outcome.pooled, *outcome.trials):
            shown.add_row(escape(row.name), *(_finding(verdicts, metric, row) for metric in verdicts.heads(outcome)))
        if shown.row_count:
            out.print(shown)
        for line in verdicts.remarks(outcome):
            out.print(escape(line), soft_wrap=True)
        out.print(f"gate: [bold {COLOURS[outcome.verdict]}]{outcome.verdict}[/]")
    raise typer.Exit(EXIT[outcome.verdict])


@contextmanager
def _watched(few: int) -> Iterator[Any]:
    """A progress bar that shows itself only if there are more than a few steps to wait for."""
    from harness.progress import progress_bar

    with ExitStack() as stack:
        bar = progress_bar(err)
        task = bar.add_task("", total=None)

        def progress(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
            if (total or 0) > few and not bar.live.is_started:
                stack.enter_context(bar)
            bar.update(task, completed=done, total=total)

        yield progress


def _finding(verdicts: Any, metric: Any, row: Any) -> str:
    finding = row.findings.get(metric)
    text = escape(verdicts.cell(metric, finding))
    return text if finding is None else f"[{COLOURS[finding.outcome]}]{text}[/]"


def verdict(
    board: Annotated[
        str, typer.Argument(help="A board of --results, or a folder of its records.", autocompletion=board_names)
    ],
    results: Results = Path("results"),
    json_: Json = False,
) -> None:
    """Does the method under study reach its bar on this board? Exit 0 if every bar holds, else 1."""
    from harness.verdicts.standing import verdict as judge

    with _watched(few=2) as progress:
        bars = judge(board, results, progress)
    holds = all(bar.holds for bar in bars)
    if json_:
        print(json.dumps({"holds": holds, "bars": [bar.to_json() for bar in bars]}, indent=1, allow_nan=False))
    else:
        for bar in bars:
            _bar(bar)
    raise typer.Exit(0 if holds else 1)


def _bar(bar: Any) -> None:
    out.print(f"[bold]{escape(bar.name)}[/bold]  scope {bar.scope}, regime {escape(bar.regime)}")
    shown = table("budget", "accuracy", "lost (at most)", "against the best rival", "against the floor", "holds")
    for at in bar.budgets:
        accuracy = "–" if at.accuracy is None else f"{100 * at.accuracy:.1f}"
        cells = [_lost(at.loss), *(_against(other, other and other.name) for other in (at.rival, at.floor))]
        shown.add_row(f"{at.budget:g}", accuracy, *cells, "[green]yes[/]" if at.holds else "[red]no[/]")
    out.print(shown)
    others = [
        f"{rival.name} {100 * rival.mean:.1f}"
        + (
            f" (over {rival.budgets} budgets, against {100 * rival.own:.1f})"
            if rival.budgets < len(bar.budgets)
            else ""
        )
        for rival in sorted(bar.rivals, key=lambda rival: -rival.mean)
    ]
    mean = "not known" if bar.mean is None else f"{100 * bar.mean:.1f}"
    out.print(escape(f"mean over the budgets: {mean}; {', '.join(others) or 'no rival'}"), soft_wrap=True)
    if bar.overall:
        margin = _against(bar.overall, f"against {bar.overall.name} over all budgets")
        out.print(f"[bold]{bar.standing}[/]: {margin}", soft_wrap=True)
    if any(at.loss for at in bar.budgets):
        down = "at no budget" if bar.harmless is None else f"down to {bar.harmless:g}"
        out.print(f"a loss of a point is ruled out {down}", soft_wrap=True)
    for remark in bar.notes:
        out.print(f"[yellow]note:[/] {escape(remark)}", soft_wrap=True)
    held = sum(at.holds for at in bar.budgets)
    highest = "its mean is the highest" if bar.highest else "its mean is not the highest"
    summary = f"{held} of {len(bar.budgets)} budgets hold, {bar.goal} needed; {highest}"
    out.print(f"{'[green]holds[/]' if bar.holds else '[red]does not hold[/]'}: {summary}\n")


def _lost(loss: Any) -> str:
    if loss is None:
        return "–"
    return f"{100 * loss.estimate:z.1f} ({100 * loss.bound:z.1f})" if math.isfinite(loss.bound) else f"({TOO_FEW})"


def _against(other: Any, name: str | None) -> str:
    if other is None:
        return "–"
    interval = f"[{100 * other.lo:+.1f}, {100 * other.hi:+.1f}]" if math.isfinite(other.lo) else f"({TOO_FEW})"
    points = f"{100 * other.estimate:+.1f} {interval}"
    return escape(f"{points} {name or ''}".strip())


def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Board of --results, folder or file of records, or git revision.",
            autocompletion=board_names,
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.", autocompletion=board_names)],
    results: Results = Path("results"),
    out_dir: Annotated[Path | None, typer.Option("--out", help="Write a page and a Markdown table there.")] = None,
    json_: Json = False,
) -> None:
    """Two boards side by side: what differs in their circumstances, and how far their trials differ. No verdict."""
    from harness.files import check_writable
    from harness.report import compare as report
    from harness.verdicts.compare import compare as beside

    if out_dir is not None:
        check_writable(out_dir, "--out")
    with _watched(few=50) as progress:
        comparison = beside(first, second, results, progress)
    files = report.write(comparison, out_dir) if out_dir is not None else []
    if json_:
        print(json.dumps(comparison.to_json(), indent=1, allow_nan=False))
        return
    for side, source, about in zip("AB", comparison.sides, comparison.about, strict=True):
        out.print(f"[bold]{side}[/bold]  {escape(source)}: {escape(about)}", soft_wrap=True)
    differing = [fact for fact in comparison.facts if fact.differing]
    if differing:
        shown = table("differs", "A", "B", "trials")
        for fact in differing:
            shown.add_row(*map(escape, (fact.name, fact.first, fact.second, str(fact.differing))))
        out.print(shown)
    alike = [fact.name for fact in comparison.facts if not fact.differing]
    out.print(escape(f"the same: {', '.join(alike) or 'nothing'}"), soft_wrap=True)
    for line in report.summary(comparison):
        out.print(escape(line), soft_wrap=True)
    means = [panel for panel in comparison.panels if panel.changes]
    for title, rows in (("mean of", means), ("trial", comparison.rows[: report.SHOWN])):
        heads, lines = report.table(rows)
        shown = table(title, *heads, texts=1)
        for cells in lines:
            texts = (f"[bold]{escape(text)}[/]" if text.endswith(report.STANDS) else escape(text) for text in cells)
            shown.add_row(*texts)
        if lines:
            out.print(shown)
    if (more := len(comparison.rows) - report.SHOWN) > 0:
        note(f"{more} trials with smaller differences are in --out and --json", out)
    for file in files:
        out.print(str(file), soft_wrap=True, markup=False)
