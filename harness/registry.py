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
import os
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from harness.bars import Bar
from harness.types import VLM, Budget, Dense, InputError, Plan, Ranking

if TYPE_CHECKING:
    from harness.calibration import Calibration

BUILT_IN = "baselines"
GROUP = "infoprune.methods"
COMMANDS = "infoprune.commands"
BENCHES = "infoprune.benches"
HERE = Path(__file__).parent
MODELS = {"mini-qwen2-vl": HERE / "reference" / "model"}
BOARDS = HERE / "boards"
GEOMETRIES = HERE / "geometries"
HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Method:
    """A contestant: its module with the function `rank`, and what that says of it."""

    name: str
    module: ModuleType
    title: str  # first line of the module's docstring
    role: str  # studied | reference
    units: str  # both | heads | ffn
    options: Mapping[str, Any]  # keyword options and their defaults
    notes: Mapping[str, str]  # what an option does and where it comes from: the text of its Annotated type

    @property
    def per_budget(self) -> bool:
        """Whether `rank` asks for the budget, so that a ranking serves one budget only."""
        return "budget" in inspect.signature(self.module.rank).parameters

    @property
    def repairs(self) -> bool:
        """Whether there is a function `repair`."""
        return hasattr(self.module, "repair")

    def regime(self, options: Mapping[str, Any]) -> str:
        """training-free, repaired or trained: the module's REGIME, or what its `regime` makes of all options."""
        if hasattr(self.module, "regime"):
            return self.module.regime({**self.options, **options})
        return getattr(self.module, "REGIME", "training-free")

    def rank(
        self, vlm: VLM, calibration: Calibration, *, seed: int, budget: Budget | None = None, **options: Any
    ) -> Ranking:
        """The module's ranking; it gets the budget if it asks for it."""
        asked = {"budget": budget} if self.per_budget else {}
        return self.module.rank(vlm, calibration, seed=seed, **asked, **options)

    def repair(self, vlm: VLM, calibration: Calibration, plan: Plan, **options: Any) -> Mapping[str, Dense]:
        """New weights and biases of Linears of the cut model, by module path; none without a function `repair`.

        It gets the dense model, and those of the method's options that it names.
        """
        if not self.repairs:
            return {}
        named = inspect.signature(self.module.repair).parameters
        given = {key: value for key, value in {**self.options, **options}.items() if key in named}
        return self.module.repair(vlm, calibration, plan, **given)

    def check(self, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The options, validated against the signature; those equal to their default are dropped.

        Raises InputError for an unknown option, a value of the wrong type, NaN or infinity.
        """
        hints = typing.get_type_hints(self.module.rank)
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
            try:
                tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError) as error:
                raise InputError(f"{file}: not Python that can be read: {error}") from error
            if any(isinstance(node, ast.FunctionDef) and node.name == "rank" for node in tree.body):
                found[module.name] = f"{BUILT_IN}.{module.name}"
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point.value)
    return found


def methods() -> list[str]:
    """All method names, none imported."""
    return sorted(_modules())


def module_path(name: str) -> str:
    """The path of a method's module, which is not imported. Raises InputError for an unknown name."""
    if name.endswith(".py"):
        raise InputError(
            f"method {name!r}: a board takes names; put the file into {BUILT_IN}/, or a package with an entry point, "
            f"and name it {Path(name).stem!r}"
        )
    if name not in _modules():
        raise InputError.unknown("method", name, _modules())
    return _modules()[name].partition(":")[0]


@functools.cache
def method(name: str) -> Method:
    """Import one method. Raises InputError for an unknown name; an ImportError inside the method is passed on."""
    return described(name, module(name))


def module(name: str) -> ModuleType:
    """The module of a method, imported; raises as `method` does."""
    return importlib.import_module(module_path(name))


def module_of_file(path: Path) -> ModuleType:
    """A method in a file that no package holds, imported under the file's name. What it raises is passed on."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where dataclasses and annotations look for it
    try:
        spec.loader.exec_module(made)
    finally:
        del sys.modules[spec.name]
    return made


def described(name: str, module: ModuleType) -> Method:
    """What a module with a function `rank` says of the method that it is."""
    parameters = [p for p in inspect.signature(module.rank).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("seed", "budget")}
    hints = typing.get_type_hints(module.rank, include_extras=True)
    return Method(
        name=name,
        module=module,
        title=(module.__doc__ or name).strip().splitlines()[0].rstrip("."),
        role=getattr(module, "ROLE", "reference"),
        units=getattr(module, "UNITS", "both"),
        options=options,
        notes={key: " ".join(map(str, getattr(hints.get(key), "__metadata__", ()))) for key in options},
    )


def commands() -> dict[str, Callable[..., Any]]:
    """The commands that other packages add, contestants' among them: entry points of the group `infoprune.commands`.

    Each is a function with typer's annotations or a typer app, loaded here; keep their modules light.
    """
    return {point.name: point.load() for point in sorted(entry_points(group=COMMANDS), key=lambda point: point.name)}


def benches() -> dict[str, Callable[..., list[Bar]]]:
    """What other packages add to `infoprune bench`, contestants among them: entry points of the group
    `infoprune.benches`, each a function `bars(quick, device, progress)`."""
    return {point.name: point.load() for point in sorted(entry_points(group=BENCHES), key=lambda point: point.name)}


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


def geometries() -> list[str]:
    """The shipped models of published sizes without their weights."""
    return sorted(path.parent.name for path in GEOMETRIES.glob("*/config.json"))


def model(name: str) -> str:
    """Where a model is: the folder of a shipped name, or the name itself (a folder or a hub id owner/name).

    Raises InputError for what can be neither.
    """
    if name in MODELS:
        return str(MODELS[name])
    if name in geometries():
        return str(GEOMETRIES / name)
    if os.path.isdir(name):  # False for what can be no path at all
        return name
    # What begins with a folder that is there is meant as a path, not as a hub id.
    if HUB_ID.fullmatch(name) and not os.path.isdir(os.path.dirname(name)):
        return name
    if "/" in name:
        raise InputError(f"model {name}: no such folder")
    raise InputError.unknown("model", name, [*MODELS, *geometries(), "a checkpoint folder", "a hub id owner/name"])


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
