"""What the metrics `memory` and `roofline` add to a board's table, where its trials asked for them.

    python -c "from harness.record import load; from harness.report.resources import figures; \
               print(figures(load('results/geometry-mini')[0][0]))"

Peak and roofline are of the scope's stage at the largest batch that was timed; all figures are the pruned model's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Column -> its head in the table of trials (empty: in the data only), how a figure is shown, and in which unit.
COLUMNS: Mapping[str, tuple[str, str, float]] = {
    "weight_bytes": ("weights MB", "{:,.1f}", 1e-6),
    "weight_bytes_kept": ("", "", 1),
    "kv_bytes": ("KV cache MB", "{:,.3f}", 1e-6),
    "kv_bytes_kept": ("KV cache kept", "{:.3f}", 1),
    "peak_bytes": ("peak MB", "{:,.1f}", 1e-6),
    "peak_bytes_kept": ("peak kept", "{:.3f}", 1),
    "joules_per_question": ("J a question", "{:.3g}", 1),
    "joules_per_question_kept": ("", "", 1),
    "intensity": ("FLOPs a byte", "{:.3g}", 1),
    "balance": ("balance", "{:.3g}", 1),
    "matmul_share": ("of matrix rate", "{:.3f}", 1),
    "copy_share": ("of copy rate", "{:.3f}", 1),
}
LEGENDS = {
    "kv_bytes": "KV cache: of the reference input.",
    "peak_bytes": "Peak, beyond the weights: of the scope's stage at the largest batch.",
    "intensity": (
        "FLOPs a byte, and the shares of this machine's matrix rate and copy bandwidth: of the scope's stage at the "
        "largest batch; below the machine's balance, in FLOPs a byte, memory is the limit."
    ),
}


def legend(columns: Collection[str]) -> str:
    """What those of a table's columns are that need saying."""
    return " ".join(text for column, text in LEGENDS.items() if column in columns)


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a trial that measured them, by column: bytes, joules, FLOPs a byte, and shares."""
    metrics, scope = record.get("metrics") or {}, record["trial"]["scope"]
    memory, roofline = (_mapping(metrics, name) for name in ("memory", "roofline"))
    dense, pruned = (_mapping(memory, name) for name in ("dense", "pruned"))
    found = {**pruned, **{name: value for name, value in memory.items() if name.endswith("_kept")}}
    peaks = [_mapping(model, "peak_bytes").get(scope) for model in (dense, pruned)]
    found["peak_bytes"] = peaks[1]
    if all(map(_is_number, peaks)) and peaks[0]:
        found["peak_bytes_kept"] = peaks[1] / peaks[0]
    batches = _mapping(roofline, "batches")
    largest = max((batch for batch in batches if str(batch).isdecimal()), key=int, default="")
    found |= {**_mapping(_mapping(_mapping(batches, largest), "pruned"), scope), "balance": roofline.get("balance")}
    return {name: float(value) for name, value in found.items() if name in COLUMNS and _is_number(value)}


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Parts of a record that its schema does not promise, as far as they are what they should be."""
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
