"""What a model says to inputs: logits, and the tokens that it generates."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from harness.types import VLM

Inputs = dict[str, Tensor]


def logits(vlm: VLM, inputs: Inputs) -> Tensor:
    """One row a token. Weights that lie at odd addresses, as in a mapped file, are moved to where torch puts its own:
    a kernel for few rows reads such addresses in another order, which changes the last bit of what a model says.
    """
    for weight in vlm.model.parameters():
        if weight.data_ptr() % 64:
            weight.data = weight.data.clone()
    with torch.no_grad():
        return vlm.model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def generate(vlm: VLM, inputs: Inputs, **options: Any) -> list[list[int]]:
    with torch.no_grad():
        tokens = cast(Any, vlm.model).generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()
