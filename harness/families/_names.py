"""The model types with a family file, and the module of each."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from harness.types import InputError


def names() -> list[str]:
    """The supported model types."""
    return sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if not module.name.startswith("_")
    )


def family(model_type: str) -> Any:
    """The family module of a model type; raises InputError listing the supported types."""
    if model_type not in names():
        raise InputError.unknown("model type", model_type, names())
    return importlib.import_module(f"harness.families.{model_type}")
