"""Weights of fewer bits, as the last step of a recovery: torchao's weight-only quantisation. FLOPs stay what they are.

    vlm = quantise(vlm, "int8")

`int8` has one scale per output, `int4` one per output and 32 inputs. Where nothing computes with 4 bits, as on a CPU,
torchao stores them in bytes: the accuracy is that of 4 bits, the size is not.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from harness.types import VLM, InputError

INT4: Any = torch.int4  # type: ignore[attr-defined]  # the stubs lack it
GROUP = 32  # inputs that share a scale in int4


def quantise(vlm: VLM, weights: str) -> VLM:
    """A copy whose Linears, all but the output embedding, hold `int8` or `int4` weights. Sums keep the model's type.

    Raises InputError for int4 if a Linear's inputs are no multiple of 32.
    """
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model: Any = copy.deepcopy(vlm.model)
    head = model.get_output_embeddings()
    linears = {name: own for name, own in model.named_modules() if isinstance(own, nn.Linear) and own is not head}
    odd = [name for name, linear in linears.items() if linear.in_features % GROUP]
    if weights == "int4" and odd:
        raise InputError(
            f"tuning: weights: int4 has a scale for {GROUP} inputs, but {odd[0]} has {linears[odd[0]].in_features}; "
            f"use int8, or align: {GROUP}"
        )
    config = {
        "int8": lambda: Int8WeightOnlyConfig(version=2),
        "int4": lambda: IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(GROUP)),
    }[weights]()
    chosen = set(linears.values())
    quantize_(model, config, filter_fn=lambda module, _: module in chosen)
    return dataclasses.replace(vlm, model=model)
