"""Tensors on the fake accelerator: they hold CPU data, say `cuda:N`, and run every operator on the CPU.

C++ sees a PrivateUse1 device, which Python code can implement; Python sees CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.accelerator import rules
from tests.support.accelerator.ledger import Allocation, Ledger
from tests.support.accelerator.operators import FUNCTIONS, OPERATORS, autocast

aten = torch.ops.aten
BACKEND = "fakecuda"  # the name of the device type in C++


class Runtime:
    """The state of the fake accelerator of this process: its ledger, and a random state per device."""

    ledger = Ledger(0, 0)
    current = 0
    random: list[Tensor] = []  # noqa: RUF012

    @classmethod
    @contextmanager
    def seeded(cls, device: int) -> Iterator[None]:
        """Draws inside come from the device's own generator, which is another than the CPU's."""
        outside = torch.get_rng_state()
        torch.set_rng_state(cls.random[device])
        try:
            yield
        finally:
            cls.random[device] = torch.get_rng_state()
            torch.set_rng_state(outside)


def index_of(device: Any) -> int:
    """The number of the device that `cuda`, `cuda:N`, N or None names."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return Runtime.current if index is None or index < 0 else index


class FakeCuda(Tensor):
    """A tensor on `cuda:N`. inner: its values, on the CPU. ordinal: N."""

    inner: Tensor
    ordinal: int
    allocation: Allocation

    @staticmethod
    def __new__(cls, inner: Tensor, index: int = 0, requires_grad: bool = False) -> Any:
        if isinstance(inner, FakeCuda):  # accelerate makes parameters anew by calling their type
            return torch.nn.Parameter(inner, requires_grad)
        if index >= Runtime.ledger.devices:
            raise RuntimeError("CUDA error: invalid device ordinal (fake)")
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(BACKEND, index),
        )
        tensor.inner, tensor.ordinal = inner, index
        tensor.allocation = Runtime.ledger.allocation(inner, index)
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = autocast(func, args, kwargs or {})
            return FUNCTIONS.get(func, func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    # --- what C++ would answer by itself ------------------------------------------------------------------

    device: Any = property(lambda self: torch.device("cuda", self.ordinal))
    is_cuda: Any = property(lambda self: True)

    def get_device(self) -> int:
        return self.ordinal

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return Tensor.to(self, *map(_below, args), **{name: _below(value) for name, value in kwargs.items()})

    def cuda(self, device: Any = None, **_: Any) -> Tensor:
        return self.to(torch.device("cuda", index_of(device)))

    def cpu(self, **_: Any) -> Tensor:
        return self.to("cpu")

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, FakeCuda):
            raise RuntimeError("incompatible tensor type: x.data = y with x on cuda and y on the CPU")
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.inner, self.ordinal, self.allocation = new.inner, new.ordinal, new.allocation

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
            memo[id(self)] = copy = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True  # type: ignore[attr-defined]
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return FakeCuda, (self.inner.detach(), self.ordinal)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"FakeCuda({self.inner}, device='{self.device}')"


def _below(value: Any) -> Any:
    """An argument of `to` as C++ knows it, which compares devices."""
    named = isinstance(value, torch.device | str) and torch.device(value).type == "cuda"
    number = isinstance(value, int) and not isinstance(value, bool)
    return torch.device(BACKEND, index_of(value)) if named or number else value


class Factories(TorchDispatchMode):
    """Sees every operator, and so those that put tensors on the device without having one there: factories, copies."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator; if it has a tensor on the device or makes one there, by the rules of a GPU."""
    fakes = [each for each in rules.tensors([*args, *kwargs.values()]) if isinstance(each, FakeCuda)]
    wanted = kwargs.get("device")
    if not fakes and not rules.on_device(wanted):
        return func(*args, **kwargs)
    rules.check(func, args, kwargs)
    if reason := rules.waits(func, args, kwargs):
        Runtime.ledger.wait(reason)
    index = index_of(wanted) if rules.on_device(wanted) else fakes[0].ordinal if fakes and wanted is None else None
    known: dict[int, Tensor] = {}
    inner_kwargs = {name: _bare(value, known) for name, value in kwargs.items()}
    if rules.on_device(wanted):
        inner_kwargs["device"] = torch.device("cpu")
    call: Any = OPERATORS.get(func, func)
    if torch.Tag.nondeterministic_seeded in func.tags and index is not None and kwargs.get("generator") is None:
        call = functools.partial(_drawn, call, index)
    out = call(*(_bare(value, known) for value in args), **inner_kwargs)
    if torch.Tag.inplace_view in func.tags:
        with torch._C._DisableTorchDispatch():  # the sizes that C++ knows of
            func(*args, **kwargs)
    return _placed(out, known, index)


def _bare(value: Any, known: dict[int, Tensor]) -> Any:
    """An argument with the CPU's tensors; `known` notes which tensor each of them was."""
    if isinstance(value, Tensor):
        inner = value.inner if isinstance(value, FakeCuda) else value
        known[id(inner)] = value
        return inner
    return type(value)(_bare(each, known) for each in value) if type(value) in (list, tuple) else value


def _placed(value: Any, known: dict[int, Tensor], index: int | None) -> Any:
    """A result on the device; an argument that the operator returns is that argument."""
    if isinstance(value, Tensor):
        same = known.get(id(value))
        return same if same is not None else value if index is None else FakeCuda(value, index)
    return type(value)(_placed(each, known, index) for each in value) if type(value) in (list, tuple) else value


def _drawn(call: Callable[..., Any], index: int, *args: Any, **kwargs: Any) -> Any:
    with Runtime.seeded(index):
        return call(*args, **kwargs)
