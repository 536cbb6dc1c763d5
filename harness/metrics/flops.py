"""FLOPs of the pruned and the dense model: prefill of the reference input, counted by both fvcore and torch.

infoprune sweep BOARD, with `metrics: [flops]`
"""

from __future__ import annotations

from typing import Any

from harness.types import VLM, Column, InputError, MetricContext, Trial, at, differs

COLUMNS = (
    Column(
        "flops_kept",
        "FLOPs kept",
        unit="share",
        better="lower",
        form="{:.4f}",
        axis="FLOPs kept in the scope (share)",
        read=at("kept"),
    ),
    Column("flops_reduction", unit="factor", read=at("reduction")),
    Column(
        "params_kept",
        "params kept",
        unit="share",
        better="lower",
        form="{:.3f}",
        axis="parameters kept (share)",
        read=at("params", "kept"),
    ),
    Column(
        "total_flops_kept",
        "end to end",
        unit="share",
        better="lower",
        form="{:.4f}",
        axis="FLOPs kept end to end (share)",
        read=at("total", "kept"),
    ),
)


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """MACs and parameters of both models, and kept shares: in the trial's scope and units, per component, in all."""
    before, after = (_profile(vlm, trial, context) for vlm in (dense, pruned))
    kept = measured_share(pruned, dense, trial, context)
    sizes = [sum(weight.numel() for weight in vlm.model.parameters()) for vlm in (dense, pruned)]
    return {
        "kept": kept,
        "reduction": 1 / kept,
        "components": {
            name: {"dense_macs": macs, "macs": after["components"][name], "kept": after["components"][name] / macs}
            for name, macs in before["components"].items()
        },
        "fixed_macs": after["fixed"],
        "total": {"dense_macs": before["total"], "macs": after["total"], "kept": after["total"] / before["total"]},
        "params": {"dense": sizes[0], "pruned": sizes[1], "kept": sizes[1] / sizes[0]},
        "uncounted": after["missed"],
    }


def measured_share(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> float:
    """The share of the FLOPs of the trial's scope and units that the pruned model still needs, by both counters.

    Raises RuntimeError if the counters disagree.
    """
    before, after = (_profile(vlm, trial, context)["parts"] for vlm in (dense, pruned))
    keys = [(block.name, kind) for block, kind in dense.counted(trial.scope, trial.units)]
    return sum(after.get(key, 0) for key in keys) / sum(before[key] for key in keys)  # 0: a block that went


def check(stated: float, pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> None:
    """Raise InputError if the share of the FLOPs that a plan states is not the measured one, within one percent."""
    counted = measured_share(pruned, dense, trial, context)
    if differs(stated, counted):
        raise InputError(
            f"method {trial.method}: its plan states {stated:.4f} of the FLOPs of {trial.units} in scope {trial.scope},"
            f" but {counted:.4f} are measured; only smaller modules save FLOPs"
        )


def _profile(vlm: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    from harness.metrics._counting import profile

    return context.once(vlm, ("flops", trial.reference_input), lambda: profile(vlm, context.stages(vlm)))
