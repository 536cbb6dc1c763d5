"""The contract of a method, checked on a tiny model: for `infoprune check-method FILE|NAME` and the contract tests.

    breaches(*load("my_method.py"), tiny(folder))  # [] or [Breach("scores", "vision.0 heads: 3 scores for ...")]

A method is its author's code and runs here; an exception that it raises becomes a finding.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import random
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness import families, method_files, registry
from harness.checks import token_rules
from harness.checks.model_state import State
from harness.checks.pruned_models import factored, narrowed
from harness.checks.ranking_rules import OWN_GENERATOR, differences, scores
from harness.metrics import flops
from harness.pruning import solver, surgery
from harness.statistics.calibration import Calibration
from harness.text import SHOWN
from harness.trials.context import Context
from harness.types import (
    BOTH,
    SCOPES,
    VLM,
    WIDTHS,
    Budget,
    Component,
    Extent,
    InputError,
    Options,
    Questions,
    Ranking,
    ReferenceInput,
    Sample,
    Scope,
    Trial,
    kinds,
    unit_kinds,
)

VISION = {"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2}
TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
CHECKS = ("signature", "rank", "scores", "model", "seed", "budgets", "pruned")
ROLES = ("studied", "reference", "floor")
OWN_REGIMES = ("none", "bias", "refit", "trained")
SIGNATURE = "def rank(vlm, calibration, *, seed)"


@dataclass(frozen=True)
class Breach:
    """A breach of the contract: the check that failed (one of CHECKS), and how."""

    check: str
    text: str


def load(name: str) -> tuple[str, ModuleType]:
    """The name and module of a registered method, or of a method in a file.

    Raises InputError for an unknown name, and for a file that is missing or cannot be imported.
    """
    if file := registry.method_file(name):
        return file.stem, method_files.load(file, name)
    try:
        return name, registry.module(name)
    except InputError:
        raise
    except method_files.FAILURES as error:
        raise InputError(f"method {name}: cannot be imported: {_one_line(error)}") from error


def tiny(folder: Path) -> VLM:
    """An untrained model of the real classes with two layers per tower, written into an empty folder."""
    from harness.reference.model import build

    return families.load(build(folder, vision=VISION, text=TEXT), name="tiny")


def samples() -> list[Sample]:
    """Six questions about images of random noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, 64, 64, 3), generator=generator, dtype=torch.uint8)
    questions = ["How many stars?", "What colour is the large circle?"] * 3
    return [Sample(Image.fromarray(p.numpy()), q, "two") for p, q in zip(pixels, questions, strict=True)]


def breaches(name: str, module: ModuleType, vlm: VLM) -> list[Breach]:
    """All breaches of the contract; [] for a correct method.

    The model is restored afterwards, whatever the method does.
    """
    if wrong := _tried(module, signature, name, module):
        return [Breach("signature", text) for text in wrong]
    method = registry.described(name, module)
    breaches: list[Breach] = []
    inputs = next(Calibration(vlm, samples(), batch_size=4).batches())
    extents = families.family(vlm.family).extents(vlm.model, inputs)
    rankings = []
    for disturbed in (False, True):
        state = State(vlm.model)
        try:
            if disturbed:  # a model in training mode, which the method must restore
                vlm.model.requires_grad_(True)
                list(vlm.model.modules())[-1].training = True
            before = State(vlm.model)
            with _generators(99 if disturbed else 7) as unused:
                calibration = Calibration(vlm, samples(), batch_size=4)
                ranking = method.rank(vlm, calibration, seed=0, budget=Budget("all", 0.5, extents=extents))
                if not breaches:  # the second run would report the same faults in other words
                    breaches = [Breach("model", text) for text in before.changes()]
                if not unused():
                    breaches.append(Breach("seed", f"draws from torch's global generator; {OWN_GENERATOR}"))
        except method_files.FAILURES as error:
            return [*_once(breaches), Breach("rank", f"raised {_one_line(error, module)}")]
        finally:
            state.restore()
        if wrong := _tried(module, scores, method, vlm, ranking):
            return [*_once(breaches), *(Breach("scores", text) for text in wrong)]
        rankings.append(ranking)
    breaches += [Breach("seed", text) for text in differences(*rankings)]
    breaches += [Breach("budgets", text) for text in _tried(module, unsolved, method, vlm, rankings[0])]
    if not breaches:  # a pruned model would show the same faults in other words
        state = State(vlm.model)  # a pruned model shares weights with it
        try:
            breaches = [Breach("pruned", text) for text in pruned_again(method, vlm, extents)]
        finally:
            state.restore()
    return _once(breaches)


def _tried(module: ModuleType, check: Callable[..., list[str]], *given: Any) -> list[str]:
    """What a check finds in what the module gave. An error there is a finding too."""
    try:
        return check(*given)
    except method_files.FAILURES as error:
        return [f"cannot be checked: {_one_line(error, module)}"]


def _once(breaches: Sequence[Breach]) -> list[Breach]:
    return list(dict.fromkeys(breaches))


# --- the module -------------------------------------------------------------------------------------------


def signature(name: str, module: ModuleType) -> list[str]:
    """The faults in the functions and constants of a method's module, one line each."""
    if not inspect.isfunction(rank := getattr(module, "rank", None)):
        return [f"no function `rank`; write `{SIGNATURE}`"]
    faults = list(_parameters(rank))
    try:
        unit_kinds(getattr(module, "UNITS", BOTH))
    except ValueError as error:
        faults.append(f"UNITS: {error}")
    for constant, allowed in (("ROLE", ROLES), ("REGIME", OWN_REGIMES)):
        value = getattr(module, constant, allowed[0])
        if value not in allowed:
            faults.append(f"{constant} = {value!r}; choose from: {', '.join(allowed)}")
    try:
        hints = typing.get_type_hints(rank)
    except method_files.FAILURES as error:  # for example, a name that only type checkers import
        return [*faults, f"an annotation of `rank` cannot be read: {_one_line(error)}"]
    if faults:
        return faults
    method = registry.described(name, module)
    for option, default in method.options.items():
        if option not in hints:
            faults.append(f"option {option!r} has no type; write `{option}: {type(default).__name__} = {default!r}`")
            continue
        try:
            method.check({option: default}, "default of ")
            json.dumps(default, allow_nan=False)
        except (InputError, TypeError, ValueError) as error:
            faults.append(_one_line(error))
    try:
        regime = method.regime({})
    except method_files.FAILURES as error:
        return [*faults, f"`regime` raised {_one_line(error, module)}"]
    if regime not in OWN_REGIMES:
        faults.append(f"`regime` returned {regime!r}; choose from: {', '.join(OWN_REGIMES)}")
    return faults


def _parameters(rank: Any) -> Iterator[str]:
    parameters = list(inspect.signature(rank).parameters.values())
    if [p.name for p in parameters[:2]] != ["vlm", "calibration"]:
        yield f"the first parameters of `rank` must be vlm and calibration: `{SIGNATURE}`"
    if not any(p.name == "seed" and p.kind is p.KEYWORD_ONLY for p in parameters):
        yield f"`rank` needs the keyword-only parameter `seed`: `{SIGNATURE}`"
    for p in parameters[2:]:
        if p.name == "seed":
            continue
        if p.kind is not p.KEYWORD_ONLY:
            yield f"`rank` takes {p}; every option must be keyword-only, with a name, after the `*`"
        elif p.name != "budget" and p.default is p.empty:
            yield f"option {p.name!r} has no default"


# --- its plans ------------------------------------------------------------------------------------------


def unsolved(method: registry.Method, vlm: VLM, ranking: Ranking, once: bool = False) -> list[str]:
    """The budgets for which this ranking gives no plan, or a plan whose model does not run or costs more than stated.

    One line each. once: only one budget, which coarse steps may miss.
    """
    if not ranking.scores and ranking.tokens is None:  # dense
        return []

    def tried(units: str, fine: bool) -> list[str]:
        if once:
            return _unsolved(method, vlm, ranking, units, (0.75,), 1.0, scopes=("all",))
        if fine:
            return _unsolved(method, vlm, ranking, units, (0.9, 0.5, 0.3125), solver.TOLERANCE, scopes=SCOPES)
        # Without both heads and channels, the tiny model has few units: its steps are coarse.
        return _unsolved(method, vlm, ranking, units, (0.75, 0.5), 0.03, scopes=SCOPES)

    faults = [] if ranking.tokens is None else token_rules.unmet(vlm, ranking, method.name, samples())
    ranked = [kind for kind in kinds(method.units) if kind != "tokens"]
    if ranked:
        faults += tried(unit_kinds(ranked), fine=set(WIDTHS) <= set(ranked))
    if "layers" in ranked and ranked != ["layers"]:
        faults += tried("layers", fine=False)
    return faults[:SHOWN]


def _unsolved(
    method: registry.Method,
    vlm: VLM,
    ranking: Ranking,
    units: str,
    keeps: Sequence[float],
    tolerance: float,
    scopes: Sequence[Scope],
) -> list[str]:
    reference = ReferenceInput((64, 64))
    context = Context(reference)
    inputs = context.inputs(vlm)
    extents = families.family(vlm.family).extents(vlm.model, inputs)
    trial = Trial(
        "check", vlm.name, method.name, {}, "all", units, 1.0, 0, Questions(()), (), reference_input=reference
    )
    faults = []
    for scope in scopes:
        for keep in keeps:
            try:
                budget = _of_what_can_go(vlm, ranking, Budget(scope, keep, units, extents))
                plan = solver.solve(vlm, ranking, budget, tolerance)
                pruned = surgery.apply(vlm, plan, ranking)
                stated = solver.flops_kept(vlm, plan, ranking, budget)
                flops.check(stated, pruned, vlm, replace(trial, scope=scope), context)
                with torch.no_grad():
                    if not pruned.model(**inputs).logits.isfinite().all():
                        faults.append(f"{keep:g} of scope {scope}: the pruned model's logits are not finite")
            except InputError as error:
                faults.append(str(error))
            except method_files.FAILURES as error:
                faults.append(f"{keep:g} of scope {scope}: the plan cannot be applied: {_one_line(error)}")
    return faults


def pruned_again(method: registry.Method, vlm: VLM, extents: Mapping[Component, Extent]) -> list[str]:
    """The faults of the method on a model that was pruned before, one line each: it must score and cut blocks of any
    widths, leave factors of the kind that it does not score alone, and refuse to score factors.
    """
    faults = []
    cases = [("of uneven widths", narrowed(vlm))]
    cases += [(f"with factored {kind}", factored(vlm, [kind])) for kind in WIDTHS]
    for what, model in cases:
        refused = any(block.units(kind).factored for block, kind in method.ranked(model))
        try:
            calibration = Calibration(model, samples(), batch_size=4)
            ranking = method.rank(model, calibration, seed=0, budget=Budget("all", 0.75, extents=extents))
        except method_files.FAILURES as error:
            if not (refused and isinstance(error, InputError)):
                faults.append(f"on a model {what}: raised {_one_line(error, method.module)}")
            continue
        wrong = _tried(method.module, scores, method, model, ranking)
        wrong = wrong or _tried(method.module, unsolved, method, model, ranking, True)
        faults += [f"on a model {what}: {text}" for text in wrong]
    return faults


def _of_what_can_go(vlm: VLM, ranking: Ranking, budget: Budget) -> Budget:
    """The budget as a share of what a method can cut: Options of heads leave the attention products as they are."""
    full = stays = 0
    for block, kind in vlm.counted(budget.scope, budget.units):
        units, extent = block.units(kind), budget.extents[block.component]
        full += units.count * units.macs(extent)
        if isinstance(ranking.scores.get((block.name, kind)), Options):
            stays += units.count * (units.macs(extent) - units.token_macs * extent.tokens)
    return replace(budget, keep=(stays + budget.keep * (full - stays)) / full)


# --- helpers ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _generators(seed: int) -> Iterator[Any]:
    """Seeded global generators inside; their former states afterwards.

    Yields a function that tells whether torch's generator is still unused.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for draw in (torch.manual_seed, np.random.seed, random.seed):
        draw(seed)
    seeded = torch.get_rng_state()
    try:
        yield lambda: torch.equal(torch.get_rng_state(), seeded)
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _one_line(error: BaseException, module: ModuleType | None = None) -> str:
    """An error on one line, with its place in the method's own file."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if module is not None and frame.filename == module.__file__]
    place = f" (line {lines[-1]} of {Path(str(module.__file__)).name})" if lines and module else ""
    return f"{type(error).__name__}: {text}{place}"
