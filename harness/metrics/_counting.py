"""Count the multiply-adds of a stage with fvcore and with torch, which must agree.

    macs_by_module, uncounted = count(vlm.model, stages["all"])

fvcore counts multiply-adds, and records store them as MACs. Linear layers, convolutions, matrix products and attention
products count. fvcore has no formula for fused attention and would count zero, so both counters use ours.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.types import VLM

with warnings.catch_warnings():  # fvcore scripts a function when imported, which newer torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

DISAGREEMENT = 0.01  # largest relative difference of the two counters
ATTENTION = "aten::scaled_dot_product_attention"
CONVOLUTION = "aten::_convolution_mode"  # a convolution with padding="same" or "valid": SigLIP's patches
NORMS = ("aten::layer_norm", "aten::batch_norm", "aten::group_norm")  # fvcore counts them, torch does not
# Elementwise operators are cheap next to the products, and no part of a budget.
NOT_COUNTED_ON_PURPOSE = frozenset(
    f"aten::{name}"
    for name in """
    meshgrid resolve_conj resolve_neg mul mul_ add add_ sub rsub neg div div_ pow mean sum rsqrt sqrt silu gelu sigmoid
    tanh softmax cos sin exp cumsum embedding masked_scatter masked_scatter_ masked_fill masked_fill_ where eq ne lt gt
    le ge bitwise_and bitwise_or bitwise_and_ bitwise_or_ bitwise_not logical_and logical_or logical_not all any
    floor_divide remainder repeat_interleave repeat diff pad max min prod clamp abs index_put index_put_ new_ones
    ones_like zeros_like full_like fill_ triu tril sort argsort scatter gather stack unflatten lift_fresh clone
    bucketize reciprocal unfold __ior__ __or__ upsample_bicubic2d avg_pool2d diagonal expand_as randperm argmax
    minimum eye one_hot clamp_min index_fill_ linalg_vector_norm numpy_T
    """.split()  # noqa: SIM905
)


class _Stage(torch.nn.Module):
    """A stage as a module that fvcore can trace. `call` holds the model and the inputs."""

    def __init__(self, model: torch.nn.Module, call: Callable[[], Any]) -> None:
        super().__init__()
        self.inner = model
        self.call = call

    def forward(self, nothing: torch.Tensor) -> torch.Tensor:
        return self.call() + nothing


def convolution_macs(inputs: list[Any], outputs: list[Any]) -> float:
    """Multiply-adds of a convolution: every output position reads the full kernel."""
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
    """MACs of one stage by module path, and the operators that were not counted.

    Raises RuntimeError if fvcore and torch disagree by more than one percent.
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
    """FLOPs of a call by torch's counter, with fused attention."""
    with FlopCounterMode(display=False, custom_mapping=_torch_formulas()) as counter:
        call()
    return counter.get_total_flops()


def profile(vlm: VLM, stages: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, Any]:
    """MACs of every block and kind, of each component's blocks, of the fixed rest, and of the whole prefill."""
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
