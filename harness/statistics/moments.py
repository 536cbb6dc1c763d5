"""Second moments of the inputs of Linears, summed batch by batch, with a limit on the memory that they take.

room(model)  # bytes; for Qwen2-VL-7B in bfloat16 enough for one FFN's moment at a time, 18944 x 18944 x 8
calibration.moments(paths)  # a Lazy: each moment is computed on look-up, again if it was dropped
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

ROOM = 0.2  # share of the weights' bytes that moments may take
LEAST = 1 << 30  # at least this many bytes, so that a small model needs only one pass
STRIP = 4096  # columns computed at a time; the upper triangle is mirrored

T = TypeVar("T")


@dataclass(frozen=True)
class Moment:
    """Moments of a Linear's input on the calibration set: rows N, mean (d,), uncentred A^T A / N (d, d)."""

    count: int
    mean: Tensor
    second: Tensor

    @property
    def covariance(self) -> Tensor:
        """The centred second moment, (d, d)."""
        product = torch.outer(self.mean, self.mean)
        return torch.sub(self.second, product, out=product)


@dataclass(frozen=True)
class Features:
    """Statistics of each feature of a Linear's input: mean, mean square, mean absolute value, (d,) each."""

    mean: Tensor
    square: Tensor
    absolute: Tensor

    @property
    def variance(self) -> Tensor:
        """The variance of each feature, (d,), not below 0."""
        return (self.square - self.mean.square()).clamp(min=0)

    def to(self, device: str | torch.device) -> Features:
        return Features(*(values.to(device) for values in (self.mean, self.square, self.absolute)))


@dataclass
class Sum:
    """A running sum for a moment, in float64.

    Float32 would lose a layer's small singular values, which lie far below the largest.
    """

    count: int
    total: Tensor
    gram: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device) -> Sum:
        total = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, total, total.new_zeros(width, width))

    def add(self, rows: Tensor) -> None:
        """Add rows (n, d).

        A GPU multiplies each batch in the rows' own dtype, because many GPUs are slow in float64.
        """
        factor = rows if rows.is_cuda else rows.double()
        self.count += len(rows)
        self.total += factor.sum(0, dtype=torch.float64)
        for start in range(0, rows.shape[1], STRIP):
            end = start + STRIP
            self.gram[start:end, :end] += _product(factor[:, start:end], factor[:, :end])

    def moment(self) -> Moment:
        """The moment of all rows; it reuses the memory of this sum, which must not be used afterwards."""
        for start in range(STRIP, len(self.gram), STRIP):
            self.gram[:start, start : start + STRIP] = self.gram[start : start + STRIP, :start].T
        return Moment(self.count, self.total / self.count, self.gram.div_(self.count))


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and left.dtype != torch.float64:  # float32 holds products of half-precision values exactly
        return torch.mm(left.T, right, out_dtype=torch.float32) if left.dtype.itemsize == 2 else left.T @ right
    return left.T @ right


class Lazy(Mapping[str, T], Generic[T]):
    """A lazy, uncached mapping from module paths to values; pickling computes all values.

    paths: in the order of iteration. make: computes the value of one of these paths.
    """

    def __init__(self, paths: Iterable[str], make: Callable[[str], T]) -> None:
        self._make = make
        self._paths = tuple(dict.fromkeys(paths))

    def __getitem__(self, path: str) -> T:
        if path not in self._paths:
            raise KeyError(path)
        return self._make(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def room(model: nn.Module) -> int:
    """The bytes that the moments of this model may take together."""
    return max(LEAST, int(ROOM * sum(weight.nbytes for weight in model.parameters())))


def size(model: nn.Module, path: str) -> int:
    """The bytes of the moment of this Linear's input."""
    return 8 * model.get_submodule(path).in_features ** 2  # type: ignore[operator]


def ahead(model: nn.Module, paths: Iterable[str], room: int) -> list[str]:
    """The first path, and as many of the following paths as `room` bytes hold."""
    fitting: list[str] = []
    for path in paths:
        room -= size(model, path)
        if fitting and room < 0:
            break
        fitting.append(path)
    return fitting
