r"""A board's tables for a paper: methods x budgets, one booktabs table for every scope.

    python -c "from harness.records.record import load; from harness.report import board, latex; \
               print(latex.document(board.Board.of('demo', load('results/demo')[0])))"

Include the file with \input; it needs \usepackage{booktabs}.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.report import reported, totals
from harness.report.board import Board
from harness.report.panels import NOTHING, STUDIED_SIGN, Panel, level_texts, standings
from harness.text import plain

SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    STUDIED_SIGN: r"\ensuremath{\diamond}",
    NOTHING: r"\textendash{}",
    # No argument of the line before, no ligature with the next character.
    **{char: f"{{{char}}}" for char in "[*-'`,?!"},
}


def document(board: Board) -> str:
    """Every panel of a board with accuracies as a LaTeX table. Marked figures from papers follow the measured ones."""
    blocks = [f"% Made by infoprune report. Needs \\usepackage{{booktabs}}.\n% {totals.LEGEND}"]
    for panel, curve_totals in zip(board.panels, board.totals, strict=True) if board.accurate else ():
        blocks += [_table(panel), _totals(panel, curve_totals)]
    if board.reported:
        rows = [list(map(escape, figure.cells)) for figure in board.reported]
        blocks.append(_tabular("Reported by papers, not measured here.", "lrrl", reported.HEADS, rows))
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Text of a record as literal LaTeX. A non-Latin-1 character without a command becomes a question mark."""
    return "".join(SPECIAL.get(char, char if ord(char) < 256 else "?") for char in plain(text))


def _table(panel: Panel) -> str:
    columns, curves = standings(panel)
    rows = []
    for curve, cells in curves.items():
        texts = [rf"\textbf{{{escape(text)}}}" if best else escape(text) for text, best in cells]
        rows.append([escape(panel.shown(curve)), *texts])
    levels = "; ".join(f"{name} {figure}".strip() for name, figure in level_texts(panel))
    caption = escape(f"{panel.title}. Accuracy in points, the mean over tasks. {levels}.")
    return _tabular(caption, "l" + "r" * len(columns), ["method", *columns], rows)


def _totals(panel: Panel, curve_totals: Sequence[totals.Total]) -> str:
    heads, rows = totals.shown(curve_totals)
    body = [[escape(panel.shown(curve)), *map(escape, row)] for curve, row in rows.items()]
    return _tabular(escape(f"{panel.title}. Each curve as a whole."), "l" + "r" * len(heads), ["method", *heads], body)


def _tabular(caption: str, align: str, heads: Sequence[str], rows: list[list[str]]) -> str:
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(map(escape, heads)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)
