"""Whether this machine has the device that is asked for.

check_device("cuda:1")
"""

from __future__ import annotations

import re

from harness.types import InputError


def check_device(device: str, where: str = "device") -> None:
    """Raise InputError for a device that is neither the processor nor a GPU of this machine."""
    if device == "cpu":
        return
    import torch

    place = re.fullmatch(r"cuda(?::(\d{1,4}))?", device)
    if place is None:
        raise InputError(f"{where} {device}: use cpu, cuda or cuda:N")
    if int(place[1] or 0) >= torch.cuda.device_count():
        raise InputError(f"{where} {device}: this machine has {torch.cuda.device_count()} CUDA devices")
