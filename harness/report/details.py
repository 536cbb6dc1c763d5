"""What the page's script draws, from the records: the columns of the table, and what is known of each trial.

    python -c "from harness.record import load; from harness.report.details import repeat; \
               print(repeat(load('results/demo')[0][0]))"

Parts of a record that its schema does not promise are shown as far as they are what they should be.
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

from harness.record import DESCRIBED, dig
from harness.report import tables
from harness.report.board import Board
from harness.report.examples import Examples
from harness.report.plots import curve_looks
from harness.text import plain, shorten

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
UNITS = 65536  # heads or channels of a block, at most: a plan that says more is not believed
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
           "X": "x", "<": "triangle-left", ">": "triangle-right"}  # fmt: skip
UNUSED = ("board", "model", "flops_reduction")  # columns that neither the table nor the plot goes by
OWN = (*DESCRIBED, "board", "method", "options", "seed", "budget", "scope")  # of a trial: what tells it from others
TUNING = ("tuning", "recovery", "control")  # of a trial: what a board says of its method


def data(board: Board, records: Sequence[Mapping[str, Any]], examples: Examples) -> dict[str, Any]:
    """Everything that the page's script draws, as JSON: a list per column of the frame, and a value per trial."""
    by_id = {record["id"]: record for record in records}
    ordered = [by_id[id] for id in board.frame["trial"]]
    plans = [_blocks(record) for record in ordered]
    blocks = sorted({block for plan in plans for block in plan}, key=_natural)
    setups: dict[str, dict[str, Any]] = {}  # what many trials share, by its raw JSON
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
        "rows": {str(key): _values(column) for key, column in board.frame.items() if key not in UNUSED},
        "weights": [_weights(record) for record in ordered],
        "looks": {
            curve: [look.color, SYMBOLS[look.marker], "solid" if look.dash == "-" else "dash", look.studied]
            for curve, look in curve_looks(board.panels).items()
        },
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


def _values(column: pd.Series) -> list[Any]:
    return [_rounded(value) if isinstance(value, float) else value for value in column.tolist()]


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if value == value else None


def _number(value: Any, *path: str) -> float | None:
    value = dig(value, *path)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return _rounded(float(value))


def _weights(record: Mapping[str, Any]) -> float | None:
    """Bytes of the pruned model's weights, in the precision of the trial."""
    params = _number(record.get("metrics"), "flops", "params", "pruned")
    size = BYTES.get(record["trial"]["dtype"])
    return None if params is None or size is None or record["status"] != "ok" else params * size


def _trial(
    record: Mapping[str, Any], plan: list[Any], examples: Examples, setups: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What the part of the page about this trial shows besides its row."""
    trial, hashes = record["trial"], record["hashes"]
    common = {key: value for key, value in trial.items() if key not in OWN}
    shared = [hashes.get("weights"), hashes.get("data")]
    key = json.dumps([trial["method"], trial["title"], common, record["code"], record["env"], shared])
    if key not in setups:
        setups[key] = _setup(record)
    found: dict[str, Any] = {
        "setup": key,
        "command": _command(record),
        "hashes": {key: _text(hashes[key]) for key in ("plan", "samples") if key in hashes},
        "seconds": _number(record.get("cost"), "total_s"),
    }
    if trial["options"]:
        found["options"] = {str(key): _text(value) for key, value in sorted(trial["options"].items())}
    if record["status"] != "ok":
        return found
    metrics = record.get("metrics") or {}
    found["tasks"] = [
        [plain(task), *(_number(own, key) for key in ("accuracy", "lo", "hi", "n", "images"))]
        for task, own in sorted((metrics.get("accuracy") or {}).get("tasks", {}).items())
    ]
    found["latency"] = list(_latency(metrics))
    found["plan"] = plan
    if flips := examples.flips.get(record["id"]):
        found["flips"] = [flips.questions, flips.lost, flips.gained, flips.shown]
    return found


def _setup(record: Mapping[str, Any]) -> dict[str, Any]:
    trial, env, hashes = record["trial"], record["env"], record["hashes"]
    packages = env.get("packages") if isinstance(env.get("packages"), Mapping) else {}
    return {
        "title": trial["title"],
        "code": {key: plain(str(record["code"].get(key))) for key in ("version", "revision", "dirty")},
        "machine": {key: _text(value) for key, value in sorted(env.items()) if key != "packages"},
        "packages": {str(key): _text(value) for key, value in sorted(packages.items())},
        "hashes": {key: _text(hashes[key]) for key in ("weights", "data") if key in hashes},
        "trial": {key: _text(value) for key, value in sorted(trial.items()) if key not in OWN},
        "command": f"{_lines(_common(trial))}' > trial.yaml\ninfoprune sweep trial.yaml\n",
    }


def _text(value: Any) -> str:
    return shorten(plain(value if isinstance(value, str) else json.dumps(value)), 300)


def _latency(metrics: Mapping[str, Any]) -> Iterable[list[Any]]:
    """Rows of (stage, batch, dense ms, pruned ms, ratio, lo, hi), as far as the record has them."""
    stages = (metrics.get("latency") or {}).get("stages")
    for stage, batches in sorted(stages.items()) if isinstance(stages, Mapping) else ():
        for batch, own in (
            sorted(batches.items(), key=lambda item: _natural(item[0])) if isinstance(batches, Mapping) else ()
        ):
            figures = [_number(own, "dense_ms", "p50"), _number(own, "pruned_ms", "p50")]
            yield [plain(stage), plain(batch), *figures, *(_number(own, key) for key in ("ratio", "lo", "hi"))]


# --- plans --------------------------------------------------------------------------------------------------


def _blocks(record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Block -> what is kept of its heads and of its FFN: see `_part`. What the plan does not name is whole: None."""
    blocks = (record.get("plan") or {}).get("blocks")
    if record["status"] != "ok" or not isinstance(blocks, Mapping):
        return {}
    return {
        plain(name): [_part(parts.get("heads"), True), _part(parts.get("ffn"), False)]
        for name, parts in blocks.items()
        if isinstance(parts, Mapping)
    }


def _part(part: Any, which: bool) -> Any:
    """An option's label; or [units kept, highest of them], and as hex digits, if asked, which ones."""
    if isinstance(part, Mapping):
        return _text(part.get("label"))
    if not isinstance(part, list) or set(map(type, part)) != {int} or min(part) < 0 or max(part) >= UNITS:
        return None
    found = [len(part), max(part)]
    return [*found, format(sum(1 << i for i in set(part)), "x")] if which else found


def _sizes(plans: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, list[int]]:
    """Component -> heads and FFN channels of its blocks: one more than the highest that any plan keeps."""
    found: dict[str, list[int]] = {}
    for plan in plans:
        for block, parts in plan.items():
            sizes = found.setdefault(block.split(".")[0], [0, 0])
            for i, part in enumerate(parts):
                if isinstance(part, list):
                    sizes[i] = max(sizes[i], part[1] + 1)
    return found


def _natural(text: str) -> list[Any]:
    return [
        (0, int(word), "") if word.isascii() and word.isdigit() else (1, 0, word) for word in re.split(r"(\d+)", text)
    ]


# --- how to repeat a trial ----------------------------------------------------------------------------------


def repeat(record: Mapping[str, Any]) -> str:
    """The shell command that runs this trial again, as a board of one method, one budget and one scope."""
    return _command(record) + _setup(record)["command"]


def _command(record: Mapping[str, Any]) -> str:
    """The beginning of a trial's command; the rest is its setup's."""
    trial, revision = record["trial"], str(record["code"].get("revision"))
    entry = {"method": trial["method"], "options": trial["options"], "seeds": trial["seed"] + 1}
    entry |= {name: trial[key] for name, key in (("tuning", "recovery"), ("control", "control")) if key in trial}
    own = {"name": trial["board"], "methods": [entry], "budgets": [trial["budget"]], "scopes": [trial["scope"]]}
    checkout = f"git checkout {revision}\n" if re.fullmatch("[0-9a-f]{7,40}", revision) else ""
    return f"{checkout}printf %s '{_lines(own)}"


def _common(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial's board says under the same names as the trial does."""
    common = {key: value for key, value in trial.items() if key not in OWN and key not in TUNING}
    if trial["method"] == "none" and "metrics" in common:  # a board adds the floors to the dense trial by itself
        common["metrics"] = [metric for metric in common["metrics"] if metric != "floors"]
    return common


def _lines(mapping: Mapping[str, Any]) -> str:
    """A mapping as YAML in ASCII, which is the same to every terminal, inside the shell's single quotes."""
    return "".join(_line(key, json.dumps(value)) for key, value in mapping.items()).replace("'", "'\"'\"'")


@lru_cache(maxsize=1 << 12)
def _line(key: str, value: str) -> str:
    text = yaml.dump([json.loads(value)], Dumper=_Dumper, default_flow_style=True, width=1 << 30)
    return f"{key}: {text[1:-2]}\n"


class _Dumper(yaml.SafeDumper):
    """Puts a text of several lines on one, in double quotes."""


_Dumper.add_representer(
    str, lambda own, text: own.represent_scalar("tag:yaml.org,2002:str", text, '"' if "\n" in text else None)
)
