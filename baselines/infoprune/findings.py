"""What the points of `infoprune theory` say about each theorem, in numbers and in sentences made from the numbers.

correlations = summary(points)
findings(correlations, points)["theorem1"]  # ["Over all masks: Spearman 0.98, Pearson 0.99 (n = 248): holds.", ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from baselines.infoprune.correlation import correlation

Rows = list[dict[str, Any]]

NOISE, DISTRIBUTION = 0.01, "amplitude"  # the sentences use this setting of theorem 1
READABLE = 0.05  # nats that a probe must read from a whole layer before a loss is meaningful
SMALL, SEEN = 0.01, 0.05  # a prediction below SMALL is wrong if the measured loss is above SEEN
EXACT = 1e-6
TITLES = {
    "theorem1": "Theorem 1: I(X; Z_S) - I(X; Z) goes with eRank(Z_S) - eRank(Z)",
    "theorem2": "Theorem 2: a small KS distance keeps I(Y; Z_S)",
    "theorem3": "Theorem 3: the energy that an SVD drops is the error of the output",
}
READERS = {"probe": "a linear probe on the layer's output", "model": "the model's own answers"}
THROUGH = {
    ("linear", 0): "One Linear, plain",
    ("linear", 1): "One Linear, whitened",
    ("factor", 0): "FFN, `factor`, plain",
    ("factor", 1): "FFN, `factor`, whitened",
    ("compose-linear", 0): "W2 W1 without activation, plain",
    ("compose-linear", 1): "W2 W1 without activation, whitened",
    ("compose-act", 0): "W2 W1 with activation, plain",
    ("compose-act", 1): "W2 W1 with activation, whitened",
}


def verdict(rho: float | None) -> str:
    """A rank correlation in words: from 0.8 a claim holds, from 0.4 in part; below -0.2 it is reversed."""
    if rho is None:
        return "cannot be told"
    for least, words in ((0.8, "holds"), (0.4, "holds in part")):
        if rho >= least:
            return words
    return "does not hold" if rho > -0.2 else "is reversed"


def summary(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Rows]:
    """Correlations of the points by theorem, one row per setting and layer; the layer "all" pools all layers."""
    first = points["theorem1"]
    settings = [(noise, kind) for noise in dict.fromkeys(p["noise"] for p in first) for kind in ("amplitude", "energy")]
    return {
        "theorem1": [
            {"noise": noise, "distribution": kind} | row
            for noise, kind in settings
            for row in _by_block([p for p in first if p["noise"] == noise], f"erank_{kind}", "information")
        ],
        "theorem2": [
            {"reader": reader} | row
            for reader in READERS
            for row in _by_block([p for p in points["theorem2"] if _is_readable(p, reader)], "ks", reader)
        ],
        "theorem3": [
            {"through": through, "whiten": whiten} | _predictions(path_points)
            for through, whiten in THROUGH
            if (path_points := [p for p in points["theorem3"] if (p["through"], p["whiten"]) == (through, whiten)])
        ],
    }


def _is_readable(point: Mapping[str, Any], reader: str) -> bool:
    return reader != "probe" or point["there"] >= READABLE


def _by_block(points: Sequence[Mapping[str, Any]], x: str, y: str) -> Rows:
    """Correlations of x and y, pooled and by block; `within`: among masks of a block that keep equally many heads."""
    blocks = {"all": points} | {name: [p for p in points if p["block"] == name] for name in _blocks(points)}
    return [
        {"block": name}
        | correlation(
            [p[x] for p in block_points], [p[y] for p in block_points], [(p["block"], p["kept"]) for p in block_points]
        )
        for name, block_points in blocks.items()
    ]


def _blocks(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(point["block"] for point in points))


def _predictions(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well the predicted losses agree with those measured on unseen rows.

    ratio: measured over predicted, its 5 %, 50 % and 95 % quantiles. gap: the largest difference on the rows that gave
    the whitener. hidden: the largest measured loss where less than 1 % was predicted.
    """
    agreement = correlation([p["predicted"] for p in points], [p["unseen"] for p in points])
    ratios = [p["unseen"] / p["predicted"] for p in points if p["predicted"] > 1e-6]
    small = [p["unseen"] for p in points if p["predicted"] < SMALL]
    return {
        "n": agreement["n"],
        "pearson": agreement["pearson"],
        "spearman": agreement["spearman"],
        "ratio": np.quantile(ratios, [0.05, 0.5, 0.95]).tolist() if ratios else None,
        "gap": max(abs(p["predicted"] - p["seen"]) for p in points),
        "hidden": max(small, default=None),
    }


# --- in words ---------------------------------------------------------------------------------------------


def findings(
    correlations: Mapping[str, Rows], points: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[str]]:
    """The sentences by theorem."""
    first = [r for r in correlations["theorem1"] if (r["noise"], r["distribution"]) == (NOISE, DISTRIBUTION)]
    others = [r for r in correlations["theorem1"] if r["block"] == "all" and r not in first]
    second: list[str] = []
    for reader, reader_text in READERS.items():
        second += _sentences(
            [r for r in correlations["theorem2"] if r["reader"] == reader], f"Read by {reader_text}, over"
        )
    mute = [
        name for name in _blocks(points["theorem2"]) if not any(_is_readable(p, "probe") for p in _of(points, name))
    ]
    if mute:
        second.append(
            f"The probe reads less than {READABLE:g} nats from the whole of {', '.join(mute)}: nothing there to lose,"
            " and left out of its figures."
        )
    lowest = min((r["spearman"] for r in others if r["spearman"] is not None), default=None)
    return {
        "theorem1": [
            *_sentences(first, f"At a noise of {NOISE:g} of the output's variance, eRank of s / sum s, over"),
            f"Over the other noises and the energy form of eRank, the least Spearman is {_number(lowest)}.",
        ],
        "theorem2": second,
        "theorem3": [_third(row) for row in correlations["theorem3"]],
    }


def _of(points: Mapping[str, Sequence[Mapping[str, Any]]], block: str) -> list[Mapping[str, Any]]:
    return [point for point in points["theorem2"] if point["block"] == block]


def _sentences(rows: Sequence[Mapping[str, Any]], start: str) -> list[str]:
    pooled, layers = rows[0], rows[1:]
    within = pooled["within"]
    sentences = [
        f"{start} all masks: Spearman {_number(pooled['spearman'])}, Pearson {_number(pooled['pearson'])}"
        f" (n = {pooled['n']}): **{verdict(pooled['spearman'])}**.",
        f"Among masks of a layer that keep equally many heads: Spearman {_number(within['spearman'])}"
        f" (n = {within['n']}): **{verdict(within['spearman'])}**.",
    ]
    both = (pooled["spearman"], within["spearman"])
    if None not in both and both[0] - both[1] > 0.2:
        sentences[-1] += (
            " Much of the agreement over all masks is thus how many heads are left, which any count would give."
        )
    weak = [r for r in layers if r["spearman"] is not None and r["spearman"] < 0.4]
    if weak:
        named = ", ".join(f"{r['block']} ({_number(r['spearman'])})" for r in weak)
        sentences.append(f"By layer, it does not hold over all masks in {named}.")
    return sentences


def _third(row: Mapping[str, Any]) -> str:
    text = f"{THROUGH[row['through'], row['whiten']]}: "
    if row["gap"] <= EXACT:
        text += f"exact on the rows it is made from (to {EXACT:g}); "
    text += "on unseen rows "
    order = verdict(row["spearman"])
    if row["ratio"]:
        least, middle, most = row["ratio"]
        text += (
            f"the measured loss is {middle:.3g} times the predicted (median; 90 % within {least:.2g} to {most:.2g}), "
        )
        if order.startswith("holds") and most > 4 * least:
            order += ", as an order more than as a size"
    text += f"Spearman {_number(row['spearman'])} (n = {row['n']}): "
    if row["hidden"] is not None and row["hidden"] > SEEN:
        return f"{text}**does not hold**: where under {SMALL:.0%} is predicted, as much as {row['hidden']:.0%} is lost."
    return f"{text}**{order}**."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# --- the page ---------------------------------------------------------------------------------------------


def page(record: Mapping[str, Any]) -> str:
    """The page as Markdown, made only from the record, with `theory.png` beside it."""
    points = record["points"]
    correlations = summary(points)
    sentences = findings(correlations, points)
    lines = [
        "# InfoPrune (reconstructed): its theorems, measured",
        "",
        f"On `{record['model']}` (weights {record['weights']}) with {record['samples']} calibration questions."
        " Z_S is the output of an attention layer of which the heads S are kept, the layers before it dense.",
        "",
        "A claim is said to hold from a rank correlation of 0.8, in part from 0.4, and to be reversed below -0.2; a"
        f" prediction does not hold if it says under {SMALL:.0%} where over {SEEN:.0%} is lost.",
        "",
        "![The points](theory.png)",
    ]
    for theorem, title in TITLES.items():
        lines += ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences[theorem])]
        lines += ["", *_table(theorem, correlations[theorem])]
    lines += [
        "",
        "Every point is in `theory.csv` and `theory.json`. `infoprune theory --out FOLDER` with the same model and"
        " number of samples remakes this page from `theory.json` if that lies in the folder, and measures anew if not.",
        "",
    ]
    return "\n".join(lines)


def _table(theorem: str, rows: Rows) -> list[str]:
    if theorem == "theorem3":
        heads = ["prediction", "n", "Spearman", "measured / predicted (median)", "gap on seen rows", "hidden loss"]
        cells = [
            [
                THROUGH[r["through"], r["whiten"]],
                str(r["n"]),
                _number(r["spearman"]),
                f"{r['ratio'][1]:.3g}" if r["ratio"] else "-",
                f"{r['gap']:.2g}",
                "-" if r["hidden"] is None else f"{r['hidden']:.2g}",
            ]
            for r in rows
        ]
    else:
        keys = ["noise", "distribution", "block"] if theorem == "theorem1" else ["reader", "block"]
        heads = [*keys, "n", "Pearson", "Spearman", "n alike", "Spearman, equally many heads"]
        cells = [
            [
                *(str(r[key]) for key in keys),
                str(r["n"]),
                *(_number(r[key]) for key in ("pearson", "spearman")),
                str(r["within"]["n"]),
                _number(r["within"]["spearman"]),
            ]
            for r in rows
            if theorem == "theorem2" or r["block"] == "all" or (r["noise"], r["distribution"]) == (NOISE, DISTRIBUTION)
        ]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *cells)]
