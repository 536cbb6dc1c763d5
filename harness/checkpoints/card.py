"""The model card of an exported checkpoint: what was done to the model, its measured results, how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness import registry
from harness.records.record import Record, dig
from harness.report.tables import CURRENCIES, escape
from harness.text import TOO_FEW, plain
from harness.types import Trial

NOTHING = "–"


def card(done: Mapping[str, Any], record: Record, measured: Record | None = None, dense: Record | None = None) -> str:
    """Markdown with a header that hubs read.

    `done` has the fields of `export.Exported`, `record` is of this copy. `measured` is the board's record of the trial,
    `dense` that of the dense model; without them the card says that nothing was measured.
    """
    trial = record.trial
    method = escape(f"{trial.method} {trial.variant}".strip())
    head = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["pruned"]}
    if registry.is_hub_id(trial.model):
        head["base_model"] = trial.model
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    trust = ", trust_remote_code=True" if done["form"] == "custom code" else ""
    lacks = "its widths" if record.plan is None or record.plan.tokens is None else "which tokens go on"
    why = f"brings its own modelling file, `modeling_pruned.py`, as no config of the stock class says {lacks}"
    form = why if trust else "loads as transformers' stock class"
    measure = CURRENCIES[trial.currency] + (", as predicted" if trial.currency == "latency" else "")
    plan = record.plan
    kept = f"{plan.achieved:.3f}" if plan is not None and plan.coarse else f"{trial.budget:g}"
    scope = "" if trial.scope == "all" else f"{trial.scope} "
    part = {"heads": "heads' ", "ffn": "FFNs' "}.get(trial.units, "")
    return f"""---
{front}
---

# {escape(trial.model)}, pruned by {method} to {kept} of its {scope}{part}{measure}

{_removed(record)} It {form}.

{_table(trial, done, measured, dense)}

{_measured(trial, measured)}

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="auto"{trust})
processor = AutoProcessor.from_pretrained(FOLDER)
```

## Repeat

`plan.json` says what stays, and holds the whole trial. With InfoPrune-Bench at
`{_plain(record.code.revision or record.code.version or "")}`,
`infoprune load plan.json {_plain(trial.model)} OUT` makes this model again from the dense weights
`{done["weights"]}`; the plan is `{done["plan"]}`, the trial `{done["trial"]}`.

| what | value |
|---|---|
{_rows(record)}

The licence is that of the model it was made from.
"""


def _removed(record: Record) -> str:
    """What the cut is, in words."""
    tokens = record.plan.tokens if record.plan else None
    parts = "Layers, heads, channels or ranks are physically removed."
    if record.plan is None or tokens is None:
        return parts
    fewer = (
        f"From layer {tokens.layer} of the language model on, {tokens.share:.1%} of a prompt's visual tokens go on; "
        "`token_choice.py` says which."
    )
    return f"{parts} {fewer}" if record.plan.parts else fewer


def _table(trial: Trial, done: Mapping[str, Any], measured: Record | None, dense: Record | None) -> str:
    before, after = done["before"], done["after"]
    rows = [
        (f"multiply-adds, {trial.scope} blocks", *(f"{size['macs']:,}" for size in (before, after))),
        ("multiply-adds, prefill in all", *(f"{size['total_macs']:,}" for size in (before, after))),
        ("parameters", *(f"{size['params']:,}" for size in (before, after))),
        ("weights, MB", *(f"{size['bytes'] / 1e6:,.1f}" for size in (before, after))),
    ]
    if measured is not None:
        accuracies = [record.metrics.get("accuracy", {}) if record else {} for record in (dense, measured)]
        rows.append(("accuracy, mean over tasks (95 %)", *(_interval(result, "mean") for result in accuracies)))
        for task in trial.questions.tasks:
            each = [dig(result, "tasks", task) or {} for result in accuracies]
            rows.append((f"accuracy, {escape(task)} (95 %)", *(_interval(result, "accuracy") for result in each)))
        latency = measured.metrics.get("latency", {})
        if latency.get("speedup") is not None:
            speedup = f"{latency['speedup']:.2f} ({latency['speedup_lo']:.2f} to {latency['speedup_hi']:.2f})"
            rows.append((f"speed of the {trial.scope} part, as a factor (95 %)", "1", speedup))
    lines = [f"| {name} | {before} | {after} |" for name, before, after in rows]
    return "\n".join(["| | dense | pruned |", "|---|---:|---:|", *lines])


def _measured(trial: Trial, record: Record | None) -> str:
    if record is None:
        return "Its answers were not measured: run it on a board before you rely on it."
    results = dig(record.metrics, "accuracy", "tasks") or {}
    numbers = ", ".join(
        f"{result['n']:,} questions of {escape(task)}" for task, result in results.items() if "n" in result
    )
    machine = " ".join(str(record.env[key]) for key in ("gpu", "cpu") if key in record.env)
    return (
        f"Measured as trial `{record.id}` of board {escape(trial.board)} on the {escape(trial.questions.split)} split"
        f" ({numbers or 'no accuracy'}), with intervals clustered by image, on {escape(machine)}. This copy was made"
        " again from that trial; its plan is the measured one."
    )


def _rows(record: Record) -> str:
    content = record.trial.content()
    shown = {key: content[key] for key in ("model", "method", "options", "scope", "units", "budget", "seed", "dtype")}
    others = ("currency", "align", "shares", "tokens", "image_conversion", "loading")
    shown |= {key: content[key] for key in others if key in content}
    shown |= {"regime": record.contestant.regime, "tuning": content.get("recovery", "none")}
    shown |= {"calibration": content["calibration"], "reference input": content["reference_input"]}
    shown["versions"] = record.env["packages"]
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in shown.items()}
    return "\n".join(f"| {key} | {escape(value)} |" for key, value in text.items())


def _interval(result: Mapping[str, Any], key: str) -> str:
    if result.get(key) is None:
        return NOTHING
    text = f"{100 * result[key]:.1f}"
    if result.get("lo") is None:
        return f"{text} ({TOO_FEW})"
    return f"{text} ({100 * result['lo']:.1f} to {100 * result['hi']:.1f})"


def _plain(text: str) -> str:
    return plain(text).replace("`", "'")
