"""What a method may look at: calibration samples, moments of activations, gradients of gates, each made once.

calibration = Calibration(vlm, samples)
calibration.moments([vlm.blocks[0].heads.consumer])  # {module path: Moment}
calibration.gate_gradients()[vlm.blocks[0].name, "heads"]  # (batches, heads)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from harness.prompts import encode
from harness.types import VLM, InputError, Kind, Sample


@dataclass(frozen=True)
class Moment:
    """What one Linear reads on the calibration set: rows N, mean (d,), uncentred second moment A^T A / N (d, d)."""

    count: int
    mean: Tensor
    second: Tensor

    @property
    def covariance(self) -> Tensor:
        """The centred second moment, (d, d)."""
        return self.second - torch.outer(self.mean, self.mean)


@dataclass
class _Sum:
    """A moment in the making, in float64: the small singular values of a layer are far below its largest."""

    count: int
    total: Tensor
    gram: Tensor

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.gram += rows.T @ rows


class Calibration:
    """Statistics of a model on its calibration samples, streamed in single passes and kept for whoever asks next.

    The model is left as found: mode, gradients, weights and hooks. `seconds` adds up the time of the passes.
    """

    def __init__(self, vlm: VLM, samples: Sequence[Sample], batch_size: int = 16) -> None:
        if not samples:
            raise InputError("calibration: samples: there are none, at least 1 is needed")
        if batch_size < 1:
            raise InputError(f"calibration: batch_size: {batch_size} should be at least 1")
        self.vlm = vlm
        self.samples = tuple(samples)
        self.batch_size = batch_size
        self.seconds = 0.0
        self._moments: dict[str, Moment] = {}

    def batches(self) -> Iterator[dict[str, Any]]:
        """Encoded inputs with labels, on the model's device."""
        return (dict(batch) for batch in self._encoded)

    @cached_property
    def _encoded(self) -> list[dict[str, Any]]:
        batches = []
        for start in range(0, len(self.samples), self.batch_size):
            part = self.samples[start : start + self.batch_size]
            images, texts, answers = [[s.image] for s in part], [s.question for s in part], [s.answer for s in part]
            batches.append(encode(self.vlm.processor, images, texts, answers, _device(self.vlm.model)))
        return batches

    def moments(self, modules: Iterable[str]) -> Mapping[str, Moment]:
        """Moments of the inputs of these Linears of the model's blocks, by module path; one pass for all new ones.

        Padding does not count; of the vision tower, every patch does. Float64, on the model's device.
        Raises InputError naming the first layer whose input is not finite.
        """
        wanted = list(dict.fromkeys(modules))
        if missing := [path for path in wanted if path not in self._moments]:
            self._moments |= self._stream(missing)
        return {path: self._moments[path] for path in wanted}

    def _stream(self, paths: Sequence[str]) -> dict[str, Moment]:
        model = self.vlm.model
        patches = {
            path
            for block in self.vlm.blocks
            if block.component == "vision"
            for units in (block.heads, block.ffn)
            for path in (units.consumer, *(rows.module for rows in units.producers))
        }
        sums: dict[str, _Sum] = {}
        real = torch.empty(0)

        def collect(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows = args[0].flatten(0, -2) if path in patches else args[0][real]
                if path not in sums:
                    zero = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
                    sums[path] = _Sum(0, zero, torch.outer(zero, zero))
                sums[path].add(rows)

            return hook

        with self._pass(), torch.no_grad(), ExitStack() as hooks:
            for path in paths:
                hooks.callback(model.get_submodule(path).register_forward_pre_hook(collect(path)).remove)
            for batch in self.batches():
                del batch["labels"]
                real = batch["attention_mask"].bool()
                model(**batch, use_cache=False)
            for path, sum_ in sums.items():  # in the order of the forward pass
                if not (sum_.total.isfinite().all() and sum_.gram.isfinite().all()):
                    raise InputError(
                        f"model {self.vlm.name}: {path}: its input on the calibration samples has NaN or Inf"
                    )
        return {path: Moment(s.count, s.total / s.count, s.gram / s.count) for path, s in sums.items()}

    def gate_gradients(self) -> Mapping[tuple[str, Kind], Tensor]:
        """Derivative of the answer loss by a gate on each unit, one row per mini-batch: (batches, count), float64, CPU.

        The gate multiplies the columns of the consumer's input that the unit owns, so at 1 its derivative is the
        sum of activation * gradient over them. The loss is the mean cross-entropy over the mini-batch's answer
        tokens. Raises InputError naming the first block whose derivative is not finite.
        """
        return self._gate_gradients

    @cached_property
    def _gate_gradients(self) -> dict[tuple[str, Kind], Tensor]:
        model = self.vlm.model
        gates: dict[tuple[str, Kind], Tensor] = {}
        rows: list[tuple[Tensor, ...]] = []

        def gated(gate: Tensor, width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
            return lambda module, args: (args[0] * gate.repeat_interleave(width).to(args[0].dtype), *args[1:])

        with self._pass(), torch.enable_grad(), ExitStack() as hooks:
            for block, kind in self.vlm.select("all"):
                units = block.units(kind)
                gate = torch.ones(units.count, device=_device(model), requires_grad=True)
                consumer = model.get_submodule(units.consumer)
                hooks.callback(consumer.register_forward_pre_hook(gated(gate, units.width)).remove)
                gates[block.name, kind] = gate
            for batch in self.batches():
                loss = model(**batch, use_cache=False).loss
                rows.append(torch.autograd.grad(loss, list(gates.values())))
        gradients = {key: torch.stack([row[i] for row in rows]).double().cpu() for i, key in enumerate(gates)}
        for (block, kind), gradient in gradients.items():
            if not gradient.isfinite().all():
                raise InputError(f"model {self.vlm.name}: {block} {kind}: the answer loss has a NaN or Inf gradient")
        return gradients

    @contextmanager
    def _pass(self) -> Iterator[None]:
        """Evaluation mode and frozen weights inside, everything as found afterwards; the time is added up."""
        training = [module for module in self.vlm.model.modules() if module.training]
        learning = [weight for weight in self.vlm.model.parameters() if weight.requires_grad]
        self._encoded  # noqa: B018 - encoding is not part of the pass
        start = time.perf_counter()
        self.vlm.model.eval()
        for weight in learning:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for module in training:
                module.training = True
            for weight in learning:
                weight.requires_grad_(True)
            self.seconds += time.perf_counter() - start


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
