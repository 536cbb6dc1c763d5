"""The data for the page's script: the columns of the table, and the details of each trial.

    python -c "from harness.records.record import load; from harness.report.details import repeat; \
               print(repeat(load('results/demo')[0][0]))"

Parts of a record that its schema does not define are shown only if they have the expected form.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd
import yaml

from harness.records.record import Record, dig
from harness.report import tables
from harness.report.board import Board
from harness.report.examples import Examples
from harness.report.looks import DASHES, MARKERS, curve_looks
from harness.text import TOO_FEW, plain, shorten
from harness.types import Choice, Keep

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
UNITS = 65536  # maximal heads or channels of a block; a plan with more is not shown
UNUSED = ("board", "model", "flops_reduction")  # columns that neither the table nor the plot uses
OWN = (
    "board",
    "method",
    "options",
    "seed",
    "budget",
    "scope",
)  # keys of a trial that differ between the trials of a board
# Keys of a trial that a board sets per method, by their names there.
ENTRY = {"tuning": "recovery", "control": "control", "sequential": "sequential"}


def data(board: Board, records: Sequence[Record], examples: Examples) -> dict[str, Any]:
    """All data of the page's script, as JSON values: a column of the frame as a list, and a value per trial.

    A column whose trials all agree is that one value, which keeps the page small.
    """
    by_id = {record.id: record for record in records}
    ordered = [by_id[id] for id in board.frame["trial"]]
    plans = [_blocks(record) for record in ordered]
    blocks = sorted({block for plan in plans for block in plan}, key=_natural)
    setups: dict[str, dict[str, Any]] = {}  # settings that many trials share, by their raw JSON
    trials = [
        _trial(record, [plan.get(block) for block in blocks], examples, setups)
        for record, plan in zip(ordered, plans, strict=True)
    ]
    places = {key: place for place, key in enumerate(setups)}
    for trial in trials:
        trial["setup"] = places[trial["setup"]]
    return {
        "board": board.name,
        "nothing": tables.NOTHING,
        "few": TOO_FEW,
        "axes": _axes(board),
        "rows": {str(key): _values(column) for key, column in board.frame.items() if key not in UNUSED},
        "weights": [_weights(record) for record in ordered],
        "looks": {
            curve: [look.color, MARKERS[look.marker], look.variant, look.studied, look.label]
            for curve, look in curve_looks(board.panels).items()
        },
        "dashes": DASHES,
        "blocks": blocks,
        "sizes": _sizes(plans),
        "trials": trials,
        "setups": list(setups.values()),
        "questions": examples.questions,
        "images": examples.images,
        "reported": [
            {"method": f.method, "flops_kept": 1 / f.flops_reduction, "latency_speedup": f.latency_speedup}
            for f in board.reported
        ],
    }


def _axes(board: Board) -> list[dict[str, Any]]:
    """The columns for the plot's horizontal axis. Each has a key, a label, and a sign: 1 if larger is better, else -1.

    These are the board's figures with a declared better direction, except accuracy, which is the vertical axis.
    """
    declared, rows = tables.declared(), board.frame.to_dict("records")
    columns = [declared[str(name)][1] for name in board.frame.columns if name in declared and name != "accuracy"]
    return [
        {"key": column.name, "label": column.label, "sign": 1 if column.better == "higher" else -1}
        for column in columns
        if column.better and tables.values(rows, column.name)
    ]


def _values(column: pd.Series) -> Any:
    cells = [_rounded(value) if isinstance(value, float) else value for value in column.tolist()]
    return cells[0] if column.name != "trial" and len(set(cells)) == 1 else cells


def _rounded(value: float) -> float | None:
    if value != value:
        return None
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _number(value: Any, *path: str) -> float | None:
    value = dig(value, *path)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return _rounded(float(value))


def _brief(value: Any, *path: str) -> float | None:
    """A number of which the page shows two decimals."""
    value = _number(value, *path)
    return None if value is None else round(value, 4)


def _weights(record: Record) -> float | None:
    """Bytes of the pruned model's weights, in the trial's precision; None if unknown."""
    params = _number(record.metrics, "flops", "params", "pruned")
    size = BYTES.get(record.trial.dtype)
    return None if params is None or size is None or record.error else params * size


def _trial(record: Record, plan: list[Any], examples: Examples, setups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The details of a trial that the page shows besides its row."""
    trial, hashes = record.trial, record.hashes
    common = {key: value for key, value in trial.content().items() if key not in OWN}
    shared = [hashes.get("weights"), hashes.get("data")]
    key = json.dumps([trial.method, record.contestant.title, common, vars(record.code), record.env, shared])
    if key not in setups:
        setups[key] = _setup(record)
    details: dict[str, Any] = {
        "setup": key,
        "command": _command(record),
        "hashes": {key: _text(hashes[key]) for key in ("plan", "samples") if key in hashes},
        "seconds": _number(record.cost.total_s),
    }
    if trial.options:
        details["options"] = {str(key): _text(value) for key, value in sorted(trial.options.items())}
    if record.error is not None:
        return details
    metrics = record.metrics
    details["tasks"] = [
        [plain(task), *(_brief(result, key) for key in ("accuracy", "lo", "hi", "n", "images"))]
        for task, result in sorted((metrics.get("accuracy") or {}).get("tasks", {}).items())
    ]
    details["latency"] = list(_latency(metrics))
    details["plan"] = plan
    if flips := examples.flips.get(record.id):
        details["flips"] = [flips.questions, flips.lost, flips.gained, flips.shown]
    return details


def _setup(record: Record) -> dict[str, Any]:
    trial, env, hashes = _content(record), record.env, record.hashes
    packages = env.get("packages")
    return {
        "title": record.contestant.title,
        "code": {key: plain(str(value)) for key, value in vars(record.code).items()},
        "machine": {key: _text(value) for key, value in sorted(env.items()) if key != "packages"},
        "packages": {str(key): _text(value) for key, value in sorted(packages.items())}
        if isinstance(packages, Mapping)
        else {},
        "hashes": {key: _text(hashes[key]) for key in ("weights", "data") if key in hashes},
        "trial": {key: _text(value) for key, value in sorted(trial.items()) if key not in OWN},
        "checkout": _checkout(record),
        "command": f"{_lines(_common(trial))}' > trial.yaml\ninfoprune sweep trial.yaml\n",
    }


def _content(record: Record) -> dict[str, Any]:
    """The trial's plain values with sorted keys, as in its record's file."""
    return json.loads(json.dumps(record.trial.content(), sort_keys=True))


def _text(value: Any) -> str:
    return shorten(plain(value if isinstance(value, str) else json.dumps(value)), 300)


def _latency(metrics: Mapping[str, Any]) -> Iterable[list[Any]]:
    """Rows of (stage, batch, dense ms, pruned ms, ratio, lo, hi), with None for missing figures."""
    stages = (metrics.get("latency") or {}).get("stages")
    for stage, batches in sorted(stages.items()) if isinstance(stages, Mapping) else ():
        for batch, times in (
            sorted(batches.items(), key=lambda item: _natural(item[0])) if isinstance(batches, Mapping) else ()
        ):
            figures = [_brief(times, "dense_ms", "p50"), _brief(times, "pruned_ms", "p50")]
            yield [plain(stage), plain(batch), *figures, *(_brief(times, key) for key in ("ratio", "lo", "hi"))]


# --- plans --------------------------------------------------------------------------------------------------


def _blocks(record: Record) -> dict[str, list[Any]]:
    """Block -> kept parts of its heads and of its FFN; see `_part`. None: the plan keeps the whole part."""
    if record.error is not None or record.plan is None:
        return {}
    blocks: dict[str, list[Any]] = {}
    for (name, kind), part in record.plan.parts.items():
        parts = blocks.setdefault(plain(name), [None, None])
        parts[0 if kind == "heads" else 1] = _part(part, kind == "heads")
    return blocks


def _part(part: Keep | Choice, which: bool) -> Any:
    """An option's label, or [number of kept units, highest index]; `which` adds a bit mask of the units in hex."""
    if isinstance(part, Choice):
        return _text(part.label)
    indices = part.indices
    if set(map(type, indices)) != {int} or min(indices) < 0 or max(indices) >= UNITS:
        return None
    numbers = [len(indices), max(indices)]
    return [*numbers, format(sum(1 << i for i in set(indices)), "x")] if which else numbers


def _sizes(plans: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, list[int]]:
    """Component -> numbers of heads and FFN channels per block: one more than the highest index in any plan."""
    sizes_of: dict[str, list[int]] = {}
    for plan in plans:
        for block, parts in plan.items():
            sizes = sizes_of.setdefault(block.split(".")[0], [0, 0])
            for i, part in enumerate(parts):
                if isinstance(part, list):
                    sizes[i] = max(sizes[i], part[1] + 1)
    return sizes_of


def _natural(text: str) -> list[Any]:
    return [
        (0, int(word), "") if word.isascii() and word.isdigit() else (1, 0, word) for word in re.split(r"(\d+)", text)
    ]


# --- how to repeat a trial ----------------------------------------------------------------------------------


def repeat(record: Record) -> str:
    """The shell command that repeats this trial, as a board of one method, one budget and one scope."""
    return _checkout(record) + _command(record) + _setup(record)["command"]


def _checkout(record: Record) -> str:
    """The start of a trial's command."""
    revision = str(record.code.revision)
    checkout = f"git checkout {revision}\n" if re.fullmatch("[0-9a-f]{7,40}", revision) else ""
    return f"{checkout}printf %s '"


def _command(record: Record) -> str:
    """The part of a trial's command that its setup does not hold."""
    trial = _content(record)
    entry = {"method": record.trial.lookup, "options": trial["options"], "seeds": trial["seed"] + 1}
    entry |= {name: trial[key] for name, key in ENTRY.items() if key in trial}
    board = {"name": trial["board"], "methods": [entry], "budgets": [trial["budget"]], "scopes": [trial["scope"]]}
    return _lines(board)


def _common(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial that its board has under the same names."""
    common = {key: value for key, value in trial.items() if key not in {*OWN, "tuning", *ENTRY.values()}}
    if trial["method"] == "none" and "metrics" in common:  # a board adds floors to its dense trial anyway
        common["metrics"] = [metric for metric in common["metrics"] if metric != "floors"]
    return common


def _lines(mapping: Mapping[str, Any]) -> str:
    """A mapping as ASCII YAML, which every terminal shows alike, to stand in the shell's single quotes."""
    return "".join(_line(key, json.dumps(value)) for key, value in mapping.items()).replace("'", "'\"'\"'")


@lru_cache(maxsize=1 << 12)
def _line(key: str, value: str) -> str:
    text = yaml.dump([json.loads(value)], Dumper=_Dumper, default_flow_style=True, width=1 << 30)
    return f"{key}: {text[1:-2]}\n"


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as one line in double quotes."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if "\n" in text else None)
)
