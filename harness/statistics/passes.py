"""Forward passes over the blocks of a model: their order, an early end, and passes that continue where the last ended.

order = ForwardOrder(vlm)
with ResumedPasses(vlm).going(*order.span(paths)) as run: run(0, lambda: vlm.model(**batch))
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from harness.statistics.unit_weights import block_linears
from harness.types import VLM


class UnpaddedRows:
    """The rows of a batch's language tokens without padding, for activations on any device.

    mask: (rows, length). On the CPU, its places are known without a wait for the device.
    """

    def __init__(self, mask: Tensor) -> None:
        self._places = mask.bool().flatten().nonzero().squeeze(1)
        self._on: dict[torch.device, Tensor] = {}

    def of(self, values: Tensor) -> Tensor:
        """The rows (n, d) of values (rows, length, d)."""
        if values.device not in self._on:
            self._on[values.device] = self._places.to(values.device)
        return values.flatten(0, -2).index_select(0, self._on[values.device])


class StopPass(Exception):
    """Ends a forward pass early, once all requested Linears have run."""


class ForwardOrder:
    """The order in which a forward pass runs the Linears of a model's blocks."""

    def __init__(self, vlm: VLM) -> None:
        self._places = {path: place for place, path in enumerate(p for b in vlm.blocks for p in block_linears(b))}
        self._starts = [self.place(block_linears(block)[0]) for block in vlm.blocks if block.component == "language"]

    def place(self, path: str) -> int:
        """The position of a Linear in the forward pass; Linears outside the blocks come last."""
        return self._places.get(path, len(self._places))

    def span(self, paths: Iterable[str]) -> tuple[int, int]:
        """Indices of the language model's blocks with the first and the last of these Linears.

        -1 stands for everything that runs before these blocks. A Linear outside the blocks can run at any time, so it
        extends the span to both ends.
        """
        first, last = -1, -1
        if paths := list(paths):
            first = bisect_right(self._starts, min(self._places.get(path, -1) for path in paths)) - 1
            last = bisect_right(self._starts, max(map(self.place, paths))) - 1
        return first, last


class ResumedPasses:
    """Passes that continue where the last one ended: many passes over a few blocks each cost about one full pass.

    For each batch, it stores the arguments of the language model and the input of the last block visited. The next pass
    starts there and skips the earlier blocks, with bit-identical results. Everything before the language model runs in
    full in each pass, until a pass reaches the language model. Only the language model resumes: it runs once per batch,
    while the towers before it may run more than once.

    lasting: store what the next pass needs to continue.
    """

    def __init__(self, vlm: VLM, lasting: bool = True) -> None:
        self._lasting = lasting
        self._blocks = [vlm.model.get_submodule(b.path) for b in vlm.blocks if b.component == "language"]
        language_parts, vision_parts = (
            next(b.path.split(".") for b in vlm.blocks if b.component == c) for c in ("language", "vision")
        )
        shared = next(
            depth
            for depth, (language_part, vision_part) in enumerate(zip(language_parts, vision_parts, strict=False))
            if language_part != vision_part
        )
        self._language = vlm.model.get_submodule(".".join(language_parts[: shared + 1]))
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._read: list[Tensor] = []
        self._at = 0  # index of the block that reads `_read`

    @contextmanager
    def going(self, first: int, last: int) -> Iterator[Callable[[int, Callable[[], Any]], None]]:
        """Yields a function that runs one batch, given its number and its full forward pass, for this span of blocks.

        The run ends after block `last`; if `last` is -1, before the language model.
        """
        resumes = bool(self._calls) and first >= 0
        skipped = self._at if resumes and first >= self._at else 0
        inputs_read, next_inputs, calls = self._read, [], self._calls if resumes else []
        number = 0

        def store_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        def store_input(_: nn.Module, args: tuple[Any, ...]) -> None:
            next_inputs.append(args[0])

        def stop(*_: Any) -> None:
            raise StopPass

        def run(batch: int, forward: Callable[[], Any]) -> None:
            nonlocal number
            number = batch
            with suppress(StopPass):
                if resumes:
                    self._language(*calls[batch][0], **calls[batch][1])
                else:
                    forward()

        self._calls, self._read, self._at = [], [], 0  # a failed pass leaves nothing behind
        with ExitStack() as undo:
            if not resumes and self._lasting:
                undo.callback(self._language.register_forward_pre_hook(store_call, with_kwargs=True).remove)
            if last + 1 < len(self._blocks):
                undo.callback(self._blocks[last + 1].register_forward_pre_hook(stop).remove)
            for block in self._blocks[:skipped]:
                undo.callback(_restore, block, vars(block).get("forward"))
                block.forward = lambda hidden, *_, **__: hidden
            if skipped:
                undo.callback(
                    self._blocks[skipped]
                    .register_forward_pre_hook(lambda _, args: (inputs_read[number], *args[1:]))
                    .remove
                )
            if last > 0 and self._lasting:
                undo.callback(self._blocks[last].register_forward_pre_hook(store_input).remove)
            yield run
        self._calls, self._read, self._at = calls, next_inputs, max(0, last)


def _restore(module: nn.Module, forward: Any) -> None:
    del module.forward
    if forward is not None:  # accelerate's
        module.forward = forward
