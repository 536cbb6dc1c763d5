"""Who may import whom, read from the sources; and what the light commands must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from harness import registry

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("harness/**/*.py"), *ROOT.glob("baselines/**/*.py")])


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _nodes(node: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """All nodes that run, those inside functions if `lazy`."""
    for child in ast.iter_child_nodes(node):
        if _typing_only(child) or (not lazy and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            continue
        yield child
        yield from _nodes(child, lazy)


@cache
def imports(module: str, lazy: bool = True) -> frozenset[str]:
    """The modules that a module imports: ours down to the file, others by their full name."""
    found: set[str] = set()
    for node in _nodes(ast.parse(MODULES[module].read_text(encoding="utf-8")), lazy):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            for alias in node.names:
                found.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base)
    return frozenset(found)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in ("harness", "baselines")}


def within(name: str, *places: str) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_types_imports_nothing_of_ours() -> None:
    assert not ours("harness.types")


COMMANDS = "baselines.commands"  # a contestant's commands use the harness as any other command does
BENCH = "baselines.infoprune.bench"  # and its bars, of the ordinary path


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "baselines") and name != COMMANDS])
def test_methods_know_types_calibration_and_the_shared_algebra_only(module: str) -> None:
    own = ".".join(module.split(".")[:2])
    allowed = ["harness.types", "harness.calibration", "baselines.linalg", "baselines.low_rank", own]
    if module == BENCH:
        allowed += ["harness.bars", "harness.compression"]
    assert not [name for name in ours(module) if not within(name, *allowed)]


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "harness.families", "harness.metrics")])
def test_families_and_metrics_know_types_only(module: str) -> None:
    allowed = ["harness.types", "harness.families"] if within(module, "harness.families") else ["harness.types"]
    if module in [f"harness.metrics.{name}" for name in ("accuracy", "floors", "fidelity")]:  # what is made of answers
        allowed += ["harness.tasks", "harness.metrics.accuracy"]
    if module == "harness.metrics.roofline":  # what is made of counts and times
        allowed += ["harness.metrics.flops", "harness.metrics.latency"]
    assert not [name for name in ours(module) if not within(name, *allowed)]


HOMES = {
    "transformers": ("harness.families", "harness.tasks", "harness.reference"),
    "lmms_eval": ("harness.tasks", "harness.metrics.accuracy"),
    "fvcore": ("harness.metrics.flops",),
    "pandas": ("harness.report",),
    "tabulate": ("harness.report",),
    "matplotlib": ("harness.report", "harness.reference", "baselines.infoprune.figures"),  # the recipe's figure; fonts
    "plotly": ("harness.report",),
    "peft": ("harness.tuning",),
    "ray": ("harness.executors.ray",),
    "mlflow": ("harness.mirrors.mlflow",),
    "wandb": ("harness.mirrors.wandb",),
    "typer": ("harness.cli", COMMANDS),
}


@pytest.mark.parametrize("package", HOMES)
def test_packages_stay_where_they_live(package: str) -> None:
    for module in MODULES:
        if not within(module, *HOMES[package]):
            assert not [name for name in imports(module) if within(name, package)], module


def test_the_harness_names_the_contestants_folder_once() -> None:
    places = []
    for module, path in MODULES.items():
        if within(module, "harness"):
            assert not [name for name in imports(module) if within(name, "baselines")], module
            tree = ast.parse(path.read_text(encoding="utf-8"))
            places += [module for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value == "baselines"]
    assert places == ["harness.registry"]


def test_the_harness_names_no_contestant() -> None:
    """But for the two that are part of the protocol: dense, and the floor every score has to beat."""
    contestants = set(registry.methods()) - {"none", "random"}
    for module, path in MODULES.items():
        if within(module, "harness"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not named & contestants, module


def test_no_circular_imports() -> None:
    """Of what runs when a module is imported; a package stands for its __init__."""
    state: dict[str, str] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*trail, module))
        if module in state:
            return
        state[module] = "open"
        for name in sorted(imports(module, lazy=False)):
            if name in MODULES:
                visit(name, (*trail, module))
        state[module] = "done"

    for module in MODULES:
        visit(module, ())
    assert set(state) == set(MODULES) and len(MODULES) > 30


def test_late_imports_close_no_circle_either() -> None:
    """Between files of different folders; inside a folder a late import may wait for what is heavy."""
    state: dict[str, str] = {}

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*trail, module))
        if module in state:
            return
        state[module] = "open"
        for name in sorted(imports(module)):
            if name in MODULES and room(name) != room(module):
                visit(name, (*trail, module))
        state[module] = "done"

    for module in MODULES:
        visit(module, ())


def test_an_import_error_never_means_not_supported() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert "ImportError" not in caught and "ModuleNotFoundError" not in caught, module
                assert caught != "everything", module


def test_files_are_of_a_size_to_read() -> None:
    for path in [*FILES, *ROOT.glob("tests/*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path
    assert not list(ROOT.glob("harness/**/utils.py")) + list(ROOT.glob("baselines/**/utils.py"))


HEAVY = ("torch", "transformers", "lmms_eval", "datasets", "mlflow", "wandb")


@pytest.mark.parametrize(
    "code",
    [
        "import harness.report",
        "import harness.mirrors",
        "import harness.record",
        "import harness.journal",
        "import harness.types, harness.stats, harness.budget, harness.families",
        "import harness.registry; harness.registry.methods(); harness.registry.metrics(); harness.registry.boards()",
        "from typer.testing import CliRunner; from harness.cli import app\n"
        "for words in (['--help'], ['report', '--help'], ['sweep', '--help'], ['reference', 'check', '--help']):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0, words\n",
    ],
)
def test_light_commands_load_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys; heavy = set({HEAVY}) & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
