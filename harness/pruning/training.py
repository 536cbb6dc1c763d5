"""Training after pruning, of all weights, low-rank adapters or the projector, with the dense model as the teacher.

    curve, samples = train(vlm, calibration, Tuning("full", steps=300), steps=300, seed=0)

`Tuning` sets the cost: steps with one batch of questions each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.families._parts import projector
from harness.progress import Progress, silent
from harness.statistics.calibration import Calibration, answer_logits
from harness.types import VLM, InputError, Scope, Tuning

BYTES = 16  # of each weight that is trained: itself in float32, its gradient, and the two moments of AdamW
WARMUP = 0.1  # share of the steps in which the rate rises
WEIGHT_DECAY = 0.01
LARGEST = 1.0  # the gradient's norm is clipped to this
POINTS = 50  # number of points of the learning curve


def train(
    vlm: VLM, calibration: Calibration, tuning: Tuning, steps: int, seed: int, progress: Progress = silent
) -> tuple[list[dict[str, Any]], int]:
    """Train the model in place. Returns the learning curve and the number of questions seen, with repetitions.

    The curve holds mean losses since the previous point, in nats per token. Raises FloatingPointError if the loss
    becomes infinite or NaN.
    """
    device = next(vlm.model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _in_float32(vlm.model) as dtype:
        torch.manual_seed(seed)
        wrapper = adapters(vlm, tuning.rank) if tuning.method == "lora" else None
        if tuning.method == "full":
            vlm.model.requires_grad_(True)
        if tuning.method == "projector":
            for module in projector(vlm.model):
                module.requires_grad_(True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            curve, samples = _learn(vlm.model, calibration, tuning, steps, seed, progress)
        if wrapper is not None:
            wrapper.merge_and_unload()
    return curve, samples


def check_room(vlm: VLM, scope: Scope, keep: float) -> None:
    """Raise InputError if the GPUs of this dense model cannot also hold the training of all weights of its cut.

    keep: the share of the scope's FLOPs that stays, taken as that of its weights. Activations are not counted, so what
    passes may still run out of memory.
    """
    prefixes = tuple(f"{block.path}." for block in vlm.blocks if scope in ("all", block.component))
    weights = Counter[torch.device]()
    for name, weight in vlm.model.named_parameters():
        weights[weight.device] += round(weight.numel() * (keep if name.startswith(prefixes) else 1))
    for device, number in weights.items():
        if device.type == "cuda" and BYTES * number > (free := torch.cuda.mem_get_info(device)[0]):
            raise InputError(
                f"tuning: full: training {number / 1e9:.2f} billion weights on {device} takes "
                f"{BYTES * number / 1e9:.1f} GB ({BYTES} bytes each: the weight in float32, its gradient, two moments "
                f"of AdamW) beside the dense model, which leaves {free / 1e9:.1f} GB; use lora, a smaller budget, or "
                "device_map over more GPUs"
            )


def _learn(
    model: Any, calibration: Calibration, tuning: Tuning, steps: int, seed: int, progress: Progress
) -> tuple[list[dict[str, Any]], int]:
    """Train with AdamW: the rate rises linearly and falls as a cosine, and each pass has a new order of batches.

    The model stays in evaluation mode, without dropout, so that the result depends only on the order from the seed.
    """
    batches = list(calibration.batches())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=tuning.rate, weight_decay=WEIGHT_DECAY)
    order = _order(len(batches), seed)

    @cache
    def teacher(number: int) -> Outputs:
        with torch.no_grad():
            return outputs(calibration.vlm.model, batches[number])

    curve: list[dict[str, Any]] = []
    samples, losses = 0, []
    for step in range(steps):
        number, rate = next(order), tuning.rate * schedule(step, steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.enable_grad():
            student = outputs(model, batches[number])
            target = student if tuning.loss == "answers" else teacher(number)
            loss = torch.stack([LOSSES[name](student, target) for name in tuning.loss.split("+")]).sum()
            loss.backward()
        nn.utils.clip_grad_norm_(weights, LARGEST)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"tuning: the loss is not finite after {step + 1} steps")
        samples += len(batches[number]["labels"])
        if (step + 1) * POINTS // steps != step * POINTS // steps or step + 1 == steps:
            curve.append({"step": step + 1, "loss": sum(losses) / len(losses), "rate": rate})
            progress(f"tuning: step {step + 1} of {steps}, loss {curve[-1]['loss']:.3f}")
            losses = []
    return curve, samples


@dataclass(frozen=True)
class Outputs:
    """What a model says where an answer token follows, (tokens, ...): log-probabilities, the tokens, hidden states."""

    logs: Tensor
    answers: Tensor
    hidden: Tensor


def outputs(model: Any, batch: Mapping[str, Any]) -> Outputs:
    """The model's outputs for a batch; hidden states are those that the output embedding reads."""
    read: list[Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        logits, answers = answer_logits(model, batch)
    finally:
        hook.remove()
    states = read[0][:, :-1]
    is_answer = batch["labels"][:, -states.shape[1] :].to(states.device) != -100
    return Outputs(logits.log_softmax(-1), answers, states[is_answer].float())


def _answers(student: Outputs, _: Outputs) -> Tensor:
    return functional.nll_loss(student.logs, student.answers)


def _kl(student: Outputs, teacher: Outputs) -> Tensor:
    return functional.kl_div(student.logs, teacher.logs, reduction="batchmean", log_target=True)


def _hidden(student: Outputs, teacher: Outputs) -> Tensor:
    """The squared error over the teacher's mean square, so that its weight depends on no model's scale."""
    return functional.mse_loss(student.hidden, teacher.hidden) / teacher.hidden.square().mean()


LOSSES: dict[str, Callable[[Outputs, Outputs], Tensor]] = {"answers": _answers, "kl": _kl, "hidden": _hidden}


def schedule(step: int, steps: int) -> float:
    """The learning rate at this step (from 0), as a share of the maximum: a linear rise, then half a cosine."""
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
    """Float32 weights inside; afterwards each weight's former dtype, and frozen.

    Half precision would round small steps away. Yields the first weight's dtype.
    """
    dtypes = {id(weight): weight.dtype for weight in model.parameters()}
    first_dtype = next(iter(dtypes.values()))
    for weight in model.parameters():
        weight.data = weight.data.float()
    yield first_dtype
    for weight in model.parameters():
        weight.data = weight.data.to(dtypes.get(id(weight), first_dtype))
    model.requires_grad_(False)


def adapters(vlm: VLM, rank: int) -> Any:
    """Put LoRA adapters of this rank (scale 2) on every Linear of the blocks, in place; everything else is frozen.

    Returns peft's wrapper, whose `merge_and_unload` adds the adapters to the weights. Source: Hu et al. 2022, LoRA.
    """
    import peft

    prefixes = tuple(f"{block.path}." for block in vlm.blocks)
    linears = [
        path
        for path, module in vlm.model.named_modules()
        if isinstance(module, nn.Linear) and path.startswith(prefixes)
    ]
    model: Any = vlm.model
    return peft.LoraModel(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linears), "default")
