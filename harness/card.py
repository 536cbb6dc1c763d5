"""The model card of an exported checkpoint: what was done to it, what it was measured to do, how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.report.tables import CURRENCIES, escape
from harness.text import plain
from harness.types import Trial

NOTHING = "–"


def card(
    trial: Trial,
    done: Mapping[str, Any],
    made: Mapping[str, Any],
    found: Mapping[str, Any] | None = None,
    dense: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with a header that hubs read. `found` is the board's record of the trial, `dense` that of the model it
    was made from; without them the card says that nothing was measured."""
    method = escape(f"{trial.method} {trial.variant}".strip())
    head = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["pruned"]}
    if trial.model.count("/") == 1 and not Path(trial.model).parent.is_dir():  # a hub id, as the registry tells them
        head["base_model"] = trial.model
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    trust = ", trust_remote_code=True" if done["form"] == "custom code" else ""
    why = "brings its own modelling file, `modeling_pruned.py`, as no config of the stock class says its widths"
    form = why if trust else "loads as transformers' stock class"
    measure = CURRENCIES[trial.currency] + (", as predicted" if trial.currency == "latency" else "")
    part = {"both": "", "heads": "heads' ", "ffn": "FFNs' "}[trial.units]
    return f"""---
{front}
---

# {escape(trial.model)}, pruned by {method} to {trial.budget:g} of its {trial.scope} {part}{measure}

Heads, channels or ranks are physically removed. It {form}.

{_table(trial, done, found, dense)}

{_measured(trial, found)}

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="auto"{trust})
processor = AutoProcessor.from_pretrained(FOLDER)
```

## Repeat

`plan.json` says what stays, and holds the whole trial. With InfoPrune-Bench at
`{_plain(made["code"]["revision"] or made["code"]["version"])}`,
`infoprune load plan.json {_plain(trial.model)} OUT` makes this model again from the dense weights
`{done["weights"]}`; the plan is `{done["plan"]}`, the trial `{done["trial"]}`.

| what | value |
|---|---|
{_rows(trial, made)}

The licence is that of the model it was made from.
"""


def _table(
    trial: Trial, done: Mapping[str, Any], found: Mapping[str, Any] | None, dense: Mapping[str, Any] | None
) -> str:
    before, after = done["before"], done["after"]
    rows = [
        (f"multiply-adds, {trial.scope} blocks", *(f"{size['macs']:,}" for size in (before, after))),
        ("multiply-adds, prefill in all", *(f"{size['total_macs']:,}" for size in (before, after))),
        ("parameters", *(f"{size['params']:,}" for size in (before, after))),
        ("weights, MB", *(f"{size['bytes'] / 1e6:,.1f}" for size in (before, after))),
    ]
    measured = [((one or {}).get("metrics") or {}) for one in (dense, found)]
    if found:
        accuracy = [one.get("accuracy") or {} for one in measured]
        rows.append(("accuracy, mean over tasks (95 %)", *(_interval(one, "mean") for one in accuracy)))
        for task in trial.tasks:
            each = [(one.get("tasks") or {}).get(task) or {} for one in accuracy]
            rows.append((f"accuracy, {escape(task)} (95 %)", *(_interval(one, "accuracy") for one in each)))
        latency = measured[1].get("latency") or {}
        if latency.get("speedup") is not None:
            speedup = f"{latency['speedup']:.2f} ({latency['speedup_lo']:.2f} to {latency['speedup_hi']:.2f})"
            rows.append((f"speed of the {trial.scope} part, as a factor (95 %)", "1", speedup))
    lines = [f"| {name} | {one} | {two} |" for name, one, two in rows]
    return "\n".join(["| | dense | pruned |", "|---|---:|---:|", *lines])


def _measured(trial: Trial, found: Mapping[str, Any] | None) -> str:
    if not found:
        return "Its answers were not measured: run it on a board before you rely on it."
    own = (found["metrics"].get("accuracy") or {}).get("tasks") or {}
    numbers = ", ".join(f"{one['n']:,} questions of {escape(task)}" for task, one in own.items() if "n" in one)
    machine = " ".join(str(found["env"][key]) for key in ("gpu", "cpu") if key in found["env"])
    return (
        f"Measured as trial `{found['id']}` of board {escape(trial.board)} on the {escape(trial.split)} split"
        f" ({numbers or 'no accuracy'}), with intervals clustered by image, on {escape(machine)}. This copy was made"
        " again from that trial; its plan is the measured one."
    )


def _rows(trial: Trial, made: Mapping[str, Any]) -> str:
    content = trial.content()
    shown = {key: content[key] for key in ("model", "method", "options", "scope", "units", "budget", "seed", "dtype")}
    shown |= {key: content[key] for key in ("currency", "align") if key in content}
    shown |= {"regime": made["trial"]["regime"], "tuning": content.get("recovery", "none")}
    shown |= {"calibration": content["calibration"], "reference input": content["reference_input"]}
    shown["versions"] = made["env"]["packages"]
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in shown.items()}
    return "\n".join(f"| {key} | {escape(value)} |" for key, value in text.items())


def _interval(found: Mapping[str, Any], key: str) -> str:
    if found.get(key) is None:
        return NOTHING
    text = f"{100 * found[key]:.1f}"
    return f"{text} ({100 * found['lo']:.1f} to {100 * found['hi']:.1f})" if found.get("lo") is not None else text


def _plain(text: str) -> str:
    return plain(text).replace("`", "'")
