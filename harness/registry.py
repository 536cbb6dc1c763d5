"""Names to things: methods, models, metrics and boards; what is built in, and what other packages add.

    registry.method("infoprune").rank(vlm, calibration, seed=0)

A method is a module with a function `rank`: a file of the built-in folder, an entry point of another package in the
group `infoprune.methods`, or any file, named by a path that ends in .py and seen from the current folder. Names are
listed without importing any method; only the one asked for is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import math
import os
import pkgutil
import re
import subprocess
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from harness import method_files
from harness.text import some
from harness.types import BOTH, DENSE, VLM, Block, Budget, Column, InputError, Kind, Ranking, Tuning, unit_kinds, wanted

if TYPE_CHECKING:
    from harness.bench.bar import Bar
    from harness.statistics.calibration import Calibration

BUILT_IN = "baselines"
GROUP, COMMANDS, BENCHES = "infoprune.methods", "infoprune.commands", "infoprune.benches"
HERE = Path(__file__).parent
MODELS = {"mini-qwen2-vl": HERE / "reference" / "model"}
# Models that `infoprune reference build` makes on this machine: the module whose `built()` says where one is.
BUILT = {"dinov2-smollm2": "harness.reference.pretrained.folder"}
BOARDS = HERE / "boards"
GEOMETRIES = HERE / "geometries"
T = TypeVar("T")
HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Method:
    """A contestant: its module with the function `rank`, and what that says of it."""

    name: str
    module: ModuleType
    title: str  # first line of the module's docstring
    role: str  # studied | reference | floor
    units: str  # the kinds that it ranks, see `types.unit_kinds`
    options: Mapping[str, Any]  # keyword options and their defaults
    notes: Mapping[str, str]  # what an option does and where it comes from: the text of its Annotated type

    @property
    def per_budget(self) -> bool:
        """Whether `rank` asks for the budget, so that a ranking serves one budget only."""
        return "budget" in inspect.signature(self.module.rank).parameters

    def regime(self, options: Mapping[str, Any]) -> str:
        """none, bias, refit or trained: the module's REGIME, or what its `regime` makes of all options."""
        if hasattr(self.module, "regime"):
            return self.module.regime({**self.options, **options})
        return getattr(self.module, "REGIME", "none")

    def steps(self, options: Mapping[str, Any]) -> int:
        """The method's own training as steps of a tuning; 0 unless its regime is `trained`.

        It takes the steps of its option `steps`, each of as many questions as its module's BATCH says.
        """
        if self.regime(options) != "trained":
            return 0
        steps, batch = {**self.options, **options}.get("steps", 0), Tuning.batch
        return math.ceil(steps * getattr(self.module, "BATCH", batch) / batch)

    def rank(
        self, vlm: VLM, calibration: Calibration, *, seed: int, budget: Budget | None = None, **options: Any
    ) -> Ranking:
        """The module's ranking; it gets the budget if it asks for it. Raises as `check_model` does.

        A method that exits raises RuntimeError instead: it would end a sweep without a word.
        """
        self.check_model(vlm)
        asked = {"budget": budget} if self.per_budget else {}
        try:
            return self.module.rank(vlm, calibration, seed=seed, **asked, **options)
        except SystemExit as error:
            raise RuntimeError(f"the method exits: {error}").with_traceback(error.__traceback__) from error

    def ranked(self, vlm: VLM) -> list[tuple[Block, Kind]]:
        """The (block, kind) pairs that the method scores; nothing, if it leaves the model dense."""
        units: Any = self.units
        return [] if self.name == DENSE else vlm.select("all", units)

    def check_model(self, vlm: VLM) -> None:
        """Raise InputError for a model with low-rank factors where the method would rank: no part of a factor is a
        head's or a channel's own, and factors of factors have no cost of their own.
        """
        factored = [f"{block.name} {kind}" for block, kind in self.ranked(vlm) if block.units(kind).factored]
        if factored:
            raise InputError(
                f"model {vlm.name}: low-rank factors stand in {some(factored)}, and what is factored cannot be pruned"
                f" again; give {self.name} the model from before it was factored"
            )

    def check(self, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The options, validated against the signature; those equal to their default are dropped.

        Raises InputError for an unknown option, a value of the wrong type, NaN or infinity, and for a type that no
        value can be checked against.
        """
        hints = typing.get_type_hints(self.module.rank)
        checked = {}
        for key, value in options.items():
            if key not in self.options:
                raise InputError.unknown(f"option of method {self.name!r}", key, self.options, where)
            try:
                adapter = TypeAdapter(hints.get(key, Any), config=ConfigDict(allow_inf_nan=False))
                checked[key] = adapter.validate_python(value, strict=True)
            except PydanticUserError as error:  # the type, and not the value, is of no use
                raise InputError(
                    f"{where}option {key!r} of method {self.name!r}: values of its type cannot be checked; "
                    "annotate it with a plain one, such as float, str or list[int]"
                ) from error
            except ValidationError as error:
                raise InputError(
                    f"{where}option {key!r} of method {self.name!r}: {wanted(error.errors())} (given: {value!r:.80})"
                ) from error
        return {key: value for key, value in checked.items() if value != self.options[key]}


@functools.cache
def _modules() -> dict[str, str]:
    """Method name to module path."""
    spec = importlib.util.find_spec(BUILT_IN)
    found = {}
    for folder in spec.submodule_search_locations if spec and spec.submodule_search_locations else []:
        for module in pkgutil.iter_modules([folder]):
            file = Path(folder, module.name, "__init__.py") if module.ispkg else Path(folder, f"{module.name}.py")
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


def every_method() -> dict[str, Method | str]:
    """Every registered method, imported; for one that cannot be, the reason. A run must ask for `method` instead."""
    return {name: _tried(lambda name=name: method(name)) for name in methods()}


def _tried(load: Callable[[], T]) -> T | str:
    """What is loaded, or why it cannot be, in one line."""
    try:
        return load()
    except method_files.FAILURES as error:
        return method_files.reason(error)


def method_file(name: str) -> Path | None:
    """The file of a method that is named by its path; None for any other name.

    Raises InputError for a path where there is no Python file.
    """
    if not name.endswith(".py") and (name in _modules() or not os.path.exists(name)):
        return None
    wrong = "a folder, not a Python file" if os.path.isdir(name) else "" if os.path.isfile(name) else "no such file"
    if not wrong and not name.endswith(".py"):
        wrong = "not a Python file (.py)"
    if wrong:
        raise InputError(f"method {name}: {wrong}")
    return Path(name)


def default_method() -> str:
    """The method that prunes where none is named; the contestants' folder says which."""
    return importlib.import_module(BUILT_IN).DEFAULT


def module_path(name: str) -> str:
    """The name under which Python finds a method's source, which is not imported; see `method` for what is raised."""
    if file := method_file(name):
        return method_files.findable(file)
    if name not in _modules():
        raise InputError.unknown("method", name, _modules())
    return _modules()[name].partition(":")[0]


def changed(name: str) -> int:
    """When the file of a method that is named by its path was last changed, in nanoseconds; 0 for a registered name."""
    file = method_file(name)
    return file.stat().st_mtime_ns if file else 0


def method(name: str) -> Method:
    """Import a method by its registered name or by the path of its file, which is then read again if it changed.

    Raises InputError for an unknown name, and for a file that is missing, cannot be imported, has no function `rank`,
    or has the name of a registered method. An ImportError inside a registered method is passed on.
    """
    file = method_file(name)
    if file is None:
        return _named(name)
    if file.stem in _modules():
        raise InputError(
            f"method {name}: {file.stem!r} is the name of a registered method; use that name, or rename the file"
        )
    return _in_file(name, file.resolve(), changed(name))


@functools.cache
def _named(name: str) -> Method:
    return described(name, module(name))


@functools.lru_cache(maxsize=32)
def _in_file(name: str, file: Path, changed: int) -> Method:
    """The method in this file as it was at this time."""
    module = method_files.load(file, name)
    if not inspect.isfunction(getattr(module, "rank", None)):
        raise InputError(f"method {name}: the file has no function `rank`")
    try:
        return described(Path(name).stem, module)
    except method_files.FAILURES as error:  # say, an annotation with a name that only type checkers import
        raise InputError(f"method {name}: {method_files.reason(error)}") from error


def module(name: str) -> ModuleType:
    """The module of a registered method, imported; raises as `method` does."""
    path = module_path(name)
    try:
        return importlib.import_module(path)
    except SystemExit as error:  # it would end the command without a word
        raise ImportError(f"{path} exits: {error}") from error


def described(name: str, module: ModuleType) -> Method:
    """What a module with a function `rank` says of the method that it is."""
    parameters = [p for p in inspect.signature(module.rank).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in ("seed", "budget")}
    hints = typing.get_type_hints(module.rank, include_extras=True)
    return Method(
        name=name,
        module=module,
        title=((module.__doc__ or "").strip() or name).splitlines()[0].rstrip("."),
        role=getattr(module, "ROLE", "reference"),
        units=unit_kinds(getattr(module, "UNITS", BOTH)),
        options=options,
        notes={
            key: " ".join(w for w in getattr(hints.get(key), "__metadata__", ()) if isinstance(w, str))
            for key in options
        },
    )


def commands() -> dict[str, Callable[..., Any] | str]:
    """The commands that other packages add, contestants' among them: entry points of the group `infoprune.commands`.

    Each is a function or app of typer's, loaded here; keep their modules light. A reason for one that cannot be loaded.
    """
    return _loaded(COMMANDS)


def _loaded(group: str) -> dict[str, Any]:
    """The entry points of a group, by name; for one that cannot be loaded, the reason."""
    points = sorted(entry_points(group=group), key=lambda point: point.name)
    return {point.name: _tried(point.load) for point in points}


def benches() -> dict[str, Callable[..., Iterable[Bar]] | str]:
    """What others add to `infoprune bench`: entry points `infoprune.benches`, each `bars(quick, device, progress)`.

    A reason for one that cannot be loaded.
    """
    return _loaded(BENCHES)


def metrics() -> list[str]:
    """The metric names."""
    spec = importlib.util.find_spec("harness.metrics")
    assert spec and spec.submodule_search_locations
    modules = pkgutil.iter_modules(spec.submodule_search_locations)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def metric(name: str) -> Callable[..., dict[str, Any]]:
    """The `measure` function of a metric. Raises InputError for an unknown name."""
    if name not in metrics():
        raise InputError.unknown("metric", name, metrics())
    measure: Any = getattr(importlib.import_module(f"harness.metrics.{name}"), "measure", None)
    if measure is None:
        raise InputError(f"harness/metrics/{name}.py: the function `measure` is missing")
    return measure


@functools.cache
def columns() -> dict[str, tuple[Column, ...]]:
    """The columns that each metric declares. Raises InputError for a column that two metrics declare."""
    declared = {name: getattr(importlib.import_module(f"harness.metrics.{name}"), "COLUMNS", ()) for name in metrics()}
    owners: dict[str, str] = {}
    for metric, column in ((metric, column.name) for metric, columns in declared.items() for column in columns):
        if owners.setdefault(column, metric) != metric:
            raise InputError(f"metrics {owners[column]} and {metric} both declare the column {column!r}; rename one")
    return declared


def geometries() -> list[str]:
    """The shipped models of published sizes without their weights."""
    return sorted(path.parent.name for path in GEOMETRIES.glob("*/config.json"))


def model(name: str) -> str:
    """Where a model is: the folder of a shipped or built name, or the name itself (a folder or a hub id owner/name).

    Raises InputError for what can be neither, and for a name that is not built yet, with the command that builds it.
    """
    if name in MODELS:
        return str(MODELS[name])
    if name in BUILT:
        return str(importlib.import_module(BUILT[name]).built())
    if name in geometries():
        return str(GEOMETRIES / name)
    if os.path.isdir(name):  # False for what can be no path at all
        return name
    if is_hub_id(name):
        return name
    if "/" in name:
        raise InputError(f"model {name}: no such folder")
    known = (*MODELS, *BUILT, *geometries(), "a checkpoint folder", "a hub id owner/name")
    raise InputError.unknown("model", name, known)


def is_hub_id(name: str) -> bool:
    """Whether this is an owner/name of the hub. What begins with a folder that is there is meant as a path."""
    return bool(HUB_ID.fullmatch(name)) and not os.path.isdir(os.path.dirname(name))


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


@functools.cache
def code() -> dict[str, Any]:
    """Version of this package, and the git revision it runs from, if any and if git tells."""
    facts: dict[str, Any] = {"version": version("infoprune-bench"), "revision": None, "dirty": None}
    root = HERE.parent
    if (root / ".git").exists():

        def git(*words: str) -> str:
            call = ["git", "--no-optional-locks", "-C", str(root), *words]  # a lock would outlive a killed process
            return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

        with suppress(OSError, subprocess.CalledProcessError):  # no git, no commit, or a folder of another user's
            revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "harness", BUILT_IN)
            facts |= {"revision": revision, "dirty": bool(changes)}
    return facts
