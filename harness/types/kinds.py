"""Kinds of removable units, and sets of kinds as text.

    unit_kinds(["layers", "ffn"])  # "ffn+layers"
    kinds("both")                  # ("heads", "ffn")

A set of kinds is one text, so that it is part of a trial's id and a column of tables: the kinds in the order of KINDS,
joined by "+". Heads and FFN channels together are called `both`, as in the first records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from harness.types.errors import InputError

Kind = Literal["heads", "ffn", "layers", "tokens"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WIDTHS: tuple[Kind, ...] = ("heads", "ffn")  # the kinds whose cut makes a block narrower
BOTH = "both"
WORDS: Mapping[str, str] = {"heads": "heads", "ffn": "FFN", "layers": "layers", "tokens": "tokens"}


def unit_kinds(value: Any) -> str:
    """The text of a set of kinds, given as `both`, a kind, several joined by "+", or a list of these in any order.

    Raises ValueError for an unknown kind, a kind that is named twice, and an empty list.
    """
    given = value if isinstance(value, list | tuple) else str(value).split("+")
    named: list[str] = []
    for name in given:
        if name not in (BOTH, *KINDS):
            raise ValueError(str(InputError.unknown("kind of units", name, (BOTH, *KINDS))))
        named += WIDTHS if name == BOTH else [name]
    if not named:
        raise ValueError(f"no kind is named; name one or more of: {', '.join((BOTH, *KINDS))}")
    if twice := [kind for kind in named if named.count(kind) > 1]:
        raise ValueError(f"{twice[0]} is named twice; name it once")
    ordered = tuple(kind for kind in KINDS if kind in named)
    return BOTH if ordered == WIDTHS else "+".join(ordered)


UnitKinds = Annotated[str, BeforeValidator(unit_kinds)]  # the text of `unit_kinds`


def kinds(units: str) -> tuple[Kind, ...]:
    """The kinds of a text that `unit_kinds` gives, in the order of KINDS."""
    return WIDTHS if units == BOTH else tuple(kind for kind in KINDS if kind in units.split("+"))


def check_shares(shares: Mapping[str, float], units: str, where: str = "") -> None:
    """Raise InputError if this does not say which share of a saving each of these kinds gives.

    Heads and FFN together may have none: they give what the others leave, and the solver chooses between them.
    """
    asked = kinds(units)
    for kind in shares:
        if kind not in KINDS:
            raise InputError.unknown("kind of units", kind, KINDS, f"{where}shares: ")
        if kind not in asked:
            raise InputError(f"{where}shares: {kind} is not cut; units: {units} cuts {', '.join(asked)}")
    missing = [kind for kind in asked if kind not in shares]
    rest = bool(shares) and missing == [kind for kind in asked if kind in WIDTHS]
    if missing and not rest:
        raise InputError(
            f"{where}shares: {missing[0]} is cut, but has no share; give each of {', '.join(asked)} one, 0 too"
        )
    if len(asked) < 2:
        raise InputError(f"{where}shares: units: {units} is one kind, which saves all; remove this key")
    if wrong := [kind for kind, share in shares.items() if not 0 <= share <= 1]:
        raise InputError(f"{where}shares: {wrong[0]}: {shares[wrong[0]]} is not in [0, 1]")
    total = sum(shares.values())
    if total > 1 + 1e-6 if missing else abs(total - 1) > 1e-6:
        most = "to at most 1, and what is missing is that of heads and FFN" if missing else "to 1"
        raise InputError(f"{where}shares: they sum to {total:g}; they must sum {most}")


def kinds_order(units: str) -> tuple[Any, ...]:
    """Sort key of sets of kinds in tables: `both` first."""
    return units != BOTH, [KINDS.index(kind) for kind in kinds(units)]


def in_words(units: str) -> str:
    """A set of kinds for people: `heads and FFN`, `layers only`."""
    words = [WORDS[kind] for kind in kinds(units)]
    return f"{words[0]} only" if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
