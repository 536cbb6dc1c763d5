"""The methods of a trial: its own, and the one that chooses visual tokens for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import registry
from harness.types import Trial


def methods_of(trial: Trial) -> list[tuple[registry.Method, Mapping[str, Any]]]:
    """The trial's method with its options, and who chooses visual tokens for it, if another does."""
    own = (registry.method(trial.lookup), trial.options)
    return [own, *([(registry.method(trial.tokens.method), trial.tokens.options)] if trial.tokens else [])]


def per_budget(trial: Trial) -> bool:
    """Whether each budget has a ranking of its own."""
    return trial.sequential or any(method.per_budget for method, _ in methods_of(trial))
