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


def kinds_order(units: str) -> tuple[Any, ...]:
    """Sort key of sets of kinds in tables: `both` first."""
    return units != BOTH, [KINDS.index(kind) for kind in kinds(units)]


def in_words(units: str) -> str:
    """A set of kinds for people: `heads and FFN`, `layers only`."""
    words = [WORDS[kind] for kind in kinds(units)]
    return f"{words[0]} only" if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
