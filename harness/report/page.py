"""The interactive page of a board in one file: the table, the Pareto plot, and the details of every trial.

    infoprune report && xdg-open leaderboards/index.html

The table and the figures at equal FLOPs are plain HTML and need no script. The scripts draw the rest: the plot from one
JSON value, and a trial from another, which is most of a board and therefore compressed. This module escapes text of
records, and the scripts set it as text. The page's policy forbids every request and every script except its own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.report import choices, reported, tables, totals
from harness.report.board import Board
from harness.report.panels import NOTHING, Panel, level_texts, marked, standings
from harness.text import plain

SCRIPTS = ("page", "chart", "plot", "trial")  # of a board's page, in the order of their uses
# The most important columns come first, because a narrow screen shows only the first ones.
LEADING = ("method", "variant", "budget", "accuracy", "latency_speedup", "flops_kept", "scope", "seed", "trial")


def board(shown: Board, data: Mapping[str, Any], trials: str) -> str:
    """The page of a board, with the `data` and `trials` of `details`. Equal arguments give equal bytes."""
    parts = {
        "title": escape(shown.name),
        "facts": _facts(shown),
        "notes": escape(f"{shown.notes} {shown.legend}".strip()),
        "subject": "Accuracy" if shown.accurate else "Speed",
        "choices": _choices(shown.choices),
        "standings": _standings(shown) if shown.accurate else "",
        "table": _table(shown),
        "methods": _methods(shown),
        "data": _json(data),
        "trials": base64.b64encode(gzip.compress(trials.encode(), 6, mtime=0)).decode(),
    }
    return fill("page.html", parts, *(_small(_file(f"{name}.js")) for name in SCRIPTS))


def card(shown: Board) -> str:
    """A board's entry in the index."""
    return (
        f'<section class="card"><h2><a href="{escape(quote(shown.name))}/index.html">{escape(shown.name)}</a></h2>'
        f"<p>{escape(shown.notes)}</p>{_facts(shown)}</section>"
    )


def index(cards: Iterable[str]) -> str:
    """The page of all boards."""
    return fill("boards.html", {"boards": "\n".join(cards)})


def fill(name: str, parts: Mapping[str, str], *scripts: str) -> str:
    """The template of a page, filled with escaped parts, the style and scripts of ours."""
    policy = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if scripts:
        digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
        policy += "; script-src " + " ".join(f"'sha256-{digest}'" for digest in digests)
    common = {
        "policy": policy,
        "style": _small(_file("page.css")),
        "scripts": "".join(f"<script>{s}</script>\n" for s in scripts),
    }
    return _template(name, {**parts, **common})


def _template(name: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file(name))


def _small(code: str) -> str:
    """Code of ours without indents and lines of comment: every page carries it."""
    return re.sub(r"(?m)^\s*(//|/\*).*\n|^\s+", "", code)


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# --- plain HTML ---------------------------------------------------------------------------------------------


def _facts(shown: Board) -> str:
    return f'<dl class="facts">{"".join(f"<dt>{escape(key)}<dd>{escape(value)}" for key, value in shown.facts)}</dl>'


def _choices(listed: Sequence[choices.Choice]) -> str:
    """The table of best choices, with a command to copy in each row; nothing if there are none."""
    if not listed:
        return ""
    heads = "".join(f"<th scope=col>{escape(head)}" for head in choices.HEADS)
    rows = []
    for choice in listed:
        first, *cells, command = map(escape, choice.cells)
        rows.append(f"<tr><th scope=row>{first}{''.join(f'<td>{cell}' for cell in cells)}<td><code>{command}</code>")
    return (
        f'<section id="choices"><h2>What to choose</h2><p class="quiet">{escape(choices.LEGEND)}</p>'
        f'<div class="scroll" tabindex="0"><table class="summary"><thead><tr>{heads}<tbody>{"".join(rows)}</table>'
        "</div></section>"
    )


def _standings(shown: Board) -> str:
    parts = {
        "currency": escape(shown.currency),
        "legend": escape(totals.LEGEND),
        "summary": "".join(map(_summary, shown.panels, shown.totals)),
    }
    return _template("standings.html", parts)


def _summary(panel: Panel, curve_totals: Sequence[totals.Total]) -> str:
    columns, curves = standings(panel)
    heads = "".join(f"<th scope=col>{escape(column)}" for column in columns)
    rows = []
    for curve, cells in curves.items():
        shown = "".join(f"<td>{f'<strong>{escape(text)}</strong>' if best else escape(text)}" for text, best in cells)
        rows.append(f"<tr><th scope=row>{_name(panel, curve)}{shown}")
    levels = " · ".join(f"{name} {figure}".strip() for name, figure in level_texts(panel))
    return (
        f'<h3>{escape(panel.title)}</h3><p class="quiet">{escape(levels)}</p><div class="scroll" tabindex="0">'
        f'<table class="summary"><thead><tr><th scope=col>method{heads}<tbody>{"".join(rows)}</table></div>'
        f"{_totals(panel, curve_totals)}"
    )


def _totals(panel: Panel, curve_totals: Sequence[totals.Total]) -> str:
    heads, curves = totals.shown(curve_totals)
    rows = []
    for curve, cells in curves.items():
        rows.append(f"<tr><th scope=row>{_name(panel, curve)}{''.join(f'<td>{escape(cell)}' for cell in cells)}")
    columns = "".join(f"<th scope=col>{escape(head)}" for head in heads)
    return (
        f'<div class="scroll" tabindex="0"><table class="summary"><thead><tr><th scope=col>method{columns}'
        f"<tbody>{''.join(rows)}</table></div>"
    )


def _name(panel: Panel, curve: str) -> str:
    """A curve's name, which a narrow column breaks after a comma."""
    return escape(panel.shown(curve)).replace(",", ",<wbr>")


def _table(shown: Board) -> str:
    """Every trial, and below them the figures from papers. The script finds a row's data by its position."""
    order = {key: place for place, key in enumerate(LEADING)}
    columns = sorted(shown.columns, key=lambda column: order.get(column.key, len(order)))
    heads = "".join(
        f'<th scope=col data-key="{escape(column.key)}"{"" if column.text else " class=n"}>{escape(column.head)}'
        for column in columns
    )
    cells = zip(*(column.cells for column in columns), strict=True)
    rows = [f"<tr>{''.join(map(_cell, columns, texts))}" for texts in cells]
    rows += [_reported_row(figure, columns) for figure in shown.reported]
    return f"<thead><tr>{heads}<tbody>{chr(10).join(rows)}"


def _cell(column: tables.ShownColumn, text: str) -> str:
    if column.key == "method":
        return f"<th scope=row>{_safe(text)}"
    if column.key == "trial":
        return f"<td class=t><a href=#trial={text}>{text}</a>"
    if column.key == "status" and text != "ok":
        return f'<td class="t failed">{_safe(text)}'
    if column.key == "collapse":
        return f'<td class=t><span class="badge">{_safe(text)}</span>' if text else "<td>"
    return f"<td{' class=t' if column.text and text else ''}>{_safe(text)}"  # most cells are numbers and need no class


def _reported_row(figure: reported.Figure, columns: Sequence[tables.ShownColumn]) -> str:
    known = {
        "method": figure.method,
        "flops_kept": f"{1 / figure.flops_reduction:.4f}",
        "latency_speedup": f"{figure.latency_speedup:.2f}",
        "status": f"{reported.MARK}: {figure.source} ({figure.note})",
    }
    cells = []
    for column in columns:
        text = escape(known.get(column.key, NOTHING))
        cells.append(
            f'<th scope=row>{text} <span class="badge">reported</span>'
            if column.key == "method"
            else f"<td{' class=t' if column.text else ''}>{text}"
        )
    return f'<tr class="reported">{"".join(cells)}'


def _methods(shown: Board) -> str:
    return "".join(
        f"<dt>{_safe(marked(entry.method, entry.role == 'studied'))}<dd>{_safe(entry.title)}" for entry in shown.methods
    )


@lru_cache(maxsize=1 << 14)
def _safe(text: str) -> str:
    return escape(plain(text))


def _json(value: Any) -> str:
    """JSON that cannot close the script element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
