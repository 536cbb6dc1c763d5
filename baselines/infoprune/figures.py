"""The pictures of `infoprune theory` and `infoprune inspect`, each drawn only from a record.

heads(json.loads(Path("heads.json").read_text()), Path("heads.png"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, NullFormatter

from baselines.infoprune.findings import DISTRIBUTION, NOISE, READERS, summary
from baselines.infoprune.inspect import SCORES, SPARSE, agreement, overlap
from harness.report.style import save_png, styled

STYLE: Any = {"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "normal", "axes.grid": False}
# Okabe and Ito's palette, safe for colour-blind eyes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A7A7A")
COMPONENTS = {"vision": "vision tower", "language": "language model"}
UNITS = {"vision": "head", "language": "KV group"}

Record = Mapping[str, Any]
Rows = list[dict[str, Any]]


def _draw(path: Path, width: float, height: float, draw: Callable[[Figure], None]) -> None:
    with styled(**STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        save_png(figure, path)


def _grid(figure: Figure, rows: int, columns: int, **how: Any) -> np.ndarray:
    return figure.subplots(rows, columns, squeeze=False, **how)


def _origin(record: Record) -> str:
    return f"{record['model']}, weights {record['weights']}, {record['samples']} calibration questions"


def _components(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["component"] for row in rows))


# --- theory -----------------------------------------------------------------------------------------------


def theory(record: Record, path: Path) -> None:
    """Draw one row of panels per theorem."""
    points, correlations = record["points"], summary(record["points"])

    def draw(figure: Figure) -> None:
        figure.suptitle(f"InfoPrune (reconstructed): its theorems, measured. {_origin(record)}", fontsize=12)
        axes = _grid(figure, 3, 3)
        first = [p for p in points["theorem1"] if p["noise"] == NOISE]
        for ax, component in zip(axes[0], COMPONENTS, strict=False):
            component_points = [p for p in first if p["block"].startswith(component)]
            title = f"Theorem 1, {COMPONENTS[component]}: one point per head mask"
            _scatter(ax, title, component_points, "block", f"erank_{DISTRIBUTION}", "information")
            ax.set_xlabel("eRank(Z_S) - eRank(Z)")
            ax.set_ylabel(f"I(X;Z_S) - I(X;Z) (nats, noise {NOISE:g})")
        rows = [r for r in correlations["theorem1"] if (r["noise"], r["distribution"]) == (NOISE, DISTRIBUTION)]
        _bars(axes[0, 2], rows, "Theorem 1: Spearman by layer")
        for ax, reader in zip(axes[1], READERS, strict=False):
            _scatter(ax, f"Theorem 2, read by {READERS[reader]}", points["theorem2"], "block", "ks", reader)
            ax.axhline(0, color="#777777", linewidth=0.8)
            ax.set_yscale("symlog", linthresh=0.1)
            _plain_numbers(ax.yaxis)
            ax.set_xlabel("KS distance of the spectra of Z and Z_S")
            ax.set_ylabel("loss of I(Y;Z) (nats)")
        _bars(
            axes[1, 2],
            [r for r in correlations["theorem2"] if r["reader"] == "model"],
            "Theorem 2, model: Spearman by layer",
        )
        _predictions(axes[2], points["theorem3"])

    _draw(path, 17, 15, draw)


def _scatter(ax: Axes, title: str, points: Sequence[Mapping[str, Any]], by: str, x: str, y: str) -> None:
    names = list(dict.fromkeys(point[by] for point in points))
    for place, name in enumerate(names):
        group = [point for point in points if point[by] == name]
        color = PALETTE[place % len(PALETTE)]
        marker = "os^D"[place // len(PALETTE) % 4]
        ax.plot(
            [p[x] for p in group], [p[y] for p in group], marker, color=color, markersize=4.5, alpha=0.7, label=name
        )
    ax.grid(True)
    if 0 < len(names) <= 2 * len(PALETTE):
        _legend(ax, title, 4, -(-len(names) // 4))
    else:
        ax.set_title(title)


def _legend(ax: Axes, title: str, columns: int = 4, lines: int = 1) -> None:
    """The title, and below it, outside the axes, the legend."""
    ax.set_title(title, pad=8 + 15 * lines)
    where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
    ax.legend(fontsize=9, ncols=columns, handletextpad=0.3, columnspacing=1.2, **where)


def _plain_numbers(axis: Axis) -> None:
    """Numbers like 0.01 instead of powers of ten, and none at minor ticks."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _bars(ax: Axes, rows: Rows, title: str) -> None:
    """Rank correlations by layer, over all masks and among masks that keep equally many heads."""
    places = np.arange(len(rows))
    for shift, (label, values) in enumerate(
        {
            "all masks": [row["spearman"] for row in rows],
            "equally many heads kept": [row["within"]["spearman"] for row in rows],
        }.items()
    ):
        heights = [np.nan if value is None else value for value in values]
        ax.barh(places + 0.38 * shift - 0.19, heights, 0.36, color=PALETTE[shift], label=label)
    ax.axvline(0, color="#777777", linewidth=0.8)
    ax.set_yticks(places, [row["block"] for row in rows])
    ax.invert_yaxis()
    ax.set_xlim(-1.02, 1.02)
    ax.set_xlabel("Spearman's rho")
    ax.grid(True, axis="x")
    _legend(ax, title)


def _predictions(axes: Sequence[Axes], points: Sequence[Mapping[str, Any]]) -> None:
    """Predicted and measured losses on unseen rows: one Linear, the factored FFN, the product W2 W1."""
    panels = {
        "one Linear (W1)": ("linear",),
        "whole FFN, factored": ("factor",),
        "whole FFN from W2 W1, whitened": ("compose-linear", "compose-act"),
    }
    floor = 1e-4
    for ax, (title, arms) in zip(axes, panels.items(), strict=True):
        arm_points = [
            {
                "predicted": max(p["predicted"], floor),
                "unseen": max(p["unseen"], floor),
                "kind": p["through"] if len(arms) > 1 else ("whitened" if p["whiten"] else "plain"),
            }
            for p in points
            if p["through"] in arms and (len(arms) == 1 or p["whiten"])
        ]
        _scatter(ax, f"Theorem 3, {title}", arm_points, "kind", "predicted", "unseen")
        ax.plot([floor, 4], [floor, 4], color="#222222", linewidth=1, linestyle="--")
        ax.set_xscale("log")
        ax.set_yscale("log")
        _plain_numbers(ax.xaxis)
        _plain_numbers(ax.yaxis)
        ax.set_xlabel(f"predicted loss: dropped energy (share, from {floor:g})")
        ax.set_ylabel("measured loss on unseen rows (share)")


# --- figures of the paper ---------------------------------------------------------------------------------


def heads(record: Record, path: Path) -> None:
    """Draw figure 1 next to the competing scores, with layers down and heads across; then how the scores agree."""
    rows = record["rows"]
    components = _components(rows)

    def draw(figure: Figure) -> None:
        figure.suptitle(
            f"How important is each head? {_origin(record)}\n"
            "Negative entropy (figure 1): of the singular values of the head's contribution A_h W_h, our reading;\n"
            "min-max normalised over the component. Other scores: places, 1 being the most important head.",
            fontsize=11,
        )
        axes = _grid(figure, 2 * len(components), 3).reshape(len(components), -1)
        for line, component in zip(axes, components, strict=True):
            component_rows = [row for row in rows if row["component"] == component]
            for ax, (score, title) in zip(line, SCORES.items(), strict=False):
                first = score == "importance"
                table = _table(component_rows, score) if first else _ranks(_table(component_rows, score))
                image = ax.imshow(table, cmap="viridis" if first else "viridis_r", aspect="auto")
                _label(ax, table, "{:.2f}" if first else "{:.0f}")
                ax.set_title(f"{COMPONENTS[component]}: {title}")
                ax.set_xlabel(UNITS[component])
                ax.set_ylabel("layer")
                figure.colorbar(image, ax=ax, shrink=0.8)
            figure.colorbar(_agreement(line[-1], component_rows, component), ax=line[-1], shrink=0.8)

    _draw(path, 15, 1 + 2 * len(components) * _tall(rows), draw)


def _tall(rows: Rows) -> float:
    return max(3.4, 0.22 * (1 + max(row["layer"] for row in rows)))


def _table(rows: Rows, column: str) -> np.ndarray:
    """Values by layer and head."""
    table = np.full((1 + max(r["layer"] for r in rows), 1 + max(r["head"] for r in rows)), np.nan)
    for row in rows:
        table[row["layer"], row["head"]] = row[column]
    return table


def _ranks(table: np.ndarray) -> np.ndarray:
    """Ranks by falling value: 1 for the largest."""
    order = np.argsort(-table, axis=None, kind="stable")
    ranks = np.empty(table.size)
    ranks[order] = np.arange(1, table.size + 1)
    return np.where(np.isnan(table), np.nan, ranks.reshape(table.shape))


def _label(ax: Axes, table: np.ndarray, form: str) -> None:
    """Number both axes, separate the cells, and write the values into them if they fit."""
    for axis, size in ((ax.xaxis, table.shape[1]), (ax.yaxis, table.shape[0])):
        axis.set_ticks(range(0, size, 1 if size <= 16 else 4))
        axis.set_ticks(np.arange(size - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    _write(ax, table, form if table.size <= 80 else "")


def _write(ax: Axes, table: np.ndarray, form: str) -> None:
    """Write each cell's value in black or white, whichever has more contrast."""
    image = ax.images[0]
    for (y, x), value in np.ndenumerate(table):
        if not np.isnan(value):
            red, green, blue, _ = image.get_cmap()(image.norm(value))
            color = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            ax.text(x, y, form.format(value), ha="center", va="center", fontsize=8.5, color=color)


def _agreement(ax: Axes, rows: Rows, component: str) -> AxesImage:
    correlations = agreement(rows, component)
    values = [[correlations[a, b]["spearman"] for b in SCORES] for a in SCORES]
    table = np.array([[np.nan if value is None else value for value in line] for line in values])
    image = ax.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    _write(ax, table, "{:.2f}")
    ax.set_xticks(range(len(SCORES)), list(SCORES.values()), rotation=20, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(SCORES)), list(SCORES.values()))
    ax.spines[:].set_visible(False)
    ax.set_title(f"Spearman's rho over {len(rows)} {UNITS[component]}s")
    return image


def ffn(record: Record, path: Path) -> None:
    """Draw figure 2: row density by layer; the spectra behind it; what the method keeps of each FFN."""
    rows = record["rows"]
    components = _components(rows)
    budget = record["settings"]["budget"]

    def draw(figure: Figure) -> None:
        figure.suptitle(f"Feed-forward layers: W1, W2 and their product. {_origin(record)}", fontsize=12)
        axes = _grid(figure, 2 * len(components), 2).reshape(len(components), 4)
        for (density, norm, spectra, chosen), component in zip(axes, components, strict=True):
            component_rows = [row for row in rows if row["component"] == component]
            matrices = list(dict.fromkeys(row["matrix"] for row in component_rows))
            for place, matrix in enumerate(matrices):
                matrix_rows = [row for row in component_rows if row["matrix"] == matrix]
                color, layers = PALETTE[place % len(PALETTE)], [row["layer"] for row in matrix_rows]
                width = 0.8 / len(matrices)
                shifted = [layer + width * (place - (len(matrices) - 1) / 2) for layer in layers]
                density.bar(shifted, [row["density"] for row in matrix_rows], width * 0.92, color=color, label=matrix)
                norm.plot(layers, [row["l1"] for row in matrix_rows], "o-", color=color, label=matrix)
                for row in matrix_rows:
                    spread = np.linspace(0, 1, len(row["spectrum"]))
                    name = matrix if row is matrix_rows[0] else None
                    spectra.plot(spread, row["spectrum"], color=color, linewidth=1, alpha=0.7, label=name)
            name = COMPONENTS[component]
            density.set_ylabel("rows with L1 norm >= 5 % of length (share)")
            density.set_ylim(0, 1.05)
            norm.axhline(SPARSE, color="#222222", linestyle="--", linewidth=1, label="sparse below this")
            norm.set_ylim(bottom=0)
            spectra.set_xlabel("index (share of the rank)")
            spectra.set_ylabel("over the largest")
            _chosen(chosen, [row for row in component_rows if row["matrix"] == matrices[0]], budget)
            for ax in (density, norm, chosen):
                ax.set_xlabel("layer")
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            _legend(density, f"{name}: row density (figure 2)")
            _legend(norm, f"{name}: mean L1 norm of a row over its length")
            _legend(spectra, f"{name}: singular values, one line per layer")
            for ax in (density, norm, spectra, chosen):
                ax.grid(True, axis="y")

    _draw(path, 14, 1 + 8 * len(components), draw)


def _chosen(ax: Axes, rows: Rows, budget: float) -> None:
    ax.bar([row["layer"] for row in rows], [row["kept"] for row in rows], 0.7, color=PALETTE[0])
    if len(rows) <= 16:
        for row in rows:
            text = row["chosen"].replace(" ", "\n", 1)
            inside = row["kept"] > 0.15
            place, color = (row["kept"] / 2, "white") if inside else (row["kept"] + 0.01, "black")
            va = "center" if inside else "bottom"
            ax.text(row["layer"], place, text, ha="center", va=va, fontsize=9, color=color)
    ax.axhline(budget, color="#222222", linestyle="--", linewidth=1)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("multiply-adds kept (share)")
    ax.set_title(f"{COMPONENTS[rows[0]['component']]}: chosen at {budget:g} of the FFNs' FLOPs")


def survivors(record: Record, path: Path) -> None:
    """Draw figure 5: the heads kept for each data set, and for how many data sets each head is kept."""
    rows = record["rows"]
    components, tasks = _components(rows), list(dict.fromkeys(row["task"] for row in rows))

    def draw(figure: Figure) -> None:
        figure.suptitle(
            f"Heads that stay at {record['settings']['budget']:g} of a component's head FLOPs, by the data set that the"
            f" method is calibrated on. {_origin(record)} each",
            fontsize=11,
        )
        axes = _grid(figure, len(components), len(tasks) + 1)
        for line, component in zip(axes, components, strict=True):
            component_rows = [row for row in rows if row["component"] == component]
            kept = {task: _table([row for row in component_rows if row["task"] == task], "kept") for task in tasks}
            for ax, task in zip(line, tasks, strict=False):
                ax.imshow(kept[task], cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
                _label(ax, kept[task], "")
                ax.set_title(f"{COMPONENTS[component]}: {Path(task).name}")
            count = sum(kept.values())
            line[-1].imshow(count, cmap="Blues", vmin=0, vmax=1.3 * len(tasks), aspect="auto")
            _label(line[-1], np.asarray(count), "{:.0f}")
            line[-1].set_title("kept for how many data sets")
            overlaps = [
                f"{Path(b).name} / {Path(a).name}: {v:.2f}" for (a, b), v in overlap(component_rows, component).items()
            ]
            line[-1].text(
                1.04,
                0.98,
                "overlap (Jaccard)\n" + "\n".join(overlaps),
                transform=line[-1].transAxes,
                va="top",
                fontsize=8,
            )
            for ax in line:
                ax.set_xlabel(UNITS[component])
                ax.set_ylabel("layer")

    _draw(path, 3.9 * (len(tasks) + 1) + 2, 1 + len(components) * _tall(rows), draw)
