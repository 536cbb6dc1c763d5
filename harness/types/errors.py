"""The error for unusable input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Unusable input. The message is one line: file and key, what is wrong, what would be right. Exit code 2."""

    @classmethod
    def unknown(cls, kind: str, name: object, choices: Iterable[str], where: str = "") -> InputError:
        """The error for a name that is not among the choices. It lists them and suggests a close match."""
        known = sorted(choices)
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"{where}unknown {kind} {str(name)!r}; {hint}choose from: {', '.join(known)}")
