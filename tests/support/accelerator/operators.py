"""Operators that CUDA has and the CPU has not, and functions that choose their operators by the device.

Attention runs by the operator that the CPU chooses, so that results in float32 equal the CPU's to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
all_of_torch: Any = torch  # with what it has and does not export
FLASH = 1  # as _fused_sdp_choice says it
HALF = (torch.float16, torch.bfloat16)


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """mm(..., out_dtype=torch.float32) of half-precision matrices."""
    if left.dtype not in HALF or dtype not in (left.dtype, torch.float32):
        raise RuntimeError("out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs")
    return left.to(dtype) @ right.to(dtype)


OPERATORS: dict[Any, Any] = {aten.mm.dtype: product}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """scaled_dot_product_attention, which asks of its arguments what it asks on a GPU."""
    arguments = {"scale": scale, "enable_gqa": enable_gqa}
    if all_of_torch.jit.is_tracing():  # a trace shows the function itself
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **arguments)
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{query.dtype} key.dtype: {key.dtype} and value.dtype: {value.dtype} instead."
        )
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype: "
            f"{attn_mask.dtype} and query.dtype: {query.dtype} instead."
        )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    inner = [None if each is None else getattr(each, "inner", each) for each in (query, key, value, attn_mask)]
    if all_of_torch._fused_sdp_choice(*inner, dropout_p, is_causal, **arguments) == FLASH:
        flash = aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    plain = aten._scaled_dot_product_attention_math
    return plain(query, key, value, attn_mask, dropout_p, is_causal, None, **arguments)[0]


def _convolution(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The convolution; in a trace as `_convolution`, as traces have it on every device of C++."""

    def call(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not all_of_torch.jit.is_tracing() or isinstance(padding, str):
            return convolve(x, weight, bias, stride, padding, dilation, groups)
        size = weight.dim() - 2
        each = [list(v) if isinstance(v, list | tuple) else [v] * size for v in (stride, padding, dilation)]
        return all_of_torch._convolution(x, weight, bias, *each, False, [0] * size, groups, False, False, True, True)

    return call


FUNCTIONS: dict[Any, Any] = {
    F.scaled_dot_product_attention: attention,
    torch.conv2d: _convolution(torch.conv2d),
    torch.conv3d: _convolution(torch.conv3d),
}

# Some of the functions that autocast runs in half precision, and in float32.
LOWER = {
    F.linear,
    F.scaled_dot_product_attention,
    torch.baddbmm,
    torch.bmm,
    torch.conv2d,
    torch.conv3d,
    torch.matmul,
    torch.mm,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.matmul,
    Tensor.mm,
}
FULL = {
    F.cross_entropy,
    F.kl_div,
    F.layer_norm,
    F.log_softmax,
    F.softmax,
    Tensor.log_softmax,
    Tensor.pow,
    Tensor.softmax,
    torch.pow,
    torch.rsqrt,
    torch.softmax,
}


def autocast(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in the dtype that autocast on CUDA gives this function."""
    dtype = torch.get_autocast_dtype("cuda") if func in LOWER else torch.float32 if func in FULL else None

    def cast(value: Any) -> Any:
        ours = isinstance(value, Tensor) and value.is_cuda and value.is_floating_point()
        return value.to(dtype) if ours and value.dtype not in (dtype, torch.float64) else value

    if dtype is None:
        return args, dict(kwargs)
    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
