"""The contract of a choice of visual tokens, checked on a tiny model beside that of the method.

faults(ranking.tokens)    # ["the choice of tokens does not take the option 'seed'"]
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from harness import families
from harness.families._choices import source
from harness.method_files import FAILURES
from harness.metrics import flops
from harness.pruning import surgery, tokens
from harness.statistics.calibration import Calibration
from harness.trials.context import Context
from harness.types import VLM, Budget, InputError, Questions, Ranking, ReferenceInput, Sample, Scope, TokenRule, Trial

SEES = ("attention", "grids")  # what a choice gets if it names it
SIGNATURE = "def keep_tokens(states, count)"
EQUAL = 1e-3  # of logits, together and alone


def faults(rule: Any) -> list[str]:
    """The faults of a rule that show without a model, one line each."""
    if not isinstance(rule, TokenRule):
        return [f"`rank` gave {type(rule).__name__} as tokens; it must give TokenRule(keep_tokens)"]
    if not callable(rule.keep):
        return [f"keep of TokenRule is {type(rule.keep).__name__}; it must be a function: `{SIGNATURE}`"]
    wrong = list(_of_signature(rule))
    if not isinstance(rule.layer, int) or rule.layer < 0:
        wrong.append(f"layer of TokenRule is {rule.layer!r}; it must be a number of layers from 0 on")
    if rule.attention not in ("none", "text", "vision"):
        wrong.append(f"attention of TokenRule is {rule.attention!r}; choose from: none, text, vision")
    try:
        json.dumps(dict(rule.options), allow_nan=False)
        source(rule.keep)
    except (InputError, TypeError, ValueError) as error:
        wrong.append(" ".join(str(error).split()))
    return wrong


def _of_signature(rule: TokenRule) -> Iterator[str]:
    names = list(inspect.signature(rule.keep).parameters)
    if names[:2] != ["states", "count"]:
        yield f"the first parameters of the choice of tokens must be states and count: `{SIGNATURE}`"
    for name in names[2:]:
        if name not in SEES and name not in rule.options:
            yield f"the choice of tokens takes {name!r}, which is neither one of {', '.join(SEES)} nor an option"
    for name in rule.options:
        if name not in names:
            yield f"the choice of tokens does not take the option {name!r}"
    if ("attention" in names) != (rule.attention != "none"):
        yield "the choice of tokens takes `attention` exactly if attention of TokenRule is text or vision"


def unmet(vlm: VLM, ranking: Ranking, method: str, samples: list[Sample]) -> list[str]:
    """The budgets that a rule does not meet, and whether its answers depend on the batch; one line each.

    The tiny model has few layers, so a later cut is tried at its last one.
    """
    assert ranking.tokens is not None
    last = sum(block.component == "language" for block in vlm.blocks) - 1
    rule = replace(ranking.tokens, layer=min(ranking.tokens.layer, last))
    ranking = replace(ranking, tokens=rule)
    reference = ReferenceInput((64, 64))
    context = Context(reference)
    inputs = context.inputs(vlm)
    settings: tuple[Any, ...] = ({}, "all", "tokens", 1.0, 0, Questions(()), ())
    trial = Trial("check", vlm.name, method, *settings, reference_input=reference)
    extents = families.family(vlm.family).extents(vlm.model, inputs)
    wrong: list[str] = []
    scopes: tuple[Scope, ...] = ("language", "all")
    for scope in scopes:
        budget = Budget(scope, 1.0, "tokens", extents)
        # The tiny model has few visual tokens, so few budgets can be met.
        within = sorted(tokens.flops_by_share(vlm, rule, budget, inputs).values())
        for keep in {within[len(within) * part // 4] for part in (1, 2, 3)}:
            try:
                plan = tokens.solve(vlm, ranking, replace(budget, keep=keep), inputs, method)
                pruned = surgery.apply(vlm, plan, ranking)
                flops.check(plan.achieved, pruned, vlm, replace(trial, scope=scope), context)
                wrong += [f"{keep:g} of scope {scope}: {text}" for text in _in_batches(pruned, samples)]
            except InputError as error:
                wrong.append(str(error))
            except FAILURES as error:
                text = " ".join(str(error).split())
                wrong.append(f"{keep:g} of scope {scope}: the choice of tokens raised {type(error).__name__}: {text}")
    return wrong


@torch.no_grad()
def _in_batches(vlm: VLM, samples: list[Sample]) -> Iterator[str]:
    (together,) = Calibration(vlm, samples, len(samples)).batches()
    rows = [_last(vlm, together), *(_last(vlm, single) for single in Calibration(vlm, samples, 1).batches())]
    batch, alone = rows[0], torch.cat(rows[1:])
    if not batch.isfinite().all():
        yield "the pruned model's logits are not finite"
    elif float((batch - alone).abs().max()) > EQUAL * max(1.0, float(alone.abs().max())):
        yield "the logits of a question depend on the others in its batch"


def _last(vlm: VLM, batch: dict[str, Any]) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return vlm.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
