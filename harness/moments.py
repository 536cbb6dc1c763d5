"""Second moments of what Linears read: summed up batch by batch, and no more of them at a time than there is room for.

room(model)  # bytes; of Qwen2-VL-7B in bfloat16 that is one FFN's moment at a time, 18944 x 18944 x 8
calibration.moments(paths)  # a Lazy: each moment is made, or made again, when it is asked for
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from harness.types import VLM, Block, Units

ROOM = 0.2  # share of the weights' bytes that moments may take
LEAST = 1 << 30  # but at least this many bytes, so that a small model needs one pass
STRIP = 4096  # columns computed at a time; the upper triangle is mirrored

T = TypeVar("T")


@dataclass(frozen=True)
class Moment:
    """What one Linear reads on the calibration set: rows N, mean (d,), uncentred second moment A^T A / N (d, d)."""

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
    """What one Linear reads on the calibration set, a feature each: mean, mean square, mean absolute value (d,)."""

    mean: Tensor
    square: Tensor
    absolute: Tensor

    @property
    def variance(self) -> Tensor:
        """(d,), not below 0."""
        return (self.square - self.mean.square()).clamp(min=0)

    def to(self, device: str | torch.device) -> Features:
        return Features(*(values.to(device) for values in (self.mean, self.square, self.absolute)))


@dataclass
class Sum:
    """A moment in the making, in float64: the small singular values of a layer are far below its largest."""

    count: int
    total: Tensor
    gram: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device) -> Sum:
        total = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, total, total.new_zeros(width, width))

    def add(self, rows: Tensor) -> None:
        """Rows (n, d) more. On a GPU they are multiplied as they are, a batch at a time: float64 is slow on many."""
        factor = rows if rows.is_cuda else rows.double()
        self.count += len(rows)
        self.total += factor.sum(0, dtype=torch.float64)
        for start in range(0, rows.shape[1], STRIP):
            end = start + STRIP
            self.gram[start:end, :end] += _product(factor[:, start:end], factor[:, :end])

    def moment(self) -> Moment:
        """What it all comes to; the sum itself is used up."""
        for start in range(STRIP, len(self.gram), STRIP):
            self.gram[:start, start : start + STRIP] = self.gram[start : start + STRIP, :start].T
        return Moment(self.count, self.total / self.count, self.gram.div_(self.count))


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.is_cuda and left.dtype != torch.float64:  # halves have products that float32 holds whole
        return torch.mm(left.T, right, out_dtype=torch.float32) if left.dtype.itemsize == 2 else left.T @ right
    return left.T @ right


class Lazy(Mapping[str, T], Generic[T]):
    """Values by module path, each made when it is asked for and kept by nobody here. It is pickled as all its values.

    paths: in the order in which it is gone through. make: from a path that is among them, the value.
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


class Seen(Exception):
    """Ends a forward pass when all that was asked for has been seen."""


class ForwardOrder:
    """The order in which a forward pass comes to the Linears of a model's blocks."""

    def __init__(self, vlm: VLM) -> None:
        self._places = {path: place for place, path in enumerate(p for b in vlm.blocks for p in block_linears(b))}
        self._starts = [self.place(block_linears(block)[0]) for block in vlm.blocks if block.component == "language"]

    def place(self, path: str) -> int:
        """Where it comes to a Linear; those outside the blocks are last."""
        return self._places.get(path, len(self._places))

    def span(self, paths: Iterable[str]) -> tuple[int, int]:
        """The places, among the blocks of the language model, of those with the first and the last of these Linears.

        -1 is what runs before; a Linear outside the blocks is anywhere.
        """
        first, last = -1, -1
        if paths := list(paths):
            first = bisect_right(self._starts, min(self._places.get(path, -1) for path in paths)) - 1
            last = bisect_right(self._starts, max(map(self.place, paths))) - 1
        return first, last


class ResumedPasses:
    """Passes that go on where the last one ended, so that many passes, a few blocks each, cost about one.

    Per batch it stores the arguments of the language model and the input of the last block visited; the next pass
    starts there and skips the earlier blocks, with bit-identical results. What runs before the language model runs anew
    until that is reached. Of the language model only: it runs once for a batch, behind the towers, and these may run
    more than once.

    lasting: keep what the next pass can go on with.
    """

    def __init__(self, vlm: VLM, lasting: bool = True) -> None:
        self._lasting = lasting
        self._blocks = [vlm.model.get_submodule(b.path) for b in vlm.blocks if b.component == "language"]
        first, other = (next(b.path.split(".") for b in vlm.blocks if b.component == c) for c in ("language", "vision"))
        shared = next(n for n, (one, two) in enumerate(zip(first, other, strict=False)) if one != two)
        self._language = vlm.model.get_submodule(".".join(first[: shared + 1]))
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._read: list[Tensor] = []
        self._at = 0  # the block that read that

    @contextmanager
    def going(self, first: int, last: int) -> Iterator[Callable[[int, Callable[[], Any]], None]]:
        """Gives what runs a batch, by its number and its whole forward pass, for Linears of this span of blocks.

        It ends behind block `last`; with -1, before the language model.
        """
        known = bool(self._calls) and first >= 0
        skipped = self._at if known and first >= self._at else 0
        read, made, calls = self._read, [], self._calls if known else []
        number = 0

        def called(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        def seen(_: nn.Module, args: tuple[Any, ...]) -> None:
            made.append(args[0])

        def stop(*_: Any) -> None:
            raise Seen

        def run(batch: int, whole: Callable[[], Any]) -> None:
            nonlocal number
            number = batch
            with suppress(Seen):
                if known:
                    self._language(*calls[batch][0], **calls[batch][1])
                else:
                    whole()

        self._calls, self._read, self._at = [], [], 0  # nothing is left of a pass that fails
        with ExitStack() as undo:
            if not known and self._lasting:
                undo.callback(self._language.register_forward_pre_hook(called, with_kwargs=True).remove)
            if last + 1 < len(self._blocks):
                undo.callback(self._blocks[last + 1].register_forward_pre_hook(stop).remove)
            for block in self._blocks[:skipped]:
                undo.callback(_restore, block, vars(block).get("forward"))
                block.forward = lambda hidden, *_, **__: hidden
            if skipped:
                undo.callback(
                    self._blocks[skipped].register_forward_pre_hook(lambda _, args: (read[number], *args[1:])).remove
                )
            if last > 0 and self._lasting:
                undo.callback(self._blocks[last].register_forward_pre_hook(seen).remove)
            yield run
        self._calls, self._read, self._at = calls, made, max(0, last)


def _restore(module: nn.Module, own: Any) -> None:
    del module.forward
    if own is not None:  # accelerate's
        module.forward = own


def linears(units: Units) -> list[str]:
    """The modules that lose weights with a unit: its producers and the consumer."""
    return list(dict.fromkeys([*(rows.module for rows in units.producers), units.consumer]))


def block_linears(block: Block) -> list[str]:
    """All Linears of a block, in the order in which it runs them."""
    return [*linears(block.heads), *linears(block.ffn)]


def room(model: nn.Module) -> int:
    """Bytes that the moments of this model may take up together."""
    return max(LEAST, int(ROOM * sum(weight.nbytes for weight in model.parameters())))


def size(model: nn.Module, path: str) -> int:
    """Bytes of the moment of what this Linear reads."""
    return 8 * model.get_submodule(path).in_features ** 2  # type: ignore[operator]


def ahead(model: nn.Module, paths: Iterable[str], room: int) -> list[str]:
    """The first of the paths, and those right behind it as far as the room goes."""
    found: list[str] = []
    for path in paths:
        room -= size(model, path)
        if found and room < 0:
            break
        found.append(path)
    return found
