"""Memory and energy of the pruned and the dense model: weights, KV cache, peak of each stage, joules per question.

    infoprune sweep BOARD, with `metrics: [memory]`

Weights and cache are exact on every device. The peak is the GPU's, and energy is what NVML reads there; where either
cannot be read it is absent, never 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from harness.types import VLM, Trial

WINDOW = 2.0  # seconds over which energy is read: the counter moves in steps of some 20 to 100 ms


@torch.no_grad()
def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """Bytes of weights and of the reference input's KV cache, whole and per token, of both models, and kept shares.

    On a GPU also each stage's peak above the weights, at the largest batch, and the energy of a prefill per question.
    """
    context.progress("memory")
    batch = max((int(batch) for batch in trial.latency.get("batches", ())), default=1)
    found = {"dense": _of(dense, context, batch), "pruned": _of(pruned, context, batch)}
    kept = {
        f"{name}_kept": found["pruned"][name] / found["dense"][name]
        for name in ("weight_bytes", "kv_bytes", "joules_per_question")
        if found["dense"].get(name) and name in found["pruned"]
    }
    return {**found, **kept, "batch": batch}


def _of(vlm: VLM, context: Any, batch: int) -> dict[str, Any]:
    inputs = context.inputs(vlm)
    cache = kv_bytes(vlm, inputs)
    found: dict[str, Any] = {
        "weight_bytes": weight_bytes(vlm),
        "kv_bytes": cache,
        "kv_bytes_per_token": cache / inputs["input_ids"].shape[1],
    }
    device = next(vlm.model.parameters()).device
    if device.type == "cuda":
        stages = context.stages(vlm, batch)
        found["peak_bytes"] = {name: peak(call, device) for name, call in stages.items()}
        joules = energy(stages["all"], device)
        if joules is not None:
            found["joules_per_question"] = joules / batch
    return found


def weight_bytes(vlm: VLM) -> int:
    """Bytes of all weights, those that are shared counted once."""
    return sum(weight.nbytes for weight in {id(weight): weight for weight in vlm.model.parameters()}.values())


def kv_bytes(vlm: VLM, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes of keys and values that a prefill of these inputs leaves behind."""
    model: Any = vlm.model
    layers = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values.layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that a call has allocated on the GPU at once, beyond what was there before it."""
    call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def energy(call: Callable[[], Any], device: torch.device) -> float | None:
    """Joules of one call, from the GPU's energy counter over a window of some seconds; None where it has none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # millijoules
    except pynvml.NVMLError:  # an older GPU, a part of one, or no right to read it
        return None
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < WINDOW:
        call()
        torch.cuda.synchronize(device)
        calls += 1
    return (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1000 / calls
