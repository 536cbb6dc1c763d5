"""What made a record: hashes of the code, the checkpoint and the questions; a record whose hashes changed is stale.

    hashes(trial)  # {"code": "5f0c...", "checkpoint": "91aa...", "data": "...", "calibration": "..."}

Known without loading the model or importing torch, so that a sweep sees beforehand which records still hold. The code
is what decides a trial's figures: its method's module, the runner, the metrics and the model family, and all that these
import of ours. Comments and docstrings do not count. What is not known here (a model that is not in the hub's cache,
data that lmms-eval fetches) is left out, and then not compared.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import io
import tokenize
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from harness import families, registry, tasks
from harness.types import InputError, Trial

# Names, files and schemas, which decide where a figure is stored, not what it is; and what no trial runs.
PLUMBING = (
    "harness",
    "harness.files",
    "harness.provenance",
    "harness.record",
    "harness.registry",
    "harness.spec",
    "harness.text",
    "harness.tasks.stock",
    "harness.families._saving",
)


def hashes(trial: Trial) -> dict[str, str]:
    """16 hex digits each for `code`, `checkpoint`, `data` and `calibration`, as far as they are known beforehand."""
    source, drawn, revision = registry.model(trial.model), trial.calibration, trial.loading.revision
    found = {
        "code": code(trial.method, trial.metrics, families.model_type(source, revision)),
        "checkpoint": families.checkpoint_hash(source, revision),
        "data": _data(tuple(trial.tasks), trial.split, trial.limit),
        "calibration": _data(tuple(drawn["tasks"]), drawn["split"], None),
    }
    return {key: value for key, value in found.items() if value is not None}


def stale(record: Mapping[str, Any], trial: Trial) -> list[str]:
    """Which hashes of a trial's record no longer fit; those that it does not carry are taken as they are."""
    carried = record["hashes"]
    return [key for key, value in hashes(trial).items() if carried.get(key, value) != value]


def _data(names: tuple[str, ...], split: str, limit: int | None) -> str | None:
    """`tasks.data_hash`; None where the files are not ours to read, or no longer there."""
    try:
        return tasks.data_hash(names, split, limit)[:16] if tasks.local(names) else None
    except InputError:
        return None


@functools.cache
def code(method: str, metrics: tuple[str, ...], model_type: str | None) -> str:
    """16 hex digits of the SHA-256 over the sources that decide what a trial of this method comes to."""
    roots = ["harness.runner", registry.module_path(method), *(f"harness.metrics.{name}" for name in metrics)]
    if model_type in families.names():
        roots.append(f"harness.families.{model_type}")
    digest = sha256()
    for name, path in sorted(_closure(roots).items()):
        digest.update(f"{name}\n{_bare(path, path.stat().st_mtime_ns)}\n".encode())
    for path in sorted(tasks.MINI.glob("*.yaml")):  # how questions are put and answers scored
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
        digest.update("\n".join([path.name, *kept, ""]).encode())
    return digest.hexdigest()[:16]


def _closure(roots: list[str]) -> dict[str, Path]:
    """These modules and all that they import of the harness or of their own top-level package, with their files."""
    tops = {"harness", *(root.partition(".")[0] for root in roots)}
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name in PLUMBING or name.partition(".")[0] not in tops:
            continue
        if path := _file(name):
            found[name] = path
            waiting += _imports(path, path.stat().st_mtime_ns)
    return found


@functools.cache
def _file(name: str) -> Path | None:
    """A module's source file, found without importing it; None if it has none, or is none (an imported function)."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest and spec.origin is not None:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    places = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place / "__init__.py", place.parent / f"{place.name}.py")]
    return next((file for file in files if file.is_file()), None)


@functools.cache
def _imports(path: Path, changed: int) -> tuple[str, ...]:
    """What a file imports, now or later: modules, and what could be one."""
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found)


@functools.cache
def _bare(path: Path, changed: int) -> str:
    """A source without comments, docstrings, blank lines and spaces at the end of a line."""
    content = path.read_bytes()
    lines = content.decode("utf-8").splitlines()
    for token in tokenize.tokenize(io.BytesIO(content).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstrings(ast.parse(content)):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """First and last line of every docstring that has its lines to itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())) as first, *_]:
                    yield first.lineno, first.end_lineno or first.lineno
