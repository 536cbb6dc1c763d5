"""Names to things: methods, models, metrics and boards; what is built in, and what other packages add.

    registry.method("infoprune").rank(vlm, calibration, seed=0)

A method is a module with a function `rank`: a file of the built-in folder, or an entry point of another package in the
group `infoprune.methods`. Names are listed without importing any method; only the one asked for is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from harness.types import InputError, Ranking

BUILT_IN = "baselines"
GROUP = "infoprune.methods"
HERE = Path(__file__).parent
MODELS = {"mini-qwen2-vl": HERE / "reference" / "model"}
BOARDS = HERE / "boards"


@dataclass(frozen=True)
class Method:
    """A contestant: its ranking function, and what its module says of it."""

    name: str
    rank: Callable[..., Ranking]
    title: str  # first line of the module's docstring
    regime: str  # training-free | repaired | trained
    role: str  # studied | reference
    units: str  # both | heads | ffn
    options: Mapping[str, Any]  # keyword options and their defaults

    def check(self, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The options, validated against the signature; those equal to their default are dropped.

        Raises InputError for an unknown option, a value of the wrong type, NaN or infinity.
        """
        hints = typing.get_type_hints(self.rank)
        checked = {}
        for key, value in options.items():
            if key not in self.options:
                raise InputError.unknown(f"option of method {self.name!r}", key, self.options, where)
            try:
                adapter = TypeAdapter(hints.get(key, Any), config=ConfigDict(allow_inf_nan=False))
                checked[key] = adapter.validate_python(value, strict=True)
            except ValidationError as error:
                raise InputError(
                    f"{where}option {key!r} of method {self.name!r}: {error.errors()[0]['msg']}"
                ) from error
        return {key: value for key, value in checked.items() if value != self.options[key]}


@functools.cache
def _modules() -> dict[str, str]:
    """Method name to module path."""
    spec = importlib.util.find_spec(BUILT_IN)
    found = {}
    for folder in spec.submodule_search_locations if spec and spec.submodule_search_locations else []:
        for module in pkgutil.iter_modules([folder]):
            path = Path(folder) / module.name
            file = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if any(isinstance(node, ast.FunctionDef) and node.name == "rank" for node in tree.body):
                found[module.name] = f"{BUILT_IN}.{module.name}"
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point.value)
    return found


def methods() -> list[str]:
    """All method names, none imported."""
    return sorted(_modules())


@functools.cache
def method(name: str) -> Method:
    """Import one method. Raises InputError for an unknown name; an ImportError inside the method is passed on."""
    if name not in _modules():
        raise InputError.unknown("method", name, _modules())
    module = importlib.import_module(_modules()[name].partition(":")[0])
    parameters = [p for p in inspect.signature(module.rank).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return Method(
        name=name,
        rank=module.rank,
        title=(module.__doc__ or name).strip().splitlines()[0].rstrip("."),
        regime=getattr(module, "REGIME", "training-free"),
        role=getattr(module, "ROLE", "reference"),
        units=getattr(module, "UNITS", "both"),
        options={p.name: p.default for p in parameters if p.default is not p.empty and p.name != "seed"},
    )


def metrics() -> list[str]:
    """The metric names."""
    spec = importlib.util.find_spec("harness.metrics")
    assert spec and spec.submodule_search_locations
    return sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))


def metric(name: str) -> Callable[..., dict[str, Any]]:
    """The `measure` function of a metric. Raises InputError for an unknown name."""
    if name not in metrics():
        raise InputError.unknown("metric", name, metrics())
    return importlib.import_module(f"harness.metrics.{name}").measure


def model(name: str) -> str:
    """Where a model is: the folder of a shipped name, or the name itself (a folder or a hub id owner/name).

    Raises InputError for what can be neither.
    """
    if name in MODELS:
        return str(MODELS[name])
    if Path(name).is_dir():
        return name
    # What begins with a folder that is there is meant as a path, not as a hub id.
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.is_dir():
        return name
    if "/" in name:
        raise InputError(f"model {name}: no such folder")
    raise InputError.unknown("model", name, [*MODELS, "a checkpoint folder", "a hub id owner/name"])


def boards() -> list[str]:
    """The shipped boards."""
    return sorted(path.stem for path in BOARDS.glob("*.yaml"))


def board(name: str) -> Path:
    """The file of a shipped board, or of a path ending in .yaml or .yml. Raises InputError if there is none."""
    if name in boards():
        return BOARDS / f"{name}.yaml"
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"board {name}: no such file")
        return path
    raise InputError.unknown("board", name, [*boards(), "a .yaml file"])
