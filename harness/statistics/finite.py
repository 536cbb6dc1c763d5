"""Whether the values of many layers are finite, with one wait for the device.

first_broken({"model.layers.0.mlp.down_proj": finite(gradient)})  # the first name whose values have NaN or Inf, or None
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def finite(values: Tensor) -> Tensor:
    """Whether all values are finite, as a bool that stays on their device: ()."""
    return values.isfinite().all()


def first_broken(flags: Mapping[str, Tensor]) -> str | None:
    """The first name whose flag is False; None if all are True. The flags may be on several devices."""
    if not flags:
        return None
    device = next(iter(flags.values())).device
    answers = torch.stack([flag.to(device) for flag in flags.values()]).tolist()
    return next((name for name, good in zip(flags, answers, strict=True) if not good), None)
