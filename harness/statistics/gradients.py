"""Gradients of the answer loss: by a gate on each unit, and by the weights and the outputs of Linears.

with frozen(vlm.model), gated(vlm, {("vision.0", "heads"): mask}): vlm.model(**batch)
gate_gradients(vlm, batches)["vision.0", "heads"]  # (batches, heads)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.statistics.finite import finite, first_broken
from harness.types import VLM, InputError, Kind


def gate_gradients(vlm: VLM, batches: Iterable[Mapping[str, Any]]) -> dict[tuple[str, Kind], Tensor]:
    """Derivative of the answer loss by a gate on each unit, one row per batch: (batches, count), float64, CPU.

    See `Calibration.gate_gradients`.
    """
    gates: dict[tuple[str, Kind], Tensor] = {
        (block.name, kind): torch.ones(
            block.units(kind).count, device=next(vlm.model.parameters()).device, requires_grad=True
        )
        for block, kind in vlm.select("all")
    }
    rows: list[tuple[Tensor, ...]] = []
    with frozen(vlm.model), torch.enable_grad(), gated(vlm, gates):
        for batch in batches:
            loss = cross_entropy(*answer_logits(vlm.model, batch))
            rows.append(torch.autograd.grad(loss, list(gates.values())))
    gradients = {key: torch.stack([row[i] for row in rows]).double().cpu() for i, key in enumerate(gates)}
    _check(vlm, {f"{block} {kind}": finite(gradient) for (block, kind), gradient in gradients.items()})
    return gradients


def visit_gradients(
    vlm: VLM, batches: Iterable[Mapping[str, Any]], modules: Iterable[str], see: Callable[[Mapping[str, Tensor]], None]
) -> None:
    """One pass with gradients: `see` gets, for each batch, the gradients of the answer loss by the Linears' weights.

    See `Calibration.visit_gradients`.
    """
    weights = {path: vlm.model.get_parameter(f"{path}.weight") for path in dict.fromkeys(modules)}
    with frozen(vlm.model), torch.enable_grad(), ExitStack() as undo:
        for weight in weights.values():
            undo.callback(weight.requires_grad_, False)
            weight.requires_grad_(True)
        for batch in batches:
            gradients = torch.autograd.grad(cross_entropy(*answer_logits(vlm.model, batch)), list(weights.values()))
            by_path = dict(zip(weights, gradients, strict=True))
            _check(vlm, {path: finite(gradient) for path, gradient in by_path.items()})
            see(by_path)


def visit_output_gradients(
    vlm: VLM, batches: Iterable[Mapping[str, Any]], modules: Iterable[str], see: Callable[[str, Tensor], None]
) -> None:
    """One pass with gradients by the Linears' outputs. See `Calibration.visit_output_gradients`."""

    def flat(path: str, gradient: Tensor) -> None:
        see(path, gradient.flatten(0, -2))

    with frozen(vlm.model), torch.enable_grad(), watched_outputs(vlm, modules, flat, "answer loss has") as check:
        for batch in batches:
            cross_entropy(*answer_logits(vlm.model, batch), reduction="sum").backward()
            check()


@contextmanager
def watched_outputs(
    vlm: VLM, modules: Iterable[str], see: Callable[[str, Tensor], None], what: str
) -> Iterator[Callable[[], None]]:
    """Inside, each backward pass gives `see` the path and output gradient (..., out) of each Linear, last ones first.

    Yields a function to call after each batch. It raises InputError naming a Linear whose gradient was not finite; one
    wait for the device answers for all of them. what: the words "... has" or "... have" of the error.
    """
    flags: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def noted(gradient: Tensor) -> None:
            flags[path] = finite(gradient)
            see(path, gradient)

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            output.requires_grad_()  # the weights are frozen, so the first output would have no gradient
            output.register_hook(noted)

        return hook

    def check() -> None:
        _check(vlm, flags, what)
        flags.clear()

    with ExitStack() as hooks:
        for path in dict.fromkeys(modules):
            hooks.callback(vlm.model.get_submodule(path).register_forward_hook(watch(path)).remove)
        yield check


def _check(vlm: VLM, flags: Mapping[str, Tensor], what: str = "answer loss has") -> None:
    if place := first_broken(flags):
        raise InputError(f"model {vlm.name}: {place}: the {what} a NaN or Inf gradient")


def answer_logits(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits at the positions that predict an answer token, (tokens, vocabulary), and these tokens, (tokens,).

    Only the logits at the right end of the rows are computed, because the answers are there.
    """
    inputs, labels = {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    width = int((labels != -100).sum(1).max())
    if cut := getattr(model, "token_cut", None):  # the prompt alone chooses tokens, as where answers are decoded
        cut.ends = (labels != -100).int().argmax(1) - 1
    logits = model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
    rows, places = (labels[:, -width:] != -100).nonzero(as_tuple=True)  # once: to find them is a wait for the device
    return logits[rows, places].float(), labels[:, -width:][rows, places]


@contextmanager
def gated(vlm: VLM, gates: Mapping[tuple[str, Kind], Tensor]) -> Iterator[None]:
    """Multiply the consumer's input columns of each unit by the unit's gate; gates: (count,) per (block, kind).

    The gate of a whole layer multiplies what the block adds to its input. A gate of 0 gives the function of the model
    without that unit, at the old size.
    """

    def passing(gate: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after, *others = output if isinstance(output, tuple) else (output,)
            gated = before + gate.to(before) * (after - before)
            return (gated, *others) if isinstance(output, tuple) else gated

        return hook

    def hook(gate: Tensor, width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda module, args: (args[0] * gate.repeat_interleave(width).to(args[0]), *args[1:])

    with ExitStack() as hooks:
        for (name, kind), gate in gates.items():
            units = vlm.block(name).units(kind)
            consumer = vlm.model.get_submodule(units.consumer)
            if kind == "layers":  # first of the hooks, so that those that record hidden states see the gated ones
                hooks.callback(consumer.register_forward_hook(passing(gate), prepend=True, with_kwargs=True).remove)
                continue
            hooks.callback(consumer.register_forward_pre_hook(hook(gate, units.width)).remove)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights inside; the former modes and flags afterwards."""
    training = [module for module in model.modules() if module.training]
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for weight in learning:
            weight.requires_grad_(True)
