"""Memory and energy of the pruned and the dense model: weights, KV cache, stage peaks, joules per question.

    infoprune sweep BOARD, with `metrics: [memory]`

Weights and cache are exact on every device. Peak and energy exist only on a GPU; NVML reads the energy. A figure that
cannot be read is absent, never 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.types import VLM, Column, MetricContext, Result, Trial, at

if TYPE_CHECKING:
    import torch


def _peak(model: str) -> Callable[[Result, Trial], Any]:
    return lambda result, trial: at(model, "peak_bytes", trial.scope)(result, trial)


def _peak_kept(result: Result, trial: Trial) -> float | None:
    dense, pruned = (_peak(model)(result, trial) for model in ("dense", "pruned"))
    numbers = all(isinstance(peak, int | float) and not isinstance(peak, bool) for peak in (dense, pruned))
    return pruned / dense if numbers and dense else None


COLUMNS = (
    Column("weight_bytes", "weights MB", form="{:,.1f}", scale=1e-6, read=at("pruned", "weight_bytes")),
    Column("weight_bytes_kept"),
    Column(
        "kv_bytes",
        "KV cache MB",
        form="{:,.3f}",
        scale=1e-6,
        read=at("pruned", "kv_bytes"),
        legend="KV cache: for the reference input.",
    ),
    Column("kv_bytes_kept", "KV cache kept", form="{:.3f}"),
    Column(
        "peak_bytes",
        "peak MB",
        form="{:,.1f}",
        scale=1e-6,
        read=_peak("pruned"),
        legend="Peak: memory above the weights in the scope's stage at the largest batch.",
    ),
    Column("peak_bytes_kept", "peak kept", form="{:.3f}", read=_peak_kept),
    Column("joules_per_question", "J a question", read=at("pruned", "joules_per_question")),
    Column("joules_per_question_kept"),
)

WINDOW = 2.0  # seconds of an energy reading; the counter updates only every 20 to 100 ms


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """Bytes of the weights and of the reference input's KV cache (in all, per token) of both models, and kept shares.

    On a GPU also: the peak of each stage above the weights at the largest batch, and the prefill's energy per question.
    """
    import torch

    context.progress("memory")
    batch = max(trial.latency.batches)
    with torch.no_grad():
        models = {"dense": _of(dense, context, batch), "pruned": _of(pruned, context, batch)}
    kept_shares = {
        f"{name}_kept": models["pruned"][name] / models["dense"][name]
        for name in ("weight_bytes", "kv_bytes", "joules_per_question")
        if models["dense"].get(name) and name in models["pruned"]
    }
    return {**models, **kept_shares, "batch": batch}


def _of(vlm: VLM, context: MetricContext, batch: int) -> dict[str, Any]:
    inputs = context.inputs(vlm)
    cache = kv_bytes(vlm, inputs)
    figures: dict[str, Any] = {
        "weight_bytes": weight_bytes(vlm),
        "kv_bytes": cache,
        "kv_bytes_per_token": cache / inputs["input_ids"].shape[1],
    }
    device = next(vlm.model.parameters()).device
    if device.type == "cuda":
        stages = context.stages(vlm, batch)
        figures["peak_bytes"] = {name: peak(call, device) for name, call in stages.items()}
        joules = energy(stages["all"], device)
        if joules is not None:
            figures["joules_per_question"] = joules / batch
    return figures


def weight_bytes(vlm: VLM) -> int:
    """Bytes of all weights. Shared weights count once."""
    return sum(_stored(weight) for weight in {id(weight): weight for weight in vlm.model.parameters()}.values())


def _stored(weight: Any) -> int:
    """Bytes of a tensor, or of the tensors that one of fewer bits is made of."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    names, _ = weight.__tensor_flatten__()
    return sum(_stored(part) for part in (getattr(weight, name) for name in names) if part is not None)


def kv_bytes(vlm: VLM, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes of the keys and values after a prefill of these inputs."""
    model: Any = vlm.model
    layers = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values.layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """The peak of GPU memory during a call, in bytes above the memory before it."""
    import torch

    call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def energy(call: Callable[[], Any], device: torch.device) -> float | None:
    """Joules of one call, from the GPU's energy counter over WINDOW seconds. None if the counter is not readable."""
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # millijoules
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < WINDOW:
            call()
            torch.cuda.synchronize(device)
            calls += 1
        return (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1000 / calls
    except pynvml.NVMLError:  # an older GPU, a partition of one, or missing rights
        return None
