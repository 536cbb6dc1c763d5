"""The error for unusable input, and what a value that pydantic refuses should be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from harness.text import plain

# What must be, by pydantic's kind of error. The braces name values of the error's context.
_WANTED = {
    "bool": "true or false",
    "dataclass": "a mapping of keys",
    "dict": "a mapping of keys",
    "finite": "a finite number",
    "float": "a number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "greater than or equal to {ge:g}",
    "int": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "less than or equal to {le:g}",
    "list": "a list",
    "literal": "{expected}",
    "model": "a mapping of keys",
    "none": "null",
    "recursion": "a value that does not hold itself",
    "string_pattern": "letters, digits, '_', '.' and '-', at most 80, a letter or digit first",
    "string": "text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple": "a list",
}


class InputError(Exception):
    """Unusable input. The message is one line: file and key, what is wrong, what would be right. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))

    @classmethod
    def unknown(cls, kind: str, name: object, choices: Iterable[str], where: str = "") -> InputError:
        """The error for a name that is not among the choices. It lists them and suggests a close match."""
        known = sorted(choices)
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"{where}unknown {kind} {str(name)!r}; {hint}choose from: {', '.join(known)}")


def wanted(faults: Iterable[Mapping[str, Any]]) -> str:
    """What a value must be, in plain words, by pydantic's errors on it: one, or one for each type that it may have."""
    words = []
    for fault in faults:
        kind = fault["type"]  # such as float_type, float_parsing, too_short
        known = max((key for key in _WANTED if kind == key or kind.startswith(f"{key}_")), key=len, default=None)
        if known is None:
            return fault["msg"]
        words.append(_WANTED[known].format_map(fault.get("ctx", {})))
    return f"must be {' or '.join(dict.fromkeys(words))}"
