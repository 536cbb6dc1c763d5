"""Statistics of a model on calibration samples; each is computed once and cached.

calibration = Calibration(vlm, samples)
calibration.moments([vlm.blocks[0].heads.consumer])  # {module path: Moment}
calibration.gate_gradients()[vlm.blocks[0].name, "heads"]  # (batches, heads)
calibration.singly.gate_gradients()  # the same with one row per sample
calibration.answer_loss({(vlm.blocks[0].name, "heads"): mask})  # nats
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.families import encode, family
from harness.machine.timing import wait
from harness.progress import Progress, silent
from harness.statistics import gradients, moments
from harness.statistics.attention_entropy import EntropyMeter
from harness.statistics.block_influence import block_influence
from harness.statistics.finite import finite, first_broken
from harness.statistics.gradients import answer_logits as answer_logits
from harness.statistics.moments import Features, Lazy, Moment, Sum
from harness.statistics.passes import ForwardOrder, ResumedPasses, UnpaddedRows
from harness.statistics.unit_weights import block_linears
from harness.statistics.unit_weights import linears as linears
from harness.statistics.unit_weights import unit_sums as unit_sums
from harness.types import VLM, Component, Extent, InputError, Kind, Sample

ENCODED = "encoded"


@dataclass(frozen=True, eq=False)
class _Pass:
    """The seconds that some statistics took, and when they were ready, on the performance counter."""

    seconds: float
    ended: float


class Calibration:
    """Statistics of a model on its calibration samples, streamed in single passes and cached for later callers.

    The model's mode, gradients, weights and hooks are restored after each pass.
    """

    def __init__(
        self,
        vlm: VLM,
        samples: Sequence[Sample],
        batch_size: int = 16,
        progress: Progress = silent,
        room: int | None = None,
    ) -> None:
        """room: the bytes that all moments may take together; by default as in harness/statistics/moments.py.
        Raises InputError if `samples` is empty or the batch size is below 1.
        """
        if not samples:
            raise InputError("calibration: samples: empty; at least 1 sample is needed")
        if batch_size < 1:
            raise InputError(f"calibration: batch_size: {batch_size} should be at least 1")
        self.vlm, self.samples, self.batch_size = vlm, tuple(samples), batch_size
        self.progress = progress  # shows one line about what a long ranking does now
        self.room = moments.room(vlm.model) if room is None else room
        self._cache: dict[tuple[Hashable, Hashable], tuple[Any, _Pass]] = {}  # by (kind of statistic, name)
        self._used: set[_Pass] = set()  # since `billed` began
        self.passes, self.pass_seconds = 0, 0.0  # of `visit`
        self._resumed: ResumedPasses | None = None  # set once the moments do not fit into one pass

    def batches(self) -> Iterator[dict[str, Any]]:
        """Encoded inputs with labels, on the model's device; between passes they stay in main memory."""
        device = _device(self.vlm.model)
        return (_on(device, batch) for batch in self._encoded())

    @cached_property
    def singly(self) -> Calibration:
        """The same samples in batches of one: one row per sample in `gate_gradients`, and no padding."""
        if self.batch_size == 1:
            return self
        single = Calibration(self.vlm, self.samples, 1, self.progress, self.room)
        single._used = self._used
        return single

    @contextmanager
    def billed(self) -> Iterator[Callable[[], float]]:
        """Yields a clock that gives the cost of the work inside as if it ran alone, in seconds.

        A statistic that an earlier caller computed counts with the time of its pass, so the first caller does not pay
        for all. If the moments did not fit into memory together, those still cached are dropped on exit, so the next
        caller starts a fresh pass.
        """
        self._used.clear()
        start = time.perf_counter()
        try:
            yield lambda: time.perf_counter() - start + sum(p.seconds for p in self._used if p.ended <= start)
        finally:
            if self._resumed is not None:
                self._resumed = None
                self._forget()

    def cached(
        self, kind: Hashable, names: Iterable[Any], compute: Callable[[list[Any]], Mapping[Any, Any]]
    ) -> dict[Any, Any]:
        """Statistics of one kind by name; `compute` gives all missing ones in one pass."""
        names = list(dict.fromkeys(names))
        if missing := [name for name in names if (kind, name) not in self._cache]:
            if kind != ENCODED:
                self._encoded()  # before the clock starts: encoding is not part of this pass
            start = time.perf_counter()
            values = compute(missing)
            pass_ = _Pass(time.perf_counter() - start, time.perf_counter())
            self._cache |= {(kind, name): (value, pass_) for name, value in values.items()}
        self._used |= {self._cache[kind, name][1] for name in names}
        return {name: self._cache[kind, name][0] for name in names}

    @cached_property
    def extents(self) -> Mapping[Component, Extent]:
        """Tokens and (query, key) pairs of each component, summed over all samples."""
        parts = [family(self.vlm.family).extents(self.vlm.model, batch) for batch in self.batches()]
        return {
            component: Extent(*map(sum, zip(*(astuple(part[component]) for part in parts), strict=True)))
            for component in parts[0]
        }

    def _encoded(self) -> list[dict[str, Any]]:
        return self.cached(ENCODED, [""], lambda _: {"": self._encode()})[""]

    def _encode(self) -> list[dict[str, Any]]:
        batches = []
        for start in range(0, len(self.samples), self.batch_size):
            part = self.samples[start : start + self.batch_size]
            images, texts, answers = [[s.image] for s in part], [s.question for s in part], [s.answer for s in part]
            places = [s.place or f"calibration sample {i}" for i, s in enumerate(part, start)]
            batches.append(encode(self.vlm.processor, images, texts, answers, places=places))
        return batches

    def moments(self, modules: Iterable[str]) -> Mapping[str, Moment]:
        """Moments of the inputs of these Linears of the model's blocks, by module path; float64, on the model's device.

        If all fit into `room`, one pass computes them now. Otherwise, each look-up of a missing moment runs a pass that
        computes it and as many of the following ones as fit, and drops older ones. So iterate in forward order, and
        keep no references. Padding does not count; every patch of the vision tower does. Raises InputError, at the
        pass, naming the first layer whose input is not finite.
        """
        paths = list(dict.fromkeys(modules))
        if missing := self._missing(paths):
            self._moment(missing[0], paths)
        if not self._missing(paths):
            self.cached("moments", paths, self._moments)  # all count as used now; otherwise each on its look-up
        return Lazy(paths, lambda path: self._moment(path, paths))

    def _missing(self, paths: Iterable[str]) -> list[str]:
        """The Linears without a cached moment, in the order of the forward pass."""
        return sorted((path for path in paths if ("moments", path) not in self._cache), key=self._order.place)

    def _moment(self, path: str, paths: Sequence[str]) -> Moment:
        if ("moments", path) not in self._cache:
            model, place = self.vlm.model, self._order.place(path)
            now = moments.ahead(model, (p for p in self._missing(paths) if self._order.place(p) >= place), self.room)
            if len(now) < len(self._missing(paths)) and self._resumed is None:
                self._resumed = ResumedPasses(self.vlm)
            self._forget(self.room - sum(moments.size(model, each) for each in now))
            self.cached("moments", now, self._moments)
        return self.cached("moments", [path], self._moments)[path]

    def _forget(self, room: int = -1) -> None:
        """Drop the oldest moments until the rest fits into `room` bytes."""
        for key in reversed([key for key in self._cache if key[0] == "moments"]):
            room -= moments.size(self.vlm.model, str(key[1]))
            if room < 0:
                del self._cache[key]

    def _moments(self, modules: list[str]) -> dict[str, Moment]:
        sums: dict[str, Sum] = {}

        def add(path: str, rows: Tensor) -> None:
            if path not in sums:
                sums[path] = Sum.empty(rows.shape[1], rows.device)
            sums[path].add(rows)

        self.visit(modules, add, self._resumed)
        # The diagonal bounds all other entries.
        self._check({path: finite(sum_.total) & finite(sum_.gram.diagonal()) for path, sum_ in sums.items()})
        return {path: sum_.moment() for path, sum_ in sums.items()}

    def _check(self, flags: Mapping[str, Tensor]) -> None:
        """Whether sums are finite, by path, in the order of the forward pass."""
        if path := first_broken(flags):
            raise InputError(f"model {self.vlm.name}: {path}: its input on the calibration samples has NaN or Inf")

    def features(self, modules: Iterable[str]) -> Mapping[str, Features]:
        """Statistics of each input feature of these Linears, by module path; one pass for all new Linears.

        They are the diagonal of `moments`, without the matrix: float64, on the model's device, without padding.
        Raises InputError naming the first layer whose input is not finite.
        """
        return self.cached("features", modules, self._features)

    def _features(self, modules: list[str]) -> dict[str, Features]:
        counts: dict[str, int] = dict.fromkeys(modules, 0)
        sums: dict[str, Tensor] = {}

        def add(path: str, rows: Tensor) -> None:
            rows = rows.double()
            batch_sums = torch.stack([rows.sum(0), rows.square().sum(0), rows.abs().sum(0)])
            counts[path] += len(rows)
            sums[path] = sums[path] + batch_sums if path in sums else batch_sums

        self.visit(modules, add)
        self._check({path: finite(sum_) for path, sum_ in sums.items()})
        return {path: Features(*(sum_ / counts[path])) for path, sum_ in sums.items()}

    def rows(self, modules: Iterable[str], limit: int = 4096) -> Mapping[str, Tensor]:
        """About `limit` input rows of each of these Linears, evenly spaced over the samples: (rows, in).

        Linears that read the same tokens get the same positions. In the model's dtype, on its device.
        """
        return self.cached(("rows", limit), modules, lambda missing: self._rows(missing, limit))

    def _rows(self, modules: list[str], limit: int) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {path: [] for path in modules}
        quota = -(-limit // len(self._encoded()))

        def take(path: str, rows: Tensor) -> None:
            places = torch.linspace(0, len(rows) - 1, min(quota, len(rows))).long()  # the same on every device
            parts[path].append(rows[places.to(rows.device)])

        self.visit(modules, take)
        return {path: torch.cat(rows) for path, rows in parts.items()}

    def visit(
        self, modules: Iterable[str], see: Callable[[str, Tensor], None], resumed: ResumedPasses | None = None
    ) -> None:
        """One pass without gradients: `see` gets the path and the input rows (n, in) of each Linear, batch by batch.

        The rows are views of activations, so copy what you keep. Padding is left out. A batch stops before the first
        block of the language model that no requested Linear needs. With `resumed`, it starts where the last pass ended.
        """
        model, modules, device = self.vlm.model, list(modules), _device(self.vlm.model)
        if hasattr(model, "token_cut"):
            raise InputError(
                f"model {self.vlm.name}: it drops visual tokens, so its layers do not read the same ones; take "
                "statistics of the model without that"
            )
        resumed = ResumedPasses(self.vlm, lasting=False) if resumed is None else resumed
        start = time.perf_counter()
        patches = {p for block in self.vlm.blocks if block.component == "vision" for p in block_linears(block)}
        tokens: UnpaddedRows

        def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, args: see(path, args[0].flatten(0, -2) if path in patches else tokens.of(args[0]))

        with self.frozen(), torch.no_grad(), ExitStack() as hooks:
            for path in modules:
                hooks.callback(model.get_submodule(path).register_forward_pre_hook(hook(path)).remove)
            run = hooks.enter_context(resumed.going(*self._order.span(modules)))
            for number, batch in enumerate(self._encoded()):
                tokens = UnpaddedRows(batch["attention_mask"])
                inputs = {key: value for key, value in batch.items() if key != "labels"}
                run(number, lambda inputs=inputs: model(**_on(device, inputs), use_cache=False, logits_to_keep=1))
        wait(device)()
        self.passes, self.pass_seconds = self.passes + 1, self.pass_seconds + time.perf_counter() - start

    @cached_property
    def _order(self) -> ForwardOrder:
        return ForwardOrder(self.vlm)

    def gate_gradients(self) -> Mapping[tuple[str, Kind], Tensor]:
        """Derivative of the answer loss by a gate on each unit, one row per mini-batch: (batches, count), float64, CPU.

        The gate is at 1 (see `gated`), so its derivative is the sum of activation * gradient over the unit's columns.
        The loss is the mean cross-entropy over the mini-batch's answer tokens. Raises InputError naming the first
        block whose derivative is not finite.
        """
        compute = gradients.gate_gradients
        return self.cached("gate gradients", [""], lambda _: {"": compute(self.vlm, self.batches())})[""]

    def visit_gradients(self, modules: Iterable[str], see: Callable[[Mapping[str, Tensor]], None]) -> None:
        """One pass with gradients: `see` gets the gradients of the answer loss by the Linears' weights, batch by batch.

        By module path, (out, in), on the model's device. The loss is the mean cross-entropy over the batch's answer
        tokens.
        Raises InputError naming a Linear whose gradient is not finite.
        """
        gradients.visit_gradients(self.vlm, self.batches(), modules, see)

    def visit_output_gradients(self, modules: Iterable[str], see: Callable[[str, Tensor], None]) -> None:
        """One pass with gradients: `see` gets the path and output gradients (n, out) of each Linear, batch by batch.

        A row is the gradient of its own sample's loss: the cross-entropy summed over the answer tokens. Last Linears
        first; a token of padding has a row of zeros. In the model's dtype, on its device. Raises InputError naming a
        Linear whose gradient is not finite.
        """
        gradients.visit_output_gradients(self.vlm, self.batches(), modules, see)

    def attention_entropy(self) -> Mapping[str, Tensor]:
        """Entropy of the attention of each block's heads over the log of the number of keys: (count,) by block name.

        Averaged over queries, the query heads of a unit, and samples; between 0 (one key per query) and 1; float64,
        CPU. Raises InputError for a model whose attention does not use torch's scaled_dot_product_attention.
        """
        return self.cached("attention entropy", [""], lambda _: {"": self._attention_entropy()})[""]

    def _attention_entropy(self) -> dict[str, Tensor]:
        meter = EntropyMeter(self.vlm)
        with self.frozen(), torch.no_grad(), meter:
            for batch in self.singly.batches():  # batches of one: the attention of padding must not count
                self.vlm.model(**batch, use_cache=False)
        return meter.means()

    def block_influence(self) -> Mapping[str, float]:
        """One minus the cosine of each block's input and output, averaged over tokens, by block name: 0 to 2.

        Padding does not count; every patch of the vision tower does. Raises InputError naming the first block whose
        input or output is not finite.
        """
        return self.cached("block influence", [""], lambda _: {"": block_influence(self.vlm, self.batches())})[""]

    def answer_loss(self, gates: Mapping[tuple[str, Kind], Tensor] | None = None, samples: int | None = None) -> float:
        """Mean cross-entropy, in nats, over all answer tokens of the samples, with these gates on the units.

        samples: use only the first batches that hold this many samples; the first samples are spread over the tasks.
        """
        total, count = 0.0, 0
        enough = None if samples is None else -(-samples // self.batch_size)
        with self.frozen(), torch.no_grad(), self.gated(gates or {}):
            for batch in itertools.islice(self.batches(), enough):
                logits, tokens = answer_logits(self.vlm.model, batch)
                total += float(cross_entropy(logits, tokens)) * len(tokens)
                count += len(tokens)
        return total / count

    def gated(self, gates: Mapping[tuple[str, Kind], Tensor]) -> AbstractContextManager[None]:
        """Multiply the consumer's input columns of each unit by the unit's gate; gates: (count,) per (block, kind).

        The gate of a whole layer multiplies what the block adds to its input. A gate of 0 gives the function of the
        model without that unit, at the old size.
        """
        return gradients.gated(self.vlm, gates)

    def frozen(self) -> AbstractContextManager[None]:
        """Evaluation mode and frozen weights inside; the former modes and flags afterwards."""
        return gradients.frozen(self.vlm.model)


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) for key, value in batch.items()}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
