"""The data for the page's scripts: the columns of the table, and the details of each trial.

    python -c "from harness.records.record import load; from harness.report.details import repeat; \
               print(repeat(load('results/demo')[0][0]))"

Parts of a record that its schema does not define are shown only if they have the expected form.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

import pandas as pd
import yaml

from harness.records.record import Record, dig
from harness.report.board import Board
from harness.report.examples import Examples
from harness.report.frame import declared
from harness.report.looks import DASHES, MARKERS, curve_looks
from harness.report.panels import NOTHING, values
from harness.text import TOO_FEW, plain, shorten
from harness.types import DENSE, WIDTHS, Trial

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
UNITS = 65536  # maximal heads or channels of a block; a plan with more is not shown
TIMED = ("stages", "answer", "more")  # parts of the latency metric that have every time
UNUSED = ("board", "model", "split", "flops_reduction")  # columns that neither the table nor the plot uses
# Keys of a trial that differ between the trials of a board.
OWN = ("board", "method", "options", "seed", "budget", "scope")
SETTINGS = ("method", *(item.name for item in fields(Trial) if item.name not in OWN))
# Keys of a trial that a board sets per method, by their names there.
ENTRY = {"tuning": "recovery", "control": "control", "sequential": "sequential", "shares": "shares", "tokens": "tokens"}
USUAL = {
    item.name: item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
    for item in fields(Trial)
    if item.name in ENTRY
}


class Parts:
    """Plans and timed stages of trials as JSON text. They are most of a record, and only the details show them."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}  # trial id -> JSON of its plan and latency, without braces
        self.blocks: dict[str, int] = {}  # block -> its place in every plan
        self.sizes: dict[str, list[int]] = {}  # component -> heads and FFN channels per block, by the highest index

    def keep(self, content: dict[str, Any]) -> dict[str, Any]:
        """Take these parts out of a record's JSON, and what no page shows; see `record.parse`."""
        metrics = dict(content.get("metrics") or {})
        if content["error"] is None:
            plan = self._plan((content.get("plan") or {}).get("blocks") or {})
            parts = {"plan": plan, "latency": list(_latency(metrics))}
            if tokens := dig(content, "plan", "tokens"):
                parts["tokens"] = _tokens(tokens)
            self.texts[content["id"]] = json.dumps(parts, separators=(",", ":"))[1:-1]
        if isinstance(metrics.get("latency"), Mapping):
            metrics["latency"] = {key: part for key, part in metrics["latency"].items() if key not in TIMED}
        plan = content.get("plan")
        if isinstance(plan, Mapping):
            plan = {**{key: part for key, part in plan.items() if key != "widths"}, "blocks": {}}
        cost = {key: part for key, part in (content.get("cost") or {}).items() if not isinstance(part, dict)}
        return {**content, "plan": plan, "log": None, "metrics": metrics, "cost": cost}

    def _plan(self, blocks: Mapping[str, Any]) -> list[Any]:
        """Kept parts of the heads and of the FFN of each block; see `_part`. None: the plan keeps the whole part."""
        plan: list[Any] = [None] * len(self.blocks)
        for name, kinds in blocks.items():
            shown: list[Any] = ["removed", "removed"] if kinds.get("layers") == [] else [None, None]
            sizes = self.sizes.setdefault(plain(name).split(".")[0], [0, 0])
            for kind, part in kinds.items():
                if kind not in WIDTHS or "removed" in shown:
                    continue
                place = 0 if kind == "heads" else 1
                shown[place] = _part(part, kind == "heads")
                if isinstance(shown[place], list):
                    sizes[place] = max(sizes[place], shown[place][1] + 1)
            place = self.blocks.setdefault(plain(name), len(self.blocks))
            plan += [None] * (place + 1 - len(plan))
            plan[place] = shown
        return plan


def data(board: Board, records: Sequence[Record]) -> dict[str, Any]:
    """The data of the table and the plot: a column of the frame as a list, and each trial's weights in bytes.

    A column whose trials all agree is that one value, which keeps the page small.
    """
    by_id = {record.id: record for record in records}
    return {
        "board": board.name,
        "nothing": NOTHING,
        "few": TOO_FEW,
        "axes": _axes(board),
        "rows": {str(key): _values(column) for key, column in board.frame.items() if key not in UNUSED},
        "weights": [_weights(by_id[id]) for id in board.frame["trial"]],
        "looks": {
            curve: [look.color, MARKERS[look.marker], look.variant, look.studied, look.label]
            for curve, look in curve_looks(board.panels).items()
        },
        "dashes": DASHES,
        "reported": [
            {"method": f.method, "flops_kept": 1 / f.flops_reduction, "latency_speedup": f.latency_speedup}
            for f in board.reported
        ],
    }


def trials(board: Board, records: Sequence[Record], parts: Parts, examples: Examples) -> str:
    """The details of all trials as JSON text, in the order of the frame."""
    by_id = {record.id: record for record in records}
    setups: dict[str, int] = {}  # settings that many trials share -> their place
    values: list[dict[str, Any]] = []
    texts = []
    for id in board.frame["trial"]:
        own = json.dumps(_trial(by_id[id], examples, setups, values), separators=(",", ":"), allow_nan=False)
        texts.append(f"{own[:-1]},{parts.texts[id]}}}" if id in parts.texts else own)
    shared = {
        "blocks": list(parts.blocks),
        "sizes": parts.sizes,
        "setups": values,
        "questions": examples.questions,
        "images": examples.images,
    }
    head = json.dumps(shared, separators=(",", ":"), allow_nan=False)
    return f'{head[:-1]},"trials":[{",".join(texts)}]}}'


def _axes(board: Board) -> list[dict[str, Any]]:
    """The columns for the plot's horizontal axis. Each has a key, a label, and a sign: 1 if larger is better, else -1.

    These are the board's figures with a declared better direction, except accuracy, which is the vertical axis.
    """
    known, rows = declared(), board.rows
    columns = [known[str(name)][1] for name in board.frame.columns if name in known and name != "accuracy"]
    return [
        {"key": column.name, "label": column.label, "sign": 1 if column.better == "higher" else -1}
        for column in columns
        if column.better and values(rows, column.name)
    ]


def _values(column: pd.Series) -> Any:
    cells = [_rounded(value) if isinstance(value, float) else value for value in column.tolist()]
    return cells[0] if column.name != "trial" and len(set(cells)) == 1 else cells


def _rounded(value: float) -> float | None:
    if value != value:
        return None
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return _rounded(float(value))


def _brief(value: Any) -> float | None:
    """A number of which the page shows two decimals, or one of its points."""
    if type(value) is float:
        return round(value, 4)
    return value if type(value) is int and abs(value) <= sys.float_info.max else None


def _weights(record: Record) -> float | None:
    """Bytes of the pruned model's weights, as measured or else in the trial's precision; None if unknown."""
    if record.error is None and (measured := _number(dig(record.metrics, "memory", "pruned", "weight_bytes"))):
        return measured
    if record.trial.tuning.weights != "same":
        return None
    params = _number(dig(record.metrics, "flops", "params", "pruned"))
    size = BYTES.get(record.trial.dtype)
    return None if params is None or size is None or record.error else params * size


def _trial(record: Record, examples: Examples, setups: dict[str, int], values: list[dict[str, Any]]) -> dict[str, Any]:
    """The details of a trial that the page shows besides its row and its `Parts`."""
    trial, hashes = record.trial, record.hashes
    settings = [getattr(trial, name) for name in SETTINGS]
    key = repr([settings, record.contestant.title, record.code, record.env, hashes.get("weights"), hashes.get("data")])
    if key not in setups:
        setups[key] = len(setups)
        values.append(_setup(record))
    details: dict[str, Any] = {
        "setup": setups[key],
        "command": _command(record),
        "hashes": {key: _text(hashes[key]) for key in ("plan", "samples") if key in hashes},
        "seconds": _number(record.cost.total_s),
    }
    if trial.options:
        details["options"] = {str(key): _text(value) for key, value in sorted(trial.options.items())}
    if record.error is None:
        details["tasks"] = [
            [plain(task), *(_brief(result.get(key)) for key in ("accuracy", "lo", "hi", "n", "images"))]
            for task, result in sorted((record.metrics.get("accuracy") or {}).get("tasks", {}).items())
        ]
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
    stages = dig(metrics, "latency", "stages")
    for stage, batches in sorted(stages.items()) if isinstance(stages, Mapping) else ():
        for batch, times in sorted(batches.items(), key=_batch) if isinstance(batches, Mapping) else ():
            if isinstance(times, Mapping):
                middles = [dig(times.get(side), "p50") for side in ("dense_ms", "pruned_ms")]
                yield [plain(stage), plain(batch), *map(_brief, (*middles, *map(times.get, ("ratio", "lo", "hi"))))]


def _batch(entry: tuple[str, Any]) -> tuple[int, str]:
    """Sort key of batch sizes, which are texts in JSON and may have any number of digits."""
    return len(entry[0]), entry[0]


# --- plans --------------------------------------------------------------------------------------------------


def _part(part: Any, which: bool) -> Any:
    """An option's label, or [number of kept units, highest index]; `which` adds a bit mask of the units in hex."""
    if isinstance(part, Mapping):
        return _text(part["label"])
    if set(map(type, part)) != {int}:
        return None
    highest = max(part)
    if highest >= UNITS or min(part) < 0:
        return None
    return [len(part), highest, format(sum(1 << i for i in set(part)), "x")] if which else [len(part), highest]


def _tokens(tokens: Mapping[str, Any]) -> str:
    """Which visual tokens go on, in words."""
    place = f"from layer {tokens['layer']} of the language model on" if tokens["layer"] else "before the language model"
    return _text(f"{100 * tokens['share']:.3g} % of the visual tokens go on {place}, chosen by {tokens['method']}.")


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
    trial = record.trial
    entry = {"method": trial.lookup, "options": dict(sorted(trial.options.items())), "seeds": trial.seed + 1}
    if any(getattr(trial, name) != default for name, default in USUAL.items()):
        content = trial.content()  # which takes its time
        entry |= {name: content[key] for name, key in ENTRY.items() if key in content}
    board = {"name": trial.board, "methods": [entry]}
    return _lines(board | {"budgets": [trial.budget], "scopes": [trial.scope]})


def _common(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial that its board has under the same names."""
    common = {key: value for key, value in trial.items() if key not in {*OWN, "tuning", "loading", *ENTRY.values()}}
    common |= trial.get("loading", {})  # whose parts are keys of a board
    if trial["method"] == DENSE and "metrics" in common:  # a board adds floors to its dense trial anyway
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
