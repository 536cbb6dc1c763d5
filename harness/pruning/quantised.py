"""Weights of fewer bits, as the last step of a recovery: torchao's weight-only quantisation. FLOPs stay what they are.

    vlm = quantise(vlm, "int8")

`int8` has one scale per output, `int4` one per output and 32 inputs, or per output where 32 does not divide the inputs.
torchao stores both in bytes: `int4` shows the accuracy of 4 bits, not their size.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from harness.types import VLM

INT4: Any = torch.int4  # type: ignore[attr-defined]  # the stubs lack it
GROUP = 32  # inputs that share a scale in int4


def quantise(vlm: VLM, weights: str) -> VLM:
    """A copy whose Linears, all but the output embedding, hold `int8` or `int4` weights.

    Products are computed in the model's dtype.
    """
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    model: Any = copy.deepcopy(vlm.model)
    head = model.get_output_embeddings()
    linears = [own for own in model.modules() if isinstance(own, nn.Linear) and own is not head]
    configs: list[tuple[Any, set[Any]]]
    if weights == "int8":
        configs = [(Int8WeightOnlyConfig(version=2), set(linears))]
    else:
        grouped = {linear for linear in linears if linear.in_features % GROUP == 0}
        parts = [(PerGroup(GROUP), grouped), (PerAxis(0), set(linears) - grouped)]
        configs = [(IntxWeightOnlyConfig(weight_dtype=INT4, granularity=by), part) for by, part in parts]
    for config, chosen in configs:
        quantize_(model, config, filter_fn=lambda module, _, chosen=chosen: module in chosen)
    return dataclasses.replace(vlm, model=model)
