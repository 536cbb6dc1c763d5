"""Recovery after pruning, the same for every method: all weights, low-rank adapters, or a least-squares refit.

    calibration = Calibration(dense, samples, batch_size=16)
    tuned = tune(pruned, calibration, Tuning("full", loss="kl", steps=300), seed=0)  # tuned.vlm, tuned.curve

`Tuning` is the budget: steps of a batch of questions each. The dense model teaches and is never written to.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.calibration import Calibration, answer_logits
from harness.families._pruned import LowRankLinear
from harness.types import VLM, Block, Choice, InputError, Keep, Plan, Tuning

Progress = Callable[[str], None]
WARMUP = 0.1  # share of the steps over which the rate rises
WEIGHT_DECAY = 0.01
LARGEST = 1.0  # norm of the gradient
POINTS = 50  # of the learning curve
ROWS = 8192  # calibration rows of each Linear that is refitted
DAMPING = 1e-4  # of the refit, a share of the inputs' mean square


@dataclass(frozen=True)
class Tuned:
    """A recovered model and what it took; the curve's losses are means since the point before, in nats per token."""

    vlm: VLM
    curve: tuple[Mapping[str, Any], ...]  # of a refit: relative squared error of each Linear before and after
    steps: int
    samples: int  # questions seen, each time counted


def tune(
    pruned: VLM,
    calibration: Calibration,
    tuning: Tuning,
    *,
    seed: int,
    turn: int = 1,
    progress: Progress = lambda text: None,
) -> Tuned:
    """A copy of `pruned`, recovered on the questions of `calibration`, whose model is the dense one.

    Of several rounds, `turn` (from 1) gets its share of the steps. The same seed gives the same weights on the same
    machine. Raises FloatingPointError when the loss is no longer finite.
    """
    vlm = dataclasses.replace(pruned, model=copy.deepcopy(pruned.model).eval())
    if tuning.method == "refit":
        return Tuned(vlm, tuple(refit(vlm, calibration, progress)), 0, len(calibration.samples))
    steps = tuning.steps * turn // tuning.rounds - tuning.steps * (turn - 1) // tuning.rounds
    device = next(vlm.model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _in_float32(vlm.model) as dtype:
        torch.manual_seed(seed)
        adapted = adapters(vlm, tuning.rank) if tuning.method == "lora" else None
        if adapted is None:
            vlm.model.requires_grad_(True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            curve, samples = _learn(vlm.model, calibration, tuning, steps, seed, progress)
        if adapted is not None:
            adapted.merge_and_unload()
    return Tuned(vlm, tuple(curve), steps, samples)


# --- learning ---------------------------------------------------------------------------------------------


def _learn(
    model: Any, calibration: Calibration, tuning: Tuning, steps: int, seed: int, progress: Progress
) -> tuple[list[dict[str, Any]], int]:
    """AdamW over what is trainable, the rate rising linearly and falling as a cosine; batches in a new order each pass.

    The model stays in evaluation mode: no dropout, so that what is learned depends on the seed's order alone.
    """
    batches = list(calibration.batches())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=tuning.rate, weight_decay=WEIGHT_DECAY)
    order = _order(len(batches), seed)

    @cache
    def taught(number: int) -> Tensor:
        with torch.no_grad():
            return answer_logits(calibration.vlm.model, batches[number])[0].log_softmax(-1)

    curve: list[dict[str, Any]] = []
    samples, losses = 0, []
    for step in range(steps):
        number, rate = next(order), tuning.rate * schedule(step, steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.enable_grad():
            logits, answers = answer_logits(model, batches[number])
            if tuning.loss == "kl":
                loss = functional.kl_div(logits.log_softmax(-1), taught(number), reduction="batchmean", log_target=True)
            else:
                loss = functional.cross_entropy(logits, answers)
            loss.backward()
        nn.utils.clip_grad_norm_(weights, LARGEST)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"tuning: the loss is no longer finite after {step + 1} steps")
        samples += len(batches[number]["labels"])
        if (step + 1) * POINTS // steps != step * POINTS // steps or step + 1 == steps:
            curve.append({"step": step + 1, "loss": sum(losses) / len(losses), "rate": rate})
            progress(f"tuning: step {step + 1} of {steps}, loss {curve[-1]['loss']:.3f}")
            losses = []
    return curve, samples


def schedule(step: int, steps: int) -> float:
    """The share of the highest rate at this step, from 0: a linear rise, then half a cosine."""
    rise = max(1, round(WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def _order(count: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[torch.dtype]:
    """Learn in float32, where small steps are not rounded away; then back to each weight's own type, and frozen."""
    own = {id(weight): weight.dtype for weight in model.parameters()}
    first = next(iter(own.values()))
    for weight in model.parameters():
        weight.data = weight.data.float()
    yield first
    for weight in model.parameters():
        weight.data = weight.data.to(own.get(id(weight), first))
    model.requires_grad_(False)


def adapters(vlm: VLM, rank: int) -> Any:
    """Put LoRA adapters of this rank (scale 2) on every Linear of the blocks, in place; all else is frozen.

    Returns peft's wrapper, whose `merge_and_unload` adds them to the weights. Source: Hu et al. 2022, LoRA.
    """
    import peft

    inside = tuple(f"{block.path}." for block in vlm.blocks)
    linears = [
        path for path, module in vlm.model.named_modules() if isinstance(module, nn.Linear) and path.startswith(inside)
    ]
    model: Any = vlm.model
    return peft.LoraModel(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linears), "default")


# --- refit ------------------------------------------------------------------------------------------------


def refit(vlm: VLM, calibration: Calibration, progress: Progress = lambda text: None) -> Iterator[dict[str, Any]]:
    """Refit the Linear after each cut so that it gives what the dense one gave, in place, in the order of the forward.

    It reads what the blocks before it, refitted already, let through; so it makes up for their errors too. The Linear
    after a cut reads the removed units; of two factors it is the second. Yields each one's relative squared error
    before and after. Source: He, Zhang and Sun 2017, Channel Pruning, section 3.1 (the reconstruction step).
    """
    now = Calibration(vlm, calibration.samples, calibration.batch_size)
    groups = [group for block in vlm.blocks for group in _cut(calibration.vlm.model, vlm.model, block)]
    dense = calibration.rows([path for group in groups for path in group], ROWS)
    for done, group in enumerate(groups):
        progress(f"refit: {done + 1} of {len(groups)}")
        for path, inputs in now.rows(group, ROWS).items():
            with torch.no_grad():
                linear: Any = vlm.model.get_submodule(path)
                if isinstance(linear, LowRankLinear):
                    inputs, linear = linear.down(inputs), linear.up
                wanted = calibration.vlm.model.get_submodule(path)(dense[path]).double()
                weight, bias = least_squares(inputs, wanted, linear.weight, linear.bias)
                before = _error(linear(inputs), wanted)
                linear.weight = nn.Parameter(weight.to(linear.weight), requires_grad=False)
                if bias is not None:
                    linear.bias = nn.Parameter(bias.to(linear.bias), requires_grad=False)
                yield {"module": path, "before": before, "after": _error(linear(inputs), wanted)}


def _error(found: Tensor, wanted: Tensor) -> float:
    """Squared error over the square of what was wanted."""
    return float((found - wanted).square().sum() / wanted.square().sum().clamp(min=torch.finfo(wanted.dtype).tiny))


def _cut(dense: nn.Module, pruned: nn.Module, block: Block) -> Iterator[list[str]]:
    """The Linears of a block that follow a cut, those together that read the same input."""
    for units in (block.heads, block.ffn):
        for group in ([rows.module for rows in units.producers], [units.consumer]):
            found = []
            for path in dict.fromkeys(group):
                own: Any = pruned.get_submodule(path)
                whole: Any = dense.get_submodule(path)
                if isinstance(own, LowRankLinear) or own.in_features < whole.in_features:
                    found.append(path)
            if found:
                yield found


def least_squares(
    inputs: Tensor, wanted: Tensor, weight: Tensor, bias: Tensor | None, damping: float = DAMPING
) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) and bias nearest to `weight` that turn inputs (n, in) into `wanted` (n, out), in float64.

    Minimises |X W^T + b - Y|^2 / n + damping * mean square of X * |W - weight|^2: what the data say nothing about stays
    as it is. Without a `bias` there is none to fit.
    """
    x, y, weight = inputs.double(), wanted.double(), weight.detach().double()
    centre = torch.zeros_like(x[0]) if bias is None else x.mean(0)
    goal = torch.zeros_like(y[0]) if bias is None else y.mean(0)
    x, y = x - centre, y - goal
    gram = x.T @ x / len(x)
    ridge = damping * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    missing = (y - x @ weight.T).T @ x / len(x)
    found = weight + torch.cholesky_solve(missing.T, root).T
    return found, None if bias is None else goal - found @ centre


# --- rounds -----------------------------------------------------------------------------------------------


def together(first: Plan, then: Plan) -> Plan:
    """Two cuts, the second of what the first left, as one plan in the indices of the whole model.

    Raises InputError where Linears are replaced: those cannot be cut again.
    """
    if any(isinstance(part, Choice) for plan in (first, then) for part in plan.parts.values()):
        raise InputError("tuning.rounds: only units can be removed in rounds; this method replaces Linears")
    parts = dict(first.parts)
    for key, part in then.parts.items():
        before = first.parts.get(key)
        assert isinstance(part, Keep)
        parts[key] = Keep(tuple(before.indices[i] for i in part.indices)) if isinstance(before, Keep) else part
    return Plan(parts, first.requested * then.requested, first.achieved * then.achieved)
