"""Score quality for people: a Markdown page, a CSV and a picture of what `harness.quality` has measured.

    write(measured, Path("leaderboards/quality"))

The same measurement gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from harness.report.plots import DPI, INK, STUDIED, STYLE
from harness.report.tables import NOTHING, escape, markdown
from harness.text import plain

FILES = ("README.md", "quality.csv", "quality.json", "quality.png")
KINDS = {"heads": "heads", "ffn": "FFN channels"}
OVER = {"within": "inside a layer", "across": "over all layers"}
PLAIN = "#0072B2"
BEHIND: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # of text over lines


def write(measured: Mapping[str, Any], out: Path, studied: frozenset[str] = frozenset()) -> list[Path]:
    """Write FILES into the folder; studied: the methods drawn in the colour of the method under study."""
    paths = [out / name for name in FILES]
    page, table, data, picture = paths
    page.write_text(_page(measured), encoding="utf-8", newline="\n")
    table.write_text(_csv(measured), encoding="utf-8", newline="\n")
    data.write_text(json.dumps(measured, indent=1, allow_nan=False) + "\n", encoding="utf-8", newline="\n")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        _figure(measured, studied).savefig(picture, dpi=DPI, metadata={"Software": None})
    return paths


def standing(measured: Mapping[str, Any]) -> list[str]:
    """The methods, those first whose scores of heads, then of channels, agree most with the damage inside layers."""

    def key(name: str) -> tuple[float | str, ...]:
        found = measured["methods"][name]
        taus = [found.get(kind, {}).get("within", {}).get("tau") for kind in KINDS]
        return (*(2.0 if tau is None else -tau for tau in taus), name)

    return sorted(measured["methods"], key=key)


def _page(measured: Mapping[str, Any]) -> str:
    truth = measured["truth"]
    numbers = {kind: sum(unit["kind"] == kind for unit in truth["units"]) for kind in KINDS}
    text = (
        f"Kendall's tau-b (95 %, bootstrap over units) of each method's unit scores, with its defaults, with the true "
        f"leave-one-out damage: the rise of the answer loss on {truth['samples']} {truth['split']} questions, for all "
        f"{numbers['heads']} heads (or KV groups) and {numbers['ffn']} channels drawn with seed {truth['seed']}, of "
        f"{escape(truth['model'])} (dense loss {truth['dense_loss']:.4f} nats a token). Scores are made from "
        f"{measured['calibration']} calibration questions. *Inside a layer* compares pairs of units of one layer and "
        "kind; *over all layers* every pair of a kind, for scores that are damages in one currency. The last row has "
        "the damages on one half of the questions against those on the other: where it is near 0, they are noise at "
        "this number of questions, and their column tells nothing of the methods."
    )
    heads = ["method", *(f"{kind}, {over}" for kind in KINDS.values() for over in OVER.values())]
    rows = [[escape(name), *_cells(measured["methods"][name])] for name in standing(measured)]
    rows.append(["*damage, two halves*", *_cells(measured["two_halves"])])
    repeat = f"```sh\ninfoprune quality --samples {truth['samples']} --channels {truth['channels']}\n```"
    return "\n\n".join(["# Score quality", text, markdown(heads, rows), "![Kendall's tau](quality.png)", repeat]) + "\n"


def _cells(found: Mapping[str, Any]) -> list[str]:
    if "error" in found:
        return [f"failed: {escape(found['error'])}", *[NOTHING] * 3]
    cells = []
    for kind in KINDS:
        own = found[kind]
        if "reason" in own:
            cells += [escape(own["reason"]), NOTHING]
        else:
            cells += [_tau(own["within"]), "an order only" if own["across"] is None else _tau(own["across"])]
    return cells


def _tau(tau: Mapping[str, Any]) -> str:
    if tau["tau"] is None:
        return "no two scores differ"
    return f"{tau['tau']:.2f} ({tau['lo']:.2f} to {tau['hi']:.2f})"


def _csv(measured: Mapping[str, Any]) -> str:
    """A row a unit: where it is, its damage, and every method's score of it."""
    units = measured["truth"]["units"]
    columns: dict[str, list[Any]] = {}
    for name, found in measured["methods"].items():
        own = {kind: iter(found.get(kind, {}).get("scores", ())) for kind in KINDS}
        columns[plain(name)] = [next(own[unit["kind"]], "") for unit in units]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["block", "kind", "unit", "damage", *columns])
    for place, unit in enumerate(units):
        scores = [values[place] for values in columns.values()]
        shown = [f"{value:.6g}" if isinstance(value, float) else value for value in (unit["damage"], *scores)]
        writer.writerow([unit["block"], unit["kind"], unit["index"], *shown])
    return text.getvalue()


def _figure(measured: Mapping[str, Any], studied: frozenset[str]) -> Figure:
    """A panel a kind: tau and its interval of each method; filled inside a layer, hollow over all layers."""
    names = standing(measured)
    figure = Figure(figsize=(12, 1.6 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, (kind, title) in zip(panels, KINDS.items(), strict=True):
        axes.set_title(title[0].upper() + title[1:])
        axes.axvline(0, color=INK, linewidth=0.8)
        known = measured["two_halves"][kind]["within"]["tau"]
        if known is not None:
            axes.axvline(known, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
            axes.text(
                known, -0.75, "two halves of the questions", ha="center", fontsize=8.5, color="#555555", bbox=BEHIND
            )
        for row, name in enumerate(names):
            own = measured["methods"][name].get(kind, {"reason": "failed"})
            color = STUDIED if name in studied else PLAIN
            if "reason" in own:
                axes.text(
                    0.02, row, own["reason"], va="center", fontsize=8.5, color="#777777", style="italic", bbox=BEHIND
                )
            for over, offset, fill in (("within", -0.14, color), ("across", 0.14, "white")):
                tau = own.get(over)
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
        label.set_color(STUDIED if name in studied else INK)
    for fill, text in ((PLAIN, OVER["within"]), ("white", OVER["across"])):
        panels[1].plot([], [], marker="o", ls="", color=PLAIN, markerfacecolor=fill, label=text)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
