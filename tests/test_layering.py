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
from tests.support.paths import ROOT

FILES = sorted([*ROOT.glob("harness/**/*.py"), *ROOT.glob("baselines/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))


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


# Who may import whom: a package, and the packages that it may use. What is OPEN serves all.
OPEN = {"types", "text", "files", "pictures", "progress"}
PACKAGES: dict[str, set[str]] = {
    "method_files": set(),
    "registry": {"method_files"},
    "stats": set(),
    "machine": set(),
    "families": set(),
    "statistics": {"families", "machine"},
    "pruning": {"families", "machine", "statistics"},
    "tasks": {"families", "machine", "stats"},
    "metrics": {"families", "machine", "stats", "tasks"},
    "records": set(),
    "trials": {"families", "machine", "metrics", "pruning", "records", "registry", "statistics", "tasks"},
    "verdicts": {"records", "stats"},
    "report": {"records", "registry", "stats", "tasks", "verdicts"},
    "checkpoints": {"families", "machine", "pruning", "records", "registry", "report", "tasks", "trials"},
    "bench": {
        *("families", "machine", "metrics", "pruning", "records", "registry", "statistics", "stats", "tasks", "trials"),
    },
    "reference": {"bench", "families", "records", "registry", "tasks", "trials"},
    "checks": {
        "families",
        "method_files",
        "metrics",
        "pruning",
        "reference",
        "registry",
        "statistics",
        "tasks",
        "trials",
    },
    "api": {
        *("checkpoints", "families", "machine", "records", "registry", "report", "trials"),
    },
    "cli": {
        *("bench", "checkpoints", "checks", "families", "machine", "records", "reference", "registry", "report"),
        *("tasks", "trials", "verdicts"),
    },
}


def package(module: str) -> str:
    return [*module.split("."), "harness"][1]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_uses_those_before_it_only(name: str) -> None:
    order = list(PACKAGES)
    assert all(order.index(other) < order.index(name) for other in PACKAGES[name])
    for module in MODULES:
        if within(module, f"harness.{name}"):
            used = {package(other) for other in imports(module) if within(other, "harness") and other in MODULES}
            assert used <= {name, *OPEN, *PACKAGES[name]}, module


def test_every_module_stands_in_a_package() -> None:
    assert {package(module) for module in MODULES if within(module, "harness")} == {"harness", *OPEN, *PACKAGES}
    assert len(list(ROOT.glob("harness/*.py"))) <= 8


def test_what_is_open_to_all_imports_types_and_text_at_most() -> None:
    assert not ours("harness.text")
    for module in MODULES:
        if within(module, *(f"harness.{name}" for name in OPEN)):
            assert all(within(name, "harness.types", "harness.text") for name in ours(module)), module
            assert not within(module, "harness.types") or "torch" not in imports(module), module


def test_metrics_know_no_other_metric_but_those_they_are_made_of() -> None:
    made_of = {
        "harness.metrics.floors": {"harness.metrics.accuracy"},
        "harness.metrics.fidelity": {"harness.metrics.accuracy"},
        "harness.metrics.flops": {"harness.metrics._counting"},
        "harness.metrics.roofline": {"harness.metrics._counting"},
    }
    for module in MODULES:
        if within(module, "harness.metrics"):
            others = {name for name in ours(module) if within(name, "harness.metrics")}
            assert others <= made_of.get(module, set()), module


COMMANDS = "baselines.commands"  # a contestant's commands use the harness as any other command does
BENCH = "baselines.infoprune.bench"  # and its bars, of the ordinary path
FIGURES = "baselines.infoprune.figures"  # look as all others do
TOOLS = (BENCH, "baselines.infoprune.theory", "baselines.infoprune.inspect")  # show how far they are
RELATIVES: dict[str, str] = dict.fromkeys(
    ("baselines.infoprune_free", "baselines.infoselect", "baselines.l0_gates"), "baselines.infoprune"
) | {"baselines.fisher": "baselines.laser"}


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "baselines") and name != COMMANDS])
def test_methods_know_types_statistics_and_the_shared_algebra_only(module: str) -> None:
    own = ".".join(module.split(".")[:2])
    shared = ["baselines.linalg", "baselines.low_rank", "baselines.hard_concrete"]
    allowed = ["harness.types", "harness.statistics", *shared, RELATIVES.get(own, own)]
    if module in TOOLS:
        allowed += ["harness.progress"]
    if module == FIGURES:
        allowed += ["harness.report.style"]
    if module == BENCH:
        allowed += ["harness.bench", "harness.machine.timing"]
    assert not [name for name in ours(module) if not within(name, *allowed)]


HOMES = {
    "transformers": ("harness.families", "harness.tasks", "harness.reference"),
    "lmms_eval": ("harness.tasks",),
    "fvcore": ("harness.metrics._counting",),
    "pandas": ("harness.report",),
    "tabulate": ("harness.report",),
    "matplotlib": ("harness.report", "harness.reference", "baselines.infoprune.figures"),  # the recipe's figure; fonts
    "peft": ("harness.pruning.training",),
    "torchao": ("harness.pruning.quantised",),
    "ray": ("harness.trials.executors.ray",),
    "mlflow": ("harness.records.mirrors.mlflow",),
    "wandb": ("harness.records.mirrors.wandb",),
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

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*trail, module))
        if module in state:
            return
        state[module] = "open"
        for name in sorted(imports(module)):
            if name in MODULES and package(name) != package(module):
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
    for folder, longest in (("harness", 400), ("baselines", 400), ("tests", 400)):
        for path in ROOT.glob(f"{folder}/**/*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= longest, path
            assert path.name != "utils.py", path


def test_no_test_module_imports_another() -> None:
    """What several of them use is in tests/support, or a fixture of a conftest."""
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            parts = {part for name in names for part in name.split(".")}
            assert not [part for part in parts if part.startswith("test_") or part == "conftest"], path


def test_no_test_reads_the_variables_of_a_running_function() -> None:
    for path in TESTS:
        text = path.read_text(encoding="utf-8")
        assert not [name for name in ("gi_" + "frame", "f_" + "locals") if name in text], path


HEAVY = ("torch", "transformers", "lmms_eval", "datasets", "mlflow", "wandb")


@pytest.mark.parametrize(
    "code",
    [
        "import harness; assert 'sweep' in dir(harness); from harness import load, prune, results, sweep",
        "import harness.report",
        "import harness.records.mirrors",
        "import harness.records.record",
        "import harness.trials.journal",
        "import harness.types, harness.stats, harness.pruning.solver, harness.families",
        "import harness.registry; harness.registry.methods(); harness.registry.metrics(); harness.registry.boards()",
        "from typer.testing import CliRunner; from harness.cli import app\n"
        "for words in (['--help'], ['report', '--help'], ['sweep', '--help'], ['reference', 'check', '--help']):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0, words\n",
    ],
)
def test_light_commands_load_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys; heavy = set({HEAVY}) & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
