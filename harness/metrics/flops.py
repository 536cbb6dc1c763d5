"""FLOPs of the pruned and the dense model for one reference input, prefill only, by fvcore and by torch, in agreement.

    infoprune sweep BOARD, with `metrics: [flops]`

fvcore's unit is one multiply-add; records store MACs under that name. Linear layers, convolutions, matrix and attention
products count. fvcore knows no formula for fused attention and would count it as zero, so both counters get ours.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.types import VLM, Trial

with warnings.catch_warnings():  # fvcore scripts a function when imported, which newer torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

DISAGREEMENT = 0.01
ATTENTION = "aten::scaled_dot_product_attention"
CONVOLUTION = "aten::_convolution_mode"  # a convolution whose padding is given as a word: SigLIP's patches
NORMS = ("aten::layer_norm", "aten::batch_norm", "aten::group_norm")  # fvcore would count them, torch does not
# Elementwise work: cheap beside the products, and not part of a budget.
NOT_COUNTED_ON_PURPOSE = frozenset(
    f"aten::{name}"
    for name in """
    meshgrid resolve_conj resolve_neg mul mul_ add add_ sub rsub neg div div_ pow mean sum rsqrt sqrt silu gelu sigmoid
    tanh softmax cos sin exp cumsum embedding masked_scatter masked_scatter_ masked_fill masked_fill_ where eq ne lt gt
    le ge bitwise_and bitwise_or bitwise_and_ bitwise_or_ bitwise_not logical_and logical_or logical_not all any
    floor_divide remainder repeat_interleave repeat diff pad max min prod clamp abs index_put index_put_ new_ones
    ones_like zeros_like full_like fill_ triu tril sort argsort scatter gather stack unflatten lift_fresh clone
    bucketize reciprocal unfold __ior__ upsample_bicubic2d avg_pool2d
    """.split()  # noqa: SIM905
)


class _Stage(torch.nn.Module):
    """A stage as a module that fvcore can trace: the model and the inputs are closed over by `call`."""

    def __init__(self, model: torch.nn.Module, call: Callable[[], Any]) -> None:
        super().__init__()
        self.inner = model
        self.call = call

    def forward(self, nothing: torch.Tensor) -> torch.Tensor:
        return self.call() + nothing


def convolution_macs(inputs: list[Any], outputs: list[Any]) -> float:
    """Multiply-adds of a convolution: every place of its output reads the whole kernel."""
    batch, _, *places = outputs[0].type().sizes()
    return batch * math.prod(places) * math.prod(inputs[1].type().sizes())


def attention_macs(inputs: list[Any], outputs: list[Any]) -> float:
    """Multiply-adds of softmax(QK^T)V from the traced values: queries x keys x (key width + value width) per head."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return _attention(q, k, v)


def _attention(q: Any, k: Any, v: Any) -> int:
    batch, heads, queries, width = q
    return batch * heads * queries * k[-2] * (width + v[-1])


def _torch_attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * _attention(q, k, v)  # torch counts a multiply-add as two


def _torch_formulas() -> dict[Any, Any]:
    names = [n for n in dir(torch.ops.aten) if n.startswith("_scaled_dot_product") and not n.endswith("backward")]
    return {getattr(torch.ops.aten, name): _torch_attention for name in names}


def count(model: torch.nn.Module, call: Callable[[], torch.Tensor]) -> tuple[dict[str, int], list[str]]:
    """MACs by module path of one stage, and the operators that were not counted.

    Raises RuntimeError when fvcore and torch disagree by more than one percent on the products.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about every Python number
        analysis = FlopCountAnalysis(_Stage(model, call), torch.zeros(()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        more: Any = {name: lambda inputs, outputs: 0 for name in NORMS} | {CONVOLUTION: convolution_macs}
        analysis.set_op_handle(ATTENTION, attention_macs, **more)
        by_module = {path.removeprefix("inner."): int(macs) for path, macs in analysis.by_module().items()}
        missed: Counter[str] = Counter(analysis.unsupported_ops())
        other = flops(call) / 2
    macs = by_module[""]
    if abs(macs - other) > DISAGREEMENT * max(macs, other):
        raise RuntimeError(f"the FLOP counters disagree: fvcore {macs:,} MACs, torch {other:,.0f} MACs")
    return by_module, sorted(set(missed) - NOT_COUNTED_ON_PURPOSE)


def flops(call: Callable[[], Any]) -> int:
    """FLOPs of a call by torch's counter, fused attention included."""
    with FlopCounterMode(display=False, custom_mapping=_torch_formulas()) as counter:
        call()
    return counter.get_total_flops()


def profile(vlm: VLM, stages: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, Any]:
    """MACs of every block and kind, of each component's blocks, of what is fixed, and of the whole prefill."""
    by_module, missed = count(vlm.model, stages["all"])
    parts = {}
    for block in vlm.blocks:
        # A consumer lies directly in its attention or MLP module: model.visual.blocks.0.attn.proj
        parts[block.name, "heads"] = by_module[block.heads.consumer.rpartition(".")[0]]
        parts[block.name, "ffn"] = by_module[block.ffn.consumer.rpartition(".")[0]]
    components: Counter[str] = Counter()
    for block in vlm.blocks:
        components[block.component] += parts[block.name, "heads"] + parts[block.name, "ffn"]
    total = by_module[""]
    return {
        "parts": parts,
        "components": dict(components),
        "fixed": total - sum(components.values()),
        "total": total,
        "missed": missed,
    }


_DENSE: WeakKeyDictionary[torch.nn.Module, dict[str, dict[str, Any]]] = WeakKeyDictionary()


def _once(dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """The profile of the dense model, counted once for all its trials on one reference input."""
    known = _DENSE.setdefault(dense.model, {})
    key = repr(trial.reference_input)
    if key not in known:
        known[key] = profile(dense, context.stages(dense))
    return known[key]


def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """MACs and parameters, pruned against dense: of the budget's scope and unit kinds, per component, end to end."""
    before = _once(dense, trial, context)
    after = profile(pruned, context.stages(pruned))
    keys = [(block.name, kind) for block, kind in dense.select(trial.scope, trial.units)]
    kept = sum(after["parts"][key] for key in keys) / sum(before["parts"][key] for key in keys)
    sizes = [sum(p.numel() for p in vlm.model.parameters()) for vlm in (dense, pruned)]
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
