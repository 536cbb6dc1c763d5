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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness import families, registry
from harness.checks import token_rules
from harness.checks.model_state import State
from harness.checks.pruned_models import factored, narrowed
from harness.metrics import flops
from harness.pruning import solver, surgery
from harness.statistics.calibration import Calibration
from harness.text import SHOWN, some
from harness.trials.context import Context
from harness.types import (
    BOTH,
    KINDS,
    SCOPES,
    VLM,
    WIDTHS,
    Additive,
    Budget,
    Component,
    Extent,
    Global,
    InputError,
    Kind,
    Options,
    Ordinal,
    Questions,
    Ranking,
    ReferenceInput,
    Sample,
    Scope,
    Score,
    Trial,
    Units,
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
ROLES = ("studied", "reference")
OWN_REGIMES = ("none", "bias", "refit", "trained")
SIGNATURE = "def rank(vlm, calibration, *, seed)"
OWN_GENERATOR = "use a generator of its own instead: torch.Generator().manual_seed(seed)"


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
        return file.stem, registry.module_of_file(file, name)
    try:
        return name, registry.module(name)
    except InputError:
        raise
    except Exception as error:
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
    if wrong := signature(name, module):
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
        except Exception as error:
            return [*_once(breaches), Breach("rank", f"raised {_one_line(error, module)}")]
        finally:
            state.restore()
        if wrong := scores(method, vlm, ranking):
            return [*_once(breaches), *(Breach("scores", text) for text in wrong)]
        rankings.append(ranking)
    breaches += [Breach("seed", text) for text in differences(*rankings)]
    breaches += [Breach("budgets", text) for text in unsolved(method, vlm, rankings[0])]
    if not breaches:  # a pruned model would show the same faults in other words
        state = State(vlm.model)  # a pruned model shares weights with it
        try:
            breaches = [Breach("pruned", text) for text in pruned_again(method, vlm, extents)]
        finally:
            state.restore()
    return _once(breaches)


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
    except Exception as error:  # for example, a name that only type checkers import
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
    except Exception as error:
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


# --- the ranking ------------------------------------------------------------------------------------------


def scores(method: registry.Method, vlm: VLM, ranking: Any) -> list[str]:
    """The faults of a ranking for this model, one line each."""
    if not isinstance(ranking, Ranking) or not isinstance(ranking.scores, Mapping):
        return [f"`rank` returned {type(ranking).__name__}; it must return Ranking({{(block name, kind): score}})"]
    units = method.units
    expected: dict[tuple[str, Kind], Any] = {
        (block.name, kind): block.units(kind) for block, kind in method.ranked(vlm)
    }
    faults = []
    for key in ranking.scores:
        if key not in expected:
            faults.append(_unexpected(key, expected, units))
    if missing := [f"{block} {kind}" for block, kind in expected if (block, kind) not in ranking.scores]:
        hint = "" if units != BOTH else "; a method that ranks only one kind sets UNITS = 'heads' or 'ffn'"
        faults.append(f"no score for {some(missing)}{hint}")
    for (name, kind), block_units in expected.items():
        if (name, kind) in ranking.scores:
            fault = _fault(ranking.scores[name, kind], block_units)
            faults += [f"{name} {kind}: {fault}"] if fault else []
    if "tokens" in kinds(units) and method.name != "none":
        faults += token_rules.faults(ranking.tokens)
    elif ranking.tokens is not None:
        faults.append("a method that chooses visual tokens sets UNITS = 'tokens'")
    for layers in (False, True):  # layers may have scores of another shape than the widths of blocks
        alike = [score for (_, kind), score in ranking.scores.items() if (kind == "layers") == layers]
        shapes = {type(score) for score in alike} & {Additive, Ordinal, Global, Options}
        if shapes & {Ordinal, Global} and len(shapes) > 1:
            faults.append(
                "a ranking must be Ordinal or Global everywhere or nowhere: orders and damages cannot be compared"
            )
        if len({score.pool for score in alike if isinstance(score, Global)}) > 1:
            faults.append("the Global scores of a ranking must have the same pool")
    try:
        json.dumps(dict(ranking.log), allow_nan=False)
    except (TypeError, ValueError) as error:
        faults.append(f"the log cannot be stored in a record: {error}")
    return [*faults[:SHOWN], *([f"{len(faults) - SHOWN} more like these"] if len(faults) > SHOWN else [])]


def _unexpected(key: Any, expected: Iterable[tuple[str, Kind]], units: str) -> str:
    """The fault of a key of the scores that is not the block and kind of any unit to rank."""
    block, kind = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
    known = list(expected)
    if any(block == name for name, _ in known) and kind not in KINDS:
        return str(InputError.unknown("kind", kind, KINDS, f"{block}: "))
    shown = " ".join(map(str, key)) if isinstance(key, tuple) else key
    unknown = InputError.unknown("block and kind", shown, [f"{name} {kind}" for name, kind in known])
    return f"{unknown} (UNITS = {units!r})" if units != BOTH else str(unknown)


def _fault(score: Score | Any, units: Units) -> str:
    """The fault in the score of one block's units; "" if there is none."""
    count, macs = units.count, units.count * units.token_macs
    if isinstance(score, Options):
        if not score.points or (score.points[0].loss, score.points[0].make) != (0, None):
            return "the first of the Options must be the dense one, with loss 0 and without `make`"
        first, *rest = score.points
        if first.token_macs != macs:
            return f"the dense option costs {first.token_macs} multiply-adds per token; it must cost {macs}"
        if units.kind == "layers":
            if [point.token_macs for point in rest] != [0]:
                return "the Options of a layer are two: the dense one, and one of cost 0, which removes it"
        elif not rest or not all(point.make and 0 < point.token_macs < macs for point in rest):
            return "an option after the dense one must be cheaper than it and have a `make`"
        if len({point.label for point in score.points}) < len(score.points):
            return "two Options have the same label"
        numbers: Sequence[Any] = [point.loss for point in score.points]
    elif isinstance(score, Additive | Ordinal | Global):
        numbers = score.damage if isinstance(score, Additive) else score.order
        if not isinstance(numbers, Sequence) or not all(isinstance(number, int | float) for number in numbers):
            return f"the scores must be a tuple of plain numbers, not {_kind(numbers)} (use .tolist() for a tensor)"
        if len(numbers) != count:
            return f"{len(numbers)} scores for {count} units"
    else:
        return f"{type(score).__name__} is not Ordinal, Global, Additive or Options"
    bad = [place for place, number in enumerate(numbers) if not np.isfinite(number)]
    return f"score {bad[0]} is {numbers[bad[0]]}, not a finite number" if bad else ""


def _kind(numbers: Any) -> str:
    if not isinstance(numbers, Sequence):
        return type(numbers).__name__
    inner = next(type(number).__name__ for number in numbers if not isinstance(number, int | float))
    return f"{type(numbers).__name__} of {inner}"


def differences(first: Ranking, again: Ranking) -> list[str]:
    """The differences between two rankings with the same seed and samples."""
    scores_first, scores_again = first.numbers(), again.numbers()
    if changed := [
        f"{block} {kind}" for block, kind in scores_first if scores_first[block, kind] != scores_again[block, kind]
    ]:
        return [f"the same seed and samples gave other scores in a second run ({some(changed)}); {OWN_GENERATOR}"]
    if first.tokens != again.tokens:
        return ["the same seed and samples gave another TokenRule in a second run"]
    return [] if first.log == again.log else ["the same seed and samples gave another log in a second run"]


def unsolved(method: registry.Method, vlm: VLM, ranking: Ranking, once: bool = False) -> list[str]:
    """The budgets for which this ranking gives no plan, or a plan whose model does not run or costs more than stated.

    One line each. once: only one budget, which coarse steps may miss.
    """
    if not ranking.scores and ranking.tokens is None:  # dense
        return []

    def tried(units: str, fine: bool) -> list[str]:
        # Without both heads and channels, the tiny model has few units: its steps are coarse.
        budgets = ((0.75,), 1.0) if once else ((0.9, 0.5, 0.3125), solver.TOLERANCE) if fine else ((0.75, 0.5), 0.03)
        return _unsolved(method, vlm, ranking, units, *budgets, scopes=("all",) if once else SCOPES)

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
            except Exception as error:
                faults.append(f"{keep:g} of scope {scope}: the plan cannot be applied: {_one_line(error)}")
    return faults


def pruned_again(method: registry.Method, vlm: VLM, extents: Mapping[Component, Extent]) -> list[str]:
    """The faults of the method on a model that was pruned before, one line each: it must score and cut blocks of any
    widths, leave factors of the kind that it does not score alone, and refuse to score factors.
    """
    faults = []
    kinds: tuple[Kind, ...] = ("heads", "ffn")
    cases = [("of uneven widths", narrowed(vlm)), *((f"with factored {kind}", factored(vlm, [kind])) for kind in kinds)]
    for what, model in cases:
        refused = any(block.units(kind).factored for block, kind in method.ranked(model))
        try:
            calibration = Calibration(model, samples(), batch_size=4)
            ranking = method.rank(model, calibration, seed=0, budget=Budget("all", 0.75, extents=extents))
        except Exception as error:
            if not (refused and isinstance(error, InputError)):
                faults.append(f"on a model {what}: raised {_one_line(error, method.module)}")
            continue
        wrong = scores(method, model, ranking) or unsolved(method, model, ranking, once=True)
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
