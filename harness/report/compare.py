"""A comparison of two sides as one page and as Markdown; neither needs a script.

    write(compare("demo", "HEAD~1:results/demo", Path("results")), Path("compared"))

The page plots the differences per panel: a row per method, a column per budget, a bar for each interval. Equal
comparisons give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from harness.files import save
from harness.report import tables
from harness.report.page import fill
from harness.report.panels import NOTHING, budget_text, marked
from harness.report.tables import markdown
from harness.text import plain
from harness.verdicts.compare import METRICS, SAME, Change, Comparison, Panel, Row

FILES = ("index.html", "README.md")
STANDS = "*"  # marks an interval that excludes that nothing differs
SHOWN = 20  # rows that are seen at once; a page folds the others away
HEADS = ("accuracy A", "B", "points", "stands on", "speedup A", "B", "factor", "ms A", "B", "factor", "FLOPs kept")
PLOTTED = {
    "accuracy": ("Accuracy", "Points of accuracy, B minus A", "more accurate"),
    "speedup": ("Speed", "The speedup over dense, B's as a multiple of A's", "faster against its own dense model"),
}
HIGH = 14  # pixels of a bar's line


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write FILES into the folder, and return their paths. Raises InputError if they cannot be written."""
    for name, text in zip(FILES, (page(comparison), readme(comparison)), strict=True):
        save(out / name, text)
    return [out / name for name in FILES]


# --- words --------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row | Panel]) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns that say something, and each row's name and cells in them."""
    lines = [_cells(row) for row in rows]
    filled = [place for place, cells in enumerate(zip(*lines, strict=True)) if set(cells) != {NOTHING}]
    named = [[row.name, *(line[place] for place in filled)] for row, line in zip(rows, lines, strict=True)]
    return [HEADS[place] for place in filled], named


def _cells(row: Row | Panel) -> list[str]:
    """The cells under HEADS; of a panel, those of its means."""
    cells = []
    for metric, form in (("accuracy", "{:.1f}"), ("speedup", "{:.2f}"), ("time", "{:.3g}")):
        change = row.changes.get(metric)
        scale = 100 if metric == "accuracy" else 1
        sides = (change.first, change.second) if change else (None, None)
        cells += [NOTHING if value is None else form.format(scale * value) for value in sides]
        cells.append(distance(change) if change else NOTHING)
        if metric == "accuracy":
            cells.append(change.how if change else NOTHING)
    kept = row.changes.get("flops")
    sides = [NOTHING if value is None else f"{value:.4f}" for value in (kept.first, kept.second)] if kept else [NOTHING]
    return [*cells, " and ".join(dict.fromkeys(sides))]


def distance(change: Change) -> str:
    """The difference with its interval, and the mark if that excludes that nothing differs."""
    if change.estimate is None:
        return NOTHING

    def form(value: float) -> str:
        return f"{100 * value:+z.1f}" if change.metric == "accuracy" else f"{value:.2f}"

    text = form(change.estimate)
    if change.lo is not None and change.hi is not None and change.how != SAME:
        text += f" [{form(change.lo)}, {form(change.hi)}]"
    elif change.why:
        text += f" ({change.why})"
    return text + (f" {STANDS}" if change.stands else "")


def summary(comparison: Comparison) -> list[str]:
    """Lines for the reader: how many trials were matched, on what, and what their differences stand on."""
    only = [len(names) for names in comparison.only]
    matched = len(comparison.rows) + len(comparison.failed)
    lines = [
        f"{matched} trials matched, {only[0]} only in A, {only[1]} only in B",
        f"matched on: {', '.join(comparison.keys)}",
    ]
    for metric in PLOTTED:
        counts = comparison.counts(metric)
        if counts["intervals"]:
            lines.append(
                f"{metric}: {counts['stand']} of {counts['intervals']} intervals exclude that nothing differs "
                f"({STANDS}); where nothing differs, about {counts['intervals'] / 20:.2g} would by chance"
            )
        for how, what in (
            (SAME, "are the same record in both"),
            ("unpaired", "were asked other questions of the same tasks: their intervals are unpaired, so wider"),
            ("two machines", "were timed on two machines: their factors are the machines', not the code's"),
        ):
            if counts[how]:
                lines.append(f"{metric}: {counts[how]} trials {what}")
        lines += [
            f"{metric}: {number} trials not compared: {why}" for why, number in comparison.refusals(metric).items()
        ]
    return [*lines, *comparison.failed]


# --- Markdown -----------------------------------------------------------------------------------------------


def readme(comparison: Comparison) -> str:
    """The comparison as Markdown, with every matched trial in one table."""
    esc = tables.escape
    facts = [[esc(fact.name), esc(fact.first), esc(fact.second), str(fact.differing)] for fact in comparison.facts]
    sections = [
        "# Comparison",
        "\n".join(f"- {side}: {esc(source)}: {esc(about)}" for side, source, about in _sides(comparison)),
        "\n".join(f"- {esc(line)}" for line in summary(comparison)),
        "## Circumstances",
        markdown(["what", "A", "B", "trials that differ"], facts, "left"),
    ]
    for title, first, rows in _tables(comparison):
        heads, lines = table(rows)
        sections += [f"## {title}", markdown([first, *heads], [list(map(esc, line)) for line in lines])]
    for side, names in zip("AB", comparison.only, strict=True):
        if names:
            sections += [f"## Only in {side}", "\n".join(f"- {esc(name)}" for name in names)]
    return "\n\n".join(sections) + "\n"


def _sides(comparison: Comparison) -> list[tuple[str, str, str]]:
    sources = map(plain, comparison.sides)
    return list(zip("AB", sources, comparison.about, strict=True))


def _tables(comparison: Comparison) -> list[tuple[str, str, Sequence[Row | Panel]]]:
    """The titles, first heads and rows of the tables of figures that have any."""
    means = [panel for panel in comparison.panels if panel.changes]
    both: list[tuple[str, str, Sequence[Row | Panel]]]
    both = [("Means", "mean of", means), ("Differences by size", "trial", comparison.rows)]
    return [entry for entry in both if entry[2]]


# --- the page -----------------------------------------------------------------------------------------------


def page(comparison: Comparison) -> str:
    """The comparison as one HTML file."""
    sides = _sides(comparison)
    differing = [[f.name, f.first, f.second, str(f.differing)] for f in comparison.facts if f.differing]
    alike = [fact for fact in comparison.facts if not fact.differing]
    parts = {
        "title": escape(" and ".join(source for _, source, _ in sides)),
        "sides": "".join(
            f"<dt>{side}<dd><strong>{escape(source)}</strong><br>{escape(about)}" for side, source, about in sides
        ),
        "differ": _table(["what", "A", "B", "trials"], differing, "differ") if differing else "<p>Nothing.</p>",
        "same": "".join(f"<dt>{escape(fact.name)}<dd>{escape(fact.first)}" for fact in alike),
        "summary": "".join(f"<li>{escape(line)}" for line in summary(comparison)),
        "only": "".join(
            _folded(f"{len(names)} only in {side}", f"<ul>{''.join(f'<li>{escape(name)}' for name in names)}</ul>")
            for side, names in zip("AB", comparison.only, strict=True)
            if names
        ),
        "tables": "".join(_figures(*entry) for entry in _tables(comparison)),
        "plots": "".join(_plots(comparison, metric) for metric in PLOTTED),
    }
    return fill("compare.html", parts)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _figures(title: str, first: str, rows: Sequence[Row | Panel]) -> str:
    """A table of figures; what is beyond SHOWN rows is folded away."""
    heads, lines = table(rows)
    content = _table([first, *heads], lines[:SHOWN], "figures")
    if rest := lines[SHOWN:]:
        content += _folded(f"{len(rest)} with smaller differences", _table([first, *heads], rest, "figures"))
    return f"<h3>{title}</h3>{content}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], kind: str) -> str:
    """A table whose first column names its rows. Cells with the mark stand out."""
    head = "".join(f"<th scope=col>{escape(text)}" for text in heads)
    rows = []
    for first, *others in lines:
        cells = (
            f"<td><strong>{text}</strong>" if text.endswith(f" {STANDS}") else f"<td>{text}"
            for text in map(escape, others)
        )
        rows.append(f"<tr><th scope=row>{escape(first)}{''.join(cells)}")
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{head}<tbody>{"".join(rows)}</table></div>'
    )


# --- plots --------------------------------------------------------------------------------------------------


def _plots(comparison: Comparison, metric: str) -> str:
    dense = [panel.rows[0].changes.get(metric) for panel in comparison.panels if panel.dense]
    level = dense[0] if len(dense) == 1 and dense[0] and dense[0].stands else None
    plots = "".join(_plot(panel, metric, level) for panel in comparison.panels if not panel.dense)
    title, what, better = PLOTTED[metric]
    legend = (
        f"{what}, with 95 % intervals. Right of the line B is {better}. Filled and strong: the interval excludes that "
        f"nothing differs. {'The dashed line is the difference of the dense model. ' if level else ''}"
        "Methods are sorted by their mean difference."
    )
    return f'<section><h2>{title}</h2><p class="quiet">{legend}</p>{plots}</section>' if plots else ""


def _plot(panel: Panel, metric: str, level: Change | None) -> str:
    """A row per method and a column per budget; trials of several seeds lie below each other in their cell."""
    grid: dict[str, dict[float, list[tuple[Row, Change]]]] = {}
    for row in panel.rows:
        change = row.changes.get(metric)
        if change is not None and change.estimate is not None:
            grid.setdefault(row.label, {}).setdefault(row.first.trial.budget, []).append((row, change))
    if not grid:
        return ""
    of_label = {label: [own for cell in cells.values() for own in cell] for label, cells in grid.items()}
    changes = [change for own in of_label.values() for _, change in own]
    end = _end(metric, [*changes, *([level] if level else [])])
    budgets = sorted({budget for cells in grid.values() for budget in cells}, reverse=True)
    scale = "".join(f"<span>{_tick(metric, place)}</span>" for place in (-end, 0, end))
    heads = "".join(f"<th scope=col>{escape(budget_text(budget))}<small>{scale}</small>" for budget in budgets)
    means = {label: sum(_place(change.estimate, metric) for _, change in own) for label, own in of_label.items()}
    means = {label: total / len(of_label[label]) for label, total in means.items()}
    lines = []
    for label in sorted(grid, key=lambda label: (-means[label], label)):
        studied = any(row.first.contestant.role == "studied" for row, _ in of_label[label])
        cells = "".join(f"<td>{_bars(grid[label].get(budget, ()), end, level)}" for budget in budgets)
        lines.append(f"<tr><th scope=row>{escape(marked(label, studied))}{cells}")
    return (
        f'<h3>{escape(panel.name)}</h3><div class="scroll" tabindex="0"><table class="forest"><thead><tr>'
        f"<th scope=col>method{heads}<tbody>{''.join(lines)}</table></div>"
    )


def _bars(cell: Sequence[tuple[Row, Change]], end: float, level: Change | None) -> str:
    """The intervals of a cell, as SVG that takes its width."""
    if not cell:
        return NOTHING

    def at(change: Change, value: float | None) -> str:
        place = _place(value, change.metric) / end
        return f"{50 + 50 * max(-1.0, min(1.0, place)):.1f}%"

    high = HIGH * len(cell)
    parts = [f'<line class=no x1="50%" x2="50%" y1=0 y2={high} />']
    if level:
        x = at(level, level.estimate)
        parts.append(f'<line class=dense x1="{x}" x2="{x}" y1=0 y2={high} />')
    for place, (_, change) in enumerate(cell):
        y = HIGH * place + HIGH // 2
        ends = [change.estimate if end is None else end for end in (change.lo, change.hi)]
        lo, middle, hi = (at(change, value) for value in (ends[0], change.estimate, ends[1]))
        kind = ("up" if change.better else "down") if change.stands else "open"
        parts.append(
            f'<g class={kind}><line x1="{lo}" x2="{hi}" y1={y} y2={y} /><circle cx="{middle}" cy={y} r=3.5 /></g>'
        )
    told = escape("; ".join(f"{row.name}: {distance(change)}, {change.how}" for row, change in cell))
    figure = f"<small>{distance(cell[0][1]).partition(' ')[0]}</small>" if len(cell) == 1 else ""
    return f'{figure}<svg role=img height={high} aria-label="{told}"><title>{told}</title>{"".join(parts)}</svg>'


def _place(value: float | None, metric: str) -> float:
    """Where a figure lies on the axis: factors by their logarithm."""
    if value is None:
        return 0.0
    return math.log(value) if METRICS[metric] else value


def _end(metric: str, changes: Sequence[Change]) -> float:
    """The end of the axis: the farthest end of an interval, rounded up."""
    places = [_place(value, metric) for change in changes for value in (change.lo, change.estimate, change.hi)]
    far = max((abs(place) for place in places if math.isfinite(place)), default=0.0)
    if METRICS[metric]:
        return math.log(max(1.05, math.ceil(20 * math.exp(far)) / 20))
    return max(0.01, math.ceil(100 * far) / 100)


def _tick(metric: str, place: float) -> str:
    if METRICS[metric]:
        return f"{math.exp(place):.2f}×"
    return f"{100 * place:+.0f}" if place else "0"
