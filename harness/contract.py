"""What every method has to keep to, tried on a tiny model: `infoprune check-method FILE|NAME`, and the contract tests.

    findings(*load("my_method.py"), tiny(folder))  # [] or [Finding("scores", "vision.0 heads: 3 scores for ...")]

A method is code of its author's choosing and is run here; what it raises is a finding.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import random
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness import budget, families, registry, surgery
from harness.calibration import Calibration
from harness.state import State
from harness.text import SHOWN, some
from harness.types import (
    SCOPES,
    UNIT_KINDS,
    VLM,
    Additive,
    Budget,
    InputError,
    Kind,
    Options,
    Ordinal,
    Ranking,
    Sample,
    Score,
)

VISION = {"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2}
TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
CHECKS = ("signature", "rank", "scores", "model", "seed", "budgets")
ROLES = ("studied", "reference")
REGIMES = ("training-free", "repaired", "trained")
WANTED = "def rank(vlm, calibration, *, seed)"


@dataclass(frozen=True)
class Finding:
    """Where a method breaks the contract (one of CHECKS), and how."""

    check: str
    text: str


def load(name: str) -> tuple[str, ModuleType]:
    """The name and module of a registered method, or of a method in a file.

    Raises InputError for an unknown name and for a file that is missing or cannot be imported.
    """
    path = Path(name)
    if path.suffix != ".py" and not path.exists():
        with _usable(name):
            return name, registry.module(name)
    if not path.is_file():
        raise InputError(f"method {name}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.suffix != ".py":
        raise InputError(f"method {name}: not a Python file (.py)")
    with _usable(name):
        return path.stem, registry.module_of_file(path)


@contextlib.contextmanager
def _usable(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"method {name}: cannot be imported: {_said(error)}") from error


def tiny(folder: Path) -> VLM:
    """An untrained model in the real classes, two layers a tower, written into an empty folder."""
    from harness.reference.model import build

    return families.load(build(folder, vision=VISION, text=TEXT), name="tiny")


def samples() -> list[Sample]:
    """Six questions about images of noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, 64, 64, 3), generator=generator, dtype=torch.uint8)
    questions = ["How many stars?", "What colour is the large circle?"] * 3
    return [Sample(Image.fromarray(p.numpy()), q, "two") for p, q in zip(pixels, questions, strict=True)]


def findings(name: str, module: ModuleType, vlm: VLM) -> list[Finding]:
    """Every breach of the contract: none for a sound method. The model is left as found, whatever the method does."""
    if wrong := signature(module):
        return [Finding("signature", text) for text in wrong]
    method = registry.described(name, module)
    found: list[Finding] = []
    inputs = next(Calibration(vlm, samples(), batch_size=4).batches())
    extents = families.family(vlm.family).extents(vlm.model, inputs)
    rankings = []
    for disturbed in (False, True):
        state = State(vlm.model)
        try:
            if disturbed:  # a model that learns: is that put back?
                vlm.model.requires_grad_(True)
                list(vlm.model.modules())[-1].training = True
            before = State(vlm.model)
            with _generators(99 if disturbed else 7) as kept:
                calibration = Calibration(vlm, samples(), batch_size=4)
                ranking = method.rank(vlm, calibration, seed=0, budget=Budget("all", 0.5, extents=extents))
                if not found:  # the second time, what is not put back reads differently
                    found = [Finding("model", text) for text in before.changes()]
                if not kept():
                    found.append(Finding("seed", f"draws from torch's global generator; {_OWN}"))
        except Exception as error:
            return [*_once(found), Finding("rank", f"raised {_said(error, module)}")]
        finally:
            state.restore()
        if wrong := scores(method, vlm, ranking):
            return [*_once(found), *(Finding("scores", text) for text in wrong)]
        rankings.append(ranking)
    found += [Finding("seed", text) for text in differences(*rankings)]
    found += [Finding("budgets", text) for text in unsolved(method, vlm, rankings[0], calibration, inputs)]
    return _once(found)


def _once(found: Sequence[Finding]) -> list[Finding]:
    return list(dict.fromkeys(found))


# --- what a module says -----------------------------------------------------------------------------------


def signature(module: ModuleType) -> list[str]:
    """What is wrong with the functions and constants of a method's module."""
    if not inspect.isfunction(rank := getattr(module, "rank", None)):
        return [f"there is no function `rank`; write `{WANTED}`"]
    wrong = list(_parameters(rank))
    for constant, allowed in (("UNITS", UNIT_KINDS), ("ROLE", ROLES), ("REGIME", REGIMES)):
        given = getattr(module, constant, allowed[0])
        if given not in allowed:
            wrong.append(f"{constant} = {given!r}; choose from: {', '.join(allowed)}")
    try:
        hints = typing.get_type_hints(rank)
    except Exception as error:  # say, a name that only type checkers import
        return [*wrong, f"an annotation of `rank` cannot be read: {_said(error)}"]
    if wrong:
        return wrong
    method = registry.described(module.__name__, module)
    for option, default in method.options.items():
        if option not in hints:
            wrong.append(f"option {option!r} has no type; write `{option}: {type(default).__name__} = {default!r}`")
            continue
        try:
            method.check({option: default}, "default of ")
            json.dumps(default, allow_nan=False)
        except (InputError, TypeError, ValueError) as error:
            wrong.append(_said(error))
    if method.repairs:
        own = inspect.signature(module.repair).parameters.values()
        asked = [p.name for p in own if p.kind is p.KEYWORD_ONLY and p.name not in method.options]
        if [p.name for p in own if p.kind is not p.KEYWORD_ONLY] != ["vlm", "calibration", "plan"] or asked:
            wrong.append("`repair` takes (vlm, calibration, plan, *, options that `rank` has too)")
    try:
        regime = method.regime({})
    except Exception as error:
        return [*wrong, f"`regime` raised {_said(error, module)}"]
    if regime not in REGIMES:
        wrong.append(f"`regime` returned {regime!r}; choose from: {', '.join(REGIMES)}")
    return wrong


def _parameters(rank: Any) -> Iterator[str]:
    parameters = list(inspect.signature(rank).parameters.values())
    if [p.name for p in parameters[:2]] != ["vlm", "calibration"]:
        yield f"`rank` has to begin with the parameters vlm and calibration: `{WANTED}`"
    if not any(p.name == "seed" and p.kind is p.KEYWORD_ONLY for p in parameters):
        yield f"`seed` is no keyword-only parameter of `rank`: `{WANTED}`"
    for p in parameters[2:]:
        if p.name == "seed":
            continue
        if p.kind is not p.KEYWORD_ONLY:
            yield f"`rank` takes {p}; options are keyword-only, each by its name (after the `*`)"
        elif p.name != "budget" and p.default is p.empty:
            yield f"option {p.name!r} has no default"


# --- what a ranking says ----------------------------------------------------------------------------------


def scores(method: registry.Method, vlm: VLM, ranking: Any) -> list[str]:
    """What is wrong with a ranking, in itself and for this model."""
    if not isinstance(ranking, Ranking) or not isinstance(ranking.scores, Mapping):
        return [f"`rank` returned {type(ranking).__name__}; it is to return Ranking({{(block name, kind): score}})"]
    units: Any = method.units
    selected = [] if method.name == "none" else vlm.select("all", units)
    wanted: dict[tuple[str, Kind], Any] = {(block.name, kind): block.units(kind) for block, kind in selected}
    wrong = []
    for key in ranking.scores:
        if key not in wanted:
            given = " ".join(map(str, key)) if isinstance(key, tuple) else key
            near = InputError.unknown("block and kind", given, [f"{block} {kind}" for block, kind in wanted])
            kinds = f" (UNITS = {units!r})" if units != "both" else ""
            wrong.append(f"{near}{kinds}")
    if missing := [f"{block} {kind}" for block, kind in wanted if (block, kind) not in ranking.scores]:
        hint = "" if units != "both" else "; a method of one kind says UNITS = 'heads' or 'ffn'"
        wrong.append(f"no score for {some(missing)}{hint}")
    for (name, kind), own in wanted.items():
        if (name, kind) in ranking.scores:
            fault = _fault(ranking.scores[name, kind], kind, own.count, own.count * own.token_macs)
            wrong += [f"{name} {kind}: {fault}"] if fault else []
    shapes = {type(score) for score in ranking.scores.values()} & {Additive, Ordinal, Options}
    if Ordinal in shapes and len(shapes) > 1:
        wrong.append("a ranking is Ordinal throughout or nowhere: an order has no currency to compare with")
    try:
        json.dumps(dict(ranking.log), allow_nan=False)
    except (TypeError, ValueError) as error:
        wrong.append(f"the log does not go into a record: {error}")
    return [*wrong[:SHOWN], *([f"{len(wrong) - SHOWN} more like these"] if len(wrong) > SHOWN else [])]


def _fault(score: Score | Any, kind: Kind, count: int, macs: int) -> str:
    """What is wrong with the score of one block's units, or nothing."""
    if isinstance(score, Options):
        if kind != "ffn":
            return "Options are for FFNs"
        if not score.points or (score.points[0].loss, score.points[0].make) != (0, None):
            return "the first of the Options is the dense one, of loss 0 and without `make`"
        first, *rest = score.points
        if first.token_macs != macs:
            return f"the dense option costs {first.token_macs} multiply-adds per token; it is {macs}"
        if not rest or not all(point.make and 0 < point.token_macs < macs for point in rest):
            return "an option after the dense one has to be cheaper than it and have a `make`"
        if len({point.label for point in score.points}) < len(score.points):
            return "two Options have the same label"
        numbers: Sequence[Any] = [point.loss for point in score.points]
    elif isinstance(score, Additive | Ordinal):
        numbers = score.damage if isinstance(score, Additive) else score.order
        if not isinstance(numbers, Sequence) or not all(isinstance(number, int | float) for number in numbers):
            return f"the scores are to be a tuple of plain numbers, not {_kind(numbers)} (a tensor has .tolist())"
        if len(numbers) != count:
            return f"{len(numbers)} scores for {count} units"
    else:
        return f"{type(score).__name__} is no Ordinal, Additive or Options"
    bad = [place for place, number in enumerate(numbers) if not np.isfinite(number)]
    return f"score {bad[0]} is {numbers[bad[0]]}, not a finite number" if bad else ""


def _kind(numbers: Any) -> str:
    if not isinstance(numbers, Sequence):
        return type(numbers).__name__
    inner = next(type(number).__name__ for number in numbers if not isinstance(number, int | float))
    return f"{type(numbers).__name__} of {inner}"


def figures(ranking: Ranking) -> dict[Any, Any]:
    """A ranking's figures, without the functions that make factors."""
    return {
        key: [(point.label, point.token_macs, point.loss) for point in score.points]
        if isinstance(score, Options)
        else score
        for key, score in ranking.scores.items()
    }


def differences(first: Ranking, again: Ranking) -> list[str]:
    """What two rankings of one seed and the same samples do not have in common."""
    own, other = figures(first), figures(again)
    if changed := [f"{block} {kind}" for block, kind in own if own[block, kind] != other[block, kind]]:
        return [f"the same seed and samples gave other scores the second time ({some(changed)}); {_OWN}"]
    return [] if first.log == again.log else ["the same seed and samples gave another log the second time"]


_OWN = "draw from a generator of your own: torch.Generator().manual_seed(seed)"


def unsolved(
    method: registry.Method, vlm: VLM, ranking: Ranking, calibration: Calibration, inputs: Mapping[str, Any]
) -> list[str]:
    """The budgets that no plan can be made for from this ranking, or whose plan leaves a model that does not run."""
    if not ranking.scores:  # dense
        return []
    units: Any = method.units
    # Of one kind the tiny model has few units, and ranks of few multiply-adds: its steps are coarse.
    keeps, tolerance = ((0.9, 0.5, 0.3125), budget.TOLERANCE) if units == "both" else ((0.75, 0.5), 0.03)
    extents = families.family(vlm.family).extents(vlm.model, inputs)
    wrong = []
    for scope in SCOPES:
        for keep in keeps:
            try:
                plan = budget.solve(vlm, ranking, Budget(scope, keep, units, extents), tolerance)
                pruned = surgery.apply(vlm, plan, ranking, method.repair(vlm, calibration, plan))
                with torch.no_grad():
                    if not pruned.model(**inputs).logits.isfinite().all():
                        wrong.append(f"{keep:g} of scope {scope}: the pruned model's logits are not finite")
            except InputError as error:
                wrong.append(str(error))
            except Exception as error:
                wrong.append(f"{keep:g} of scope {scope}: the plan cannot be carried out: {_said(error)}")
    return wrong[:SHOWN]


# --- the surroundings -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _generators(seed: int) -> Iterator[Any]:
    """The global generators in a state of their own inside, and as found afterwards; gives: is torch's as it was?"""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for draw in (torch.manual_seed, np.random.seed, random.seed):
        draw(seed)
    begun = torch.get_rng_state()
    try:
        yield lambda: torch.equal(torch.get_rng_state(), begun)
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _said(error: BaseException, module: ModuleType | None = None) -> str:
    """An error on one line, with the place in the method's own file."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if module is not None and frame.filename == module.__file__]
    place = f" (line {lines[-1]} of {Path(str(module.__file__)).name})" if lines and module else ""
    return f"{type(error).__name__}: {text}{place}"
