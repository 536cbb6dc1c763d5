"""What CUDA refuses, and where it makes the host wait, operator by operator.

check(func, args, kwargs)               # raises RuntimeError as torch does on a GPU
reason = waits(func, args, kwargs)      # "item", "nonzero", ..., or ""
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

aten = torch.ops.aten

TRANSFERS = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
PUTTING = {
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
# Operators that are not pointwise and yet take a number that lies on the CPU.
TAKES_NUMBERS = {
    aten.fill.Tensor,
    aten.fill_.Tensor,
    aten.index_fill.int_Tensor,
    aten.index_fill_.int_Tensor,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
}
PRODUCTS = {
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.mv.default,
    aten.addmv.default,
    aten.dot.default,
}
# The size of the result depends on the values, or the result is a number of Python.
READS = {
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
    aten.is_nonzero.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.unique_dim.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
# torch looks at the error codes of these on the host.
CHECKED = {
    aten._linalg_eigh.default: "eigh",
    aten._linalg_svd.default: "svd",
    aten.linalg_cholesky_ex.default: "",
    aten._linalg_check_errors.default: "errors",
}


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among an operator's arguments, which nest at most once."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, torch.Tensor))


def on_device(device: torch.device | None) -> bool:
    return device is not None and device.type not in ("cpu", "meta")


def check(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise what torch raises on a GPU for these arguments; tensors say `cuda:N` as their device."""
    given = list(tensors([*args, *kwargs.values()]))
    if func not in TRANSFERS and len({each.device for each in given}) > 1:
        _check_devices(func, args, given)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        wanted = kwargs.get("device")
        if on_device(wanted) or (wanted is None and any(each.is_cuda for each in given)):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if func in PRODUCTS and given[0].is_cuda and not given[0].is_floating_point():
        raise RuntimeError(f'"addmm_cuda" not implemented for {given[0].dtype}')
    if kwargs.get("pin_memory") and any(each.is_cuda for each in given):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")


def _check_devices(func: Any, args: tuple[Any, ...], given: list[torch.Tensor]) -> None:
    """Which operators take arguments of several devices: indices, and single numbers that lie on the CPU."""
    if func in INDEXING or func in PUTTING:
        target = args[0].device
        wrong = [i for i in args[1] if i is not None and i.device != target and i.device.type != "cpu"]
        if wrong:
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor ({target})"
            )
        values = [args[2]] if func in PUTTING else []
        given = [args[0], *(value for value in values if value.dim() > 0)]
    elif torch.Tag.pointwise in func.tags or func in TAKES_NUMBERS:
        numbers = [each for each in given if each.dim() == 0 and each.device.type == "cpu"]
        written = args[0] if func._schema.name.endswith("_") else None
        given = [each for each in given if each is written or not any(each is number for number in numbers)]
    places = sorted({str(each.device) for each in given}, reverse=True)
    if len(places) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{places[0]} and {places[1]}! ({func})"
        )


def waits(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why the host waits for the device at this operator, which has a tensor there; empty if it does not."""
    if func in READS:
        return READS[func]
    if func in CHECKED:
        return CHECKED[func]
    if func in TRANSFERS:
        source = args[1] if func is aten.copy_.default else args[0]
        target = args[0].device if func is aten.copy_.default else kwargs.get("device") or source.device
        if source.is_cuda != on_device(target):
            return "download" if source.is_cuda else "upload"  # neither is from or to pinned memory
    if func in INDEXING or func in PUTTING:
        indices = [i for i in args[1] if i is not None]
        if any(i.is_cuda and i.dtype in (torch.bool, torch.uint8) for i in indices):
            return "mask"
        if any(not i.is_cuda for i in indices):
            return "upload"
    return ""
