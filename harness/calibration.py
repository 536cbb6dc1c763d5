"""What a method may look at: calibration samples, moments of activations, gradients of gates, each made once.

calibration = Calibration(vlm, samples)
calibration.moments([vlm.blocks[0].heads.consumer])  # {module path: Moment}
calibration.gate_gradients()[vlm.blocks[0].name, "heads"]  # (batches, heads)
calibration.singly.gate_gradients()  # the same, one row a sample
calibration.answer_loss({(vlm.blocks[0].name, "heads"): mask})  # nats
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import moments
from harness.attention import EntropyMeter
from harness.families import family
from harness.metrics.latency import wait
from harness.moments import Features, ForwardOrder, Lazy, Moment, ResumedPasses, Sum, block_linears
from harness.moments import linears as linears  # what methods ask for statistics of
from harness.prompts import encode
from harness.types import VLM, Component, Extent, InputError, Kind, Sample, Units

ENCODED = "encoded"


@dataclass(frozen=True, eq=False)
class _Pass:
    """What it took to make some statistics, in seconds, and when that was, on the performance counter."""

    seconds: float
    ended: float


Made = Mapping[Hashable, tuple[Features, _Pass]]  # by module path


class Calibration:
    """Statistics of a model on its calibration samples, streamed in single passes and kept for whoever asks next.

    The model is left as found: mode, gradients, weights and hooks.
    """

    def __init__(
        self,
        vlm: VLM,
        samples: Sequence[Sample],
        batch_size: int = 16,
        progress: Callable[[str], None] = lambda text: None,
        room: int | None = None,
    ) -> None:
        """room: bytes that moments may take up together, by default as many as harness/moments.py says."""
        if not samples:
            raise InputError("calibration: samples: there are none, at least 1 is needed")
        if batch_size < 1:
            raise InputError(f"calibration: batch_size: {batch_size} should be at least 1")
        self.vlm = vlm
        self.samples = tuple(samples)
        self.batch_size = batch_size
        self.progress = progress  # a line on what a long ranking is doing
        self.room = moments.room(vlm.model) if room is None else room
        self._kept: dict[tuple[Hashable, Hashable], tuple[Any, _Pass]] = {}
        self._used: set[_Pass] = set()
        self.passes, self.pass_seconds = 0, 0.0  # of `visit`
        self._resumed: ResumedPasses | None = None  # for moments, once there was no room for all in one pass

    def batches(self) -> Iterator[dict[str, Any]]:
        """Encoded inputs with labels, on the model's device; between passes they are in the machine's memory."""
        device = _device(self.vlm.model)
        return (_on(device, batch) for batch in self._encoded())

    @cached_property
    def singly(self) -> Calibration:
        """The same samples one at a time: a row a sample in `gate_gradients`, and no padding."""
        if self.batch_size == 1:
            return self
        made = Calibration(self.vlm, self.samples, 1, self.progress, self.room)
        made._used = self._used
        return made

    @contextmanager
    def billed(self) -> Iterator[Callable[[], float]]:
        """Gives a clock of what the work inside costs by itself, in seconds.

        What others had made before and is used inside counts with the time of its pass: whoever asks first is not the
        only one who pays. If not all moments fitted into memory, those still held are dropped on exit, so that the next
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

    def _keep(
        self, kind: Hashable, wanted: Iterable[Any], make: Callable[[list[Any]], Mapping[Any, Any]]
    ) -> dict[Any, Any]:
        """The statistics of one kind that are wanted, by name; `make` makes all missing ones in one pass."""
        wanted = list(dict.fromkeys(wanted))
        if missing := [name for name in wanted if (kind, name) not in self._kept]:
            if kind != ENCODED:
                self._encoded()  # no part of this pass
            start = time.perf_counter()
            found = make(missing)
            took = _Pass(time.perf_counter() - start, time.perf_counter())
            self._kept |= {(kind, name): (value, took) for name, value in found.items()}
        self._used |= {self._kept[kind, name][1] for name in wanted}
        return {name: self._kept[kind, name][0] for name in wanted}

    def made_features(self) -> Made:
        """The features there are, for `adopt` elsewhere. Moments are a matrix each, too large to be sent about."""
        kept = self._kept.items()
        return {name: (value.to("cpu"), took) for (kind, name), (value, took) in kept if kind == "features"}

    def adopt(self, made: Made) -> None:
        """Keep features that were made elsewhere of the same model and samples; they count as made before."""
        passes = {took: _Pass(took.seconds, -math.inf) for _, took in made.values()}
        device = _device(self.vlm.model)
        own = {("features", name): (value.to(device), passes[took]) for name, (value, took) in made.items()}
        self._kept = own | self._kept

    @cached_property
    def extents(self) -> Mapping[Component, Extent]:
        """Tokens and (query, key) pairs of each component, of all samples together."""
        parts = [family(self.vlm.family).extents(self.vlm.model, batch) for batch in self.batches()]
        return {
            component: Extent(*map(sum, zip(*(astuple(part[component]) for part in parts), strict=True)))
            for component in parts[0]
        }

    def _encoded(self) -> list[dict[str, Any]]:
        return self._keep(ENCODED, [""], lambda _: {"": self._encode()})[""]

    def _encode(self) -> list[dict[str, Any]]:
        batches = []
        for start in range(0, len(self.samples), self.batch_size):
            part = self.samples[start : start + self.batch_size]
            images, texts, answers = [[s.image] for s in part], [s.question for s in part], [s.answer for s in part]
            batches.append(encode(self.vlm.processor, images, texts, answers))
        return batches

    def moments(self, modules: Iterable[str]) -> Mapping[str, Moment]:
        """Moments of the inputs of these Linears of the model's blocks, by module path.

        If all fit into `room`, one pass makes them here. Otherwise each look-up of a missing moment runs a pass that
        makes it and as many of the following ones as fit, dropping older ones. So iterate in forward order, and keep no
        references. Padding does not count; of the vision tower, every patch does. Float64, on the model's device.
        Raises InputError, at its pass, naming the first layer with an input not finite.
        """
        wanted = list(dict.fromkeys(modules))
        if missing := self._missing(wanted):
            self._moment(missing[0], wanted)
        if not self._missing(wanted):
            self._keep("moments", wanted, self._moments)  # all count as used; else each does when it is looked at
        return Lazy(wanted, lambda path: self._moment(path, wanted))

    def _missing(self, paths: Iterable[str]) -> list[str]:
        """Those of the Linears that have no moment now, in the order of the forward pass."""
        return sorted((path for path in paths if ("moments", path) not in self._kept), key=self._order.place)

    def _moment(self, path: str, wanted: Sequence[str]) -> Moment:
        if ("moments", path) not in self._kept:
            model, place = self.vlm.model, self._order.place(path)
            now = moments.ahead(model, (p for p in self._missing(wanted) if self._order.place(p) >= place), self.room)
            if len(now) < len(self._missing(wanted)) and self._resumed is None:
                self._resumed = ResumedPasses(self.vlm)
            self._forget(self.room - sum(moments.size(model, each) for each in now))
            self._keep("moments", now, self._moments)
        return self._keep("moments", [path], self._moments)[path]

    def _forget(self, room: int = -1) -> None:
        """Let the moments go that do not fit into so many bytes, the newest staying longest."""
        for key in reversed([key for key in self._kept if key[0] == "moments"]):
            room -= moments.size(self.vlm.model, str(key[1]))
            if room < 0:
                del self._kept[key]

    def _moments(self, modules: list[str]) -> dict[str, Moment]:
        sums: dict[str, Sum] = {}

        def add(path: str, rows: Tensor) -> None:
            if path not in sums:
                sums[path] = Sum.empty(rows.shape[1], rows.device)
            sums[path].add(rows)

        self.visit(modules, add, self._resumed)
        for path, sum_ in sums.items():  # in the order of the forward pass
            self._check(path, sum_.total, sum_.gram.diagonal())  # no entry is larger than the largest there
        return {path: sum_.moment() for path, sum_ in sums.items()}

    def _check(self, path: str, *sums: Tensor) -> None:
        if not all(sum_.isfinite().all() for sum_ in sums):
            raise InputError(f"model {self.vlm.name}: {path}: its input on the calibration samples has NaN or Inf")

    def features(self, modules: Iterable[str]) -> Mapping[str, Features]:
        """Statistics of each input feature of these Linears, by module path; one pass for all new ones.

        What `moments` has on its diagonal, without the matrix. Float64, on the model's device, padding left out.
        Raises InputError naming the first layer whose input is not finite.
        """
        return self._keep("features", modules, self._features)

    def _features(self, modules: list[str]) -> dict[str, Features]:
        counts: dict[str, int] = dict.fromkeys(modules, 0)
        sums: dict[str, Tensor] = {}

        def add(path: str, rows: Tensor) -> None:
            rows = rows.double()
            found = torch.stack([rows.sum(0), rows.square().sum(0), rows.abs().sum(0)])
            counts[path] += len(rows)
            sums[path] = sums[path] + found if path in sums else found

        self.visit(modules, add)
        for path, sum_ in sums.items():  # in the order of the forward pass
            self._check(path, sum_)
        return {path: Features(*(sum_ / counts[path])) for path, sum_ in sums.items()}

    def rows(self, modules: Iterable[str], limit: int = 4096) -> Mapping[str, Tensor]:
        """About `limit` rows of what each of these Linears reads, evenly spaced over the samples: (rows, in).

        The same places for all Linears that read the same tokens. In the model's dtype, on its device.
        """
        return self._keep(("rows", limit), modules, lambda missing: self._rows(missing, limit))

    def _rows(self, modules: list[str], limit: int) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {path: [] for path in modules}
        quota = -(-limit // len(self._encoded()))

        def take(path: str, rows: Tensor) -> None:
            places = torch.linspace(0, len(rows) - 1, min(quota, len(rows)), device=rows.device).long()
            found[path].append(rows[places].clone())

        self.visit(modules, take)
        return {path: torch.cat(parts) for path, parts in found.items()}

    def visit(
        self, modules: Iterable[str], see: Callable[[str, Tensor], None], resumed: ResumedPasses | None = None
    ) -> None:
        """One pass without gradients; `see` gets the path and input rows (n, in) of each Linear, a batch at a time.

        The rows are views of activations: copy what is to be kept. Padding is left out. A batch ends before the first
        block of the language model behind which nothing is asked for; with `resumed` it begins where the last pass
        ended.
        """
        model, modules, device = self.vlm.model, list(modules), _device(self.vlm.model)
        resumed = ResumedPasses(self.vlm, lasting=False) if resumed is None else resumed
        start = time.perf_counter()
        patches = {p for block in self.vlm.blocks if block.component == "vision" for p in block_linears(block)}
        real = torch.empty(0)

        def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, args: see(path, args[0].flatten(0, -2) if path in patches else args[0][real])

        with self.frozen(), torch.no_grad(), ExitStack() as hooks:
            for path in modules:
                hooks.callback(model.get_submodule(path).register_forward_pre_hook(hook(path)).remove)
            run = hooks.enter_context(resumed.going(*self._order.span(modules)))
            for number, batch in enumerate(self._encoded()):
                real = batch["attention_mask"].to(device).bool()
                inputs = {key: value for key, value in batch.items() if key != "labels"}
                run(number, lambda given=inputs: model(**_on(device, given), use_cache=False, logits_to_keep=1))
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
        return self._keep("gate gradients", [""], lambda _: {"": self._gate_gradients()})[""]

    def _gate_gradients(self) -> dict[tuple[str, Kind], Tensor]:
        model = self.vlm.model
        gates: dict[tuple[str, Kind], Tensor] = {
            (block.name, kind): torch.ones(block.units(kind).count, device=_device(model), requires_grad=True)
            for block, kind in self.vlm.select("all")
        }
        rows: list[tuple[Tensor, ...]] = []
        with self.frozen(), torch.enable_grad(), self.gated(gates):
            for batch in self.batches():
                loss = cross_entropy(*answer_logits(model, batch))
                rows.append(torch.autograd.grad(loss, list(gates.values())))
        gradients = {key: torch.stack([row[i] for row in rows]).double().cpu() for i, key in enumerate(gates)}
        for (block, kind), gradient in gradients.items():
            if not gradient.isfinite().all():
                raise InputError(f"model {self.vlm.name}: {block} {kind}: the answer loss has a NaN or Inf gradient")
        return gradients

    def visit_gradients(self, modules: Iterable[str], see: Callable[[Mapping[str, Tensor]], None]) -> None:
        """One pass with gradients; `see` gets those of the answer loss by the Linears' weights, a mini-batch at a time.

        By module path, (out, in), on the model's device. The loss is the mean cross-entropy over the mini-batch's
        answer tokens. Raises InputError naming a Linear whose gradient is not finite.
        """
        model = self.vlm.model
        weights = {path: model.get_parameter(f"{path}.weight") for path in dict.fromkeys(modules)}
        with self.frozen(), torch.enable_grad(), ExitStack() as undo:
            for weight in weights.values():
                undo.callback(weight.requires_grad_, False)
                weight.requires_grad_(True)
            for batch in self.batches():
                found = torch.autograd.grad(cross_entropy(*answer_logits(model, batch)), list(weights.values()))
                for path, gradient in zip(weights, found, strict=True):
                    if not gradient.isfinite().all():
                        raise InputError(f"model {self.vlm.name}: {path}: the answer loss has a NaN or Inf gradient")
                see(dict(zip(weights, found, strict=True)))

    def attention_entropy(self) -> Mapping[str, Tensor]:
        """Entropy of the attention of each block's heads over the log of the number of keys: (count,) by block name.

        Averaged over queries, the query heads of a unit, and samples; between 0 (one key a query) and 1; float64, CPU.
        Raises InputError for a model whose attention does not go through torch's scaled_dot_product_attention.
        """
        return self._keep("attention entropy", [""], lambda _: {"": self._attention_entropy()})[""]

    def _attention_entropy(self) -> dict[str, Tensor]:
        meter = EntropyMeter(self.vlm)
        with self.frozen(), torch.no_grad(), meter:
            for batch in self.singly.batches():  # padding has no attention to speak of
                self.vlm.model(**batch, use_cache=False)
        return meter.means()

    def answer_loss(self, gates: Mapping[tuple[str, Kind], Tensor] | None = None, samples: int | None = None) -> float:
        """Mean cross-entropy, in nats, over all answer tokens of the samples, with these gates on the units.

        samples: stop after the batch with which there are so many; the first ones are spread over the tasks.
        """
        total, count = 0.0, 0
        enough = None if samples is None else -(-samples // self.batch_size)
        with self.frozen(), torch.no_grad(), self.gated(gates or {}):
            for batch in itertools.islice(self.batches(), enough):
                logits, tokens = answer_logits(self.vlm.model, batch)
                total += float(cross_entropy(logits, tokens)) * len(tokens)
                count += len(tokens)
        return total / count

    @contextmanager
    def gated(self, gates: Mapping[tuple[str, Kind], Tensor]) -> Iterator[None]:
        """Multiply the columns of the consumer's input that a unit owns by its gate; gates: (count,) per (block, kind).

        A gate of 0 is the function of the model without that unit, at the old size.
        """

        def hook(gate: Tensor, width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
            return lambda module, args: (args[0] * gate.repeat_interleave(width).to(args[0]), *args[1:])

        with ExitStack() as hooks:
            for (name, kind), gate in gates.items():
                units = self.vlm.block(name).units(kind)
                consumer = self.vlm.model.get_submodule(units.consumer)
                hooks.callback(consumer.register_forward_pre_hook(hook(gate, units.width)).remove)
            yield

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode and frozen weights inside, everything as found afterwards."""
        training = [module for module in self.vlm.model.modules() if module.training]
        learning = [weight for weight in self.vlm.model.parameters() if weight.requires_grad]
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


def answer_logits(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits at the places that predict an answer token, (tokens, vocabulary), and those tokens, (tokens,).

    Answers stand at the right end of their rows, so only the logits there are made.
    """
    inputs, labels = {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    width = int((labels != -100).sum(1).max())
    logits = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
    wanted = labels[:, -width:] != -100
    return logits[wanted].float(), labels[:, -width:][wanted]


def _on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) for key, value in batch.items()}


def unit_sums(units: Units, totals: Callable[[str, int], Tensor]) -> Tensor:
    """Sums over the weights that leave with each unit: a row for each of the producers' Rows, the last the consumer's.

    totals: from a Linear's path, and 1 or 0, the totals of each row (out,) or each column (in,) of a matrix (out, in)
    with a value per weight. Returns (rows, count), float64, CPU.
    """
    found = [totals(rows.module, 1)[rows.offset : rows.offset + units.count * rows.width] for rows in units.producers]
    found.append(totals(units.consumer, 0))
    return torch.stack([part.reshape(units.count, -1).sum(1).double().cpu() for part in found])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
