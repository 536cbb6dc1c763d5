"""Score quality for people: a Markdown page, a CSV and a picture of the results of `harness.checks.score_quality`.

    write(measured, Path("leaderboards/quality"))

Equal measurements give equal bytes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from harness.files import save
from harness.report.looks import COLORS, STUDIED_COLOR
from harness.report.panels import NOTHING
from harness.report.spreadsheet import rows_text
from harness.report.style import INK, save_png, styled
from harness.report.tables import escape, markdown
from harness.text import plain

FILES = ("README.md", "quality.csv", "quality.json", "quality.png")
KINDS = {"heads": "heads", "ffn": "FFN channels"}
OVER = {"within": "inside a layer", "across": "over all layers"}
PLAIN = COLORS["blue"]
BEHIND: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # box of text over lines


def write(
    measured: Mapping[str, Any], out: Path, studied: frozenset[str] = frozenset(), asked: Sequence[str] = ()
) -> list[Path]:
    """Write FILES into the folder. `studied` methods get the colour of the method under study.

    asked: the methods as the command named them; none: all.
    """
    paths = [out / name for name in FILES]
    page, table, data, picture = paths
    save(data, json.dumps(measured, indent=1, allow_nan=False) + "\n")  # first: it holds what took long
    save(page, _page(measured, asked))
    save(table, _csv(measured))
    with styled():
        save_png(_figure(measured, studied), picture)
    return paths


def standing(measured: Mapping[str, Any]) -> list[str]:
    """The methods that score heads or channels, by tau inside layers: by that of heads, then by that of channels.

    Methods that failed come last.
    """

    def key(name: str) -> tuple[float | str, ...]:
        result = measured["methods"][name]
        taus = [result.get(kind, {}).get("within", {}).get("tau") for kind in KINDS]
        return (*(2.0 if tau is None else -tau for tau in taus), name)

    return sorted(set(measured["methods"]) - set(_without_scores(measured)), key=key)


def _without_scores(measured: Mapping[str, Any]) -> list[str]:
    """The methods that give neither heads nor channels a score each, such as those of low rank or visual tokens."""
    return sorted(
        name
        for name, result in measured["methods"].items()
        if "error" not in result and all("reason" in result[kind] for kind in KINDS)
    )


def _page(measured: Mapping[str, Any], asked: Sequence[str]) -> str:
    truth = measured["truth"]
    numbers = {kind: sum(unit["kind"] == kind for unit in truth["units"]) for kind in KINDS}
    text = (
        "Kendall's tau-b (95 %, bootstrap over units) between each method's unit scores, with default options, and the "
        f"true leave-one-out damage. Damage is the rise of the answer loss on {truth['samples']} {truth['split']} "
        f"questions, measured for all {numbers['heads']} heads (or KV groups) and {numbers['ffn']} channels drawn with "
        f"seed {truth['seed']}, of {escape(truth['model'])} (dense loss {truth['dense_loss']:.4f} nats per token). The "
        f"scores use {measured['calibration']} calibration questions. *Inside a layer* compares pairs of units of one "
        "layer and kind; *over all layers* compares all pairs of a kind, for scores that are damages in one currency. "
        "The last row compares the damages on one half of the questions with those on the other. If it is near 0, the "
        "damages are noise at this number of questions, and their column says nothing about the methods."
    )
    heads = ["method", *(f"{kind}, {over}" for kind in KINDS.values() for over in OVER.values())]
    rows = [[escape(name), *_cells(measured["methods"][name])] for name in standing(measured)]
    rows.append(["*damage, two halves*", *_cells(measured["two_halves"])])
    others = ", ".join(map(escape, _without_scores(measured)))
    left_out = f"No score for single heads or channels: {others}." if others else ""
    words = ["--model", truth["model"], "--questions", str(truth["samples"]), "--channels", str(truth["channels"])]
    words += [word for name in asked for word in ("--method", name)]
    repeat = f"```sh\ninfoprune quality {shlex.join(map(plain, words))}\n```"
    parts = ["# Score quality", text, markdown(heads, rows), left_out, "![Kendall's tau](quality.png)", repeat]
    return "\n\n".join(filter(None, parts)) + "\n"


def _cells(result: Mapping[str, Any]) -> list[str]:
    if "error" in result:
        return [f"failed: {escape(result['error'])}", *[NOTHING] * 3]
    cells = []
    for kind in KINDS:
        taus = result[kind]
        if "reason" in taus:
            cells += [escape(taus["reason"]), NOTHING]
        else:
            cells += [_tau(taus["within"]), "an order only" if taus["across"] is None else _tau(taus["across"])]
    return cells


def _tau(tau: Mapping[str, Any]) -> str:
    if tau["tau"] is None:
        return "no two scores differ"
    return f"{tau['tau']:.2f} ({tau['lo']:.2f} to {tau['hi']:.2f})"


def _csv(measured: Mapping[str, Any]) -> str:
    """One row per unit: its place, its damage, and its score by every method."""
    units = measured["truth"]["units"]
    columns: dict[str, list[Any]] = {}
    for name, result in measured["methods"].items():
        scores_by_kind = {kind: iter(result.get(kind, {}).get("scores", ())) for kind in KINDS}
        columns[plain(name)] = [next(scores_by_kind[unit["kind"]], "") for unit in units]
    rows = []
    for place, unit in enumerate(units):
        figures = (unit["damage"], *(values[place] for values in columns.values()))
        shown = (f"{value:.6g}" if isinstance(value, float) else value for value in figures)
        rows.append([unit["block"], unit["kind"], unit["index"], *shown])
    return rows_text(["block", "kind", "unit", "damage", *columns], rows)


def _figure(measured: Mapping[str, Any], studied: frozenset[str]) -> Figure:
    """One panel per kind: each method's tau with interval; filled: inside a layer, hollow: over all layers."""
    names = standing(measured)
    figure = Figure(figsize=(12, 1.6 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, (kind, title) in zip(panels, KINDS.items(), strict=True):
        axes.set_title(title[0].upper() + title[1:])
        axes.axvline(0, color=INK, linewidth=0.8)
        tau_of_halves = measured["two_halves"][kind]["within"]["tau"]
        if tau_of_halves is not None:
            axes.axvline(tau_of_halves, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
            axes.text(
                tau_of_halves,
                -0.75,
                "two halves of the questions",
                ha="center",
                fontsize=8.5,
                color="#555555",
                bbox=BEHIND,
            )
        for row, name in enumerate(names):
            taus = measured["methods"][name].get(kind, {"reason": "failed"})
            color = STUDIED_COLOR if name in studied else PLAIN
            if "reason" in taus:
                axes.text(
                    0.02, row, taus["reason"], va="center", fontsize=8.5, color="#777777", style="italic", bbox=BEHIND
                )
            for over, offset, fill in (("within", -0.14, color), ("across", 0.14, "white")):
                tau = taus.get(over)
                if tau and tau["tau"] is not None:
                    axes.plot([tau["lo"], tau["hi"]], [row + offset] * 2, color=color, linewidth=1.4)
                    axes.plot(
                        tau["tau"], row + offset, marker="o", markersize=5.5, markerfacecolor=fill, color=color, ls=""
                    )
        axes.set_xlabel("Kendall's tau-b with the true damage")
        axes.set_xlim(-0.6, 1.0)
        axes.set_ylim(len(names) - 0.4, -1.1)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(names)), [plain(name) for name in names])
    for label, name in zip(panels[0].get_yticklabels(), names, strict=True):
        label.set_color(STUDIED_COLOR if name in studied else INK)
    for fill, text in ((PLAIN, OVER["within"]), ("white", OVER["across"])):
        panels[1].plot([], [], marker="o", ls="", color=PLAIN, markerfacecolor=fill, label=text)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
