"""The meaning of names in our sources, read from the files without an import.

    sources = Sources({"harness": origin("harness")}, ())
    sources.lookup("harness.trials.pruner", "surgery")  # Place("module", "harness.pruning.surgery")

A definition is a function, class or value that top-level statements of one module bind to one name. A name that is
imported from another module, directly or through a third one, means the definition in the module that has it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

INNER = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip
Import = tuple[str, str | None]  # the module, and the name that is imported from it


class Place(NamedTuple):
    """The meaning of a name: a `definition` in our code, a `module` of ours, `plumbing`, or a `foreign` dotted name.

    The statements that a module runs at import are a definition too, with the empty name.
    """

    kind: str
    module: str
    name: str = ""


def same_scope(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """These nodes and all nodes below them in text order, without the inside of functions and other scopes."""
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, INNER):
            waiting += reversed(list(ast.iter_child_nodes(node)))


def bound(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """The names that these statements bind in their own scope, without imported names."""
    for node in same_scope(nodes):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
            case ast.MatchMapping(rest=str(name)):
                yield name
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                yield from (inner.target.id for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr))


def imports(node: ast.AST, package: str) -> Iterator[tuple[str, Import]]:
    """The names that an import statement binds, each with its meaning."""
    match node:
        case ast.Import(names=aliases):
            for alias in aliases:
                top = alias.name.partition(".")[0]
                yield (alias.asname, (alias.name, None)) if alias.asname else (top, (top, None))
        case ast.ImportFrom(module=name, names=aliases, level=level):
            above = package.split(".")[: 1 - level or None] if level else []
            source = ".".join([*above, *([name] if name else [])])
            for alias in aliases:
                yield alias.asname or alias.name, (source, alias.name)


def imported_modules(node: ast.AST, package: str) -> list[str]:
    """The modules that an import statement runs, and imported names that may be modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [name for _, (source, taken) in imports(node, package) for name in (source, f"{source}.{taken}")]


def for_typing(node: ast.AST) -> bool:
    """Whether this is an `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def annotated(node: ast.AST) -> Iterator[ast.expr]:
    """All annotations in and below a node."""
    for inner in ast.walk(node):
        for key in ("annotation", "returns"):
            if value := getattr(inner, key, None):
                yield value


class Module:
    """The top level of one file: its definitions, its imports, and other statements that run at import."""

    def __init__(self, name: str, path: Path) -> None:
        tree = ast.parse(path.read_bytes())
        self.name = name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, Import] = {}
        self.stars: list[str] = []  # modules imported with *
        self.runs: list[str] = []  # modules, or possible modules, that this one imports
        self.statements: list[ast.stmt] = []
        self.passed_on: set[str] = set()  # the names in `__all__`
        self.annotating = {
            node.id for value in annotated(tree) for node in ast.walk(value) if isinstance(node, ast.Name)
        }
        self._read(tree.body)

    def _read(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            names = list(dict.fromkeys(bound([statement])))
            match statement:
                case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                    self.passed_on |= {str(node.value) for node in ast.walk(value) if isinstance(node, ast.Constant)}
                case ast.If(orelse=orelse) if for_typing(statement):
                    self._bind_imports(statement.body, run=False)
                    self._read(orelse)
                case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                    pass  # a script; no trial runs it
                case ast.Import() | ast.ImportFrom():
                    self._bind_imports([statement], run=True)
                case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.AnnAssign(value=None):
                    pass
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    self._define(names, statement)
                case ast.Assign(targets=targets) if all(map(_plain, targets)):
                    self._define(names, statement)
                case ast.AnnAssign(target=ast.Name()) | ast.AugAssign(target=ast.Name()):
                    self._define(names, statement)
                case _ if type(statement).__name__ == "TypeAlias":  # of Python 3.12
                    pass
                case _:
                    self.statements.append(statement)
                    self._define(names, statement)
                    self._bind_imports([statement], run=True)

    def _define(self, names: Sequence[str], statement: ast.stmt) -> None:
        for name in names:
            self.definitions.setdefault(name, []).append(statement)

    def _bind_imports(self, body: Sequence[ast.stmt], run: bool) -> None:
        for node in same_scope(body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name, source in imports(node, self.package):
                    if name == "*":
                        self.stars.append(source[0])
                    else:
                        self.imports[name] = source
                self.runs += imported_modules(node, self.package) if run else []


def _plain(target: ast.expr) -> bool:
    """Whether an assignment to this only binds names."""
    return isinstance(target, ast.Name) or (isinstance(target, ast.Tuple | ast.List) and all(map(_plain, target.elts)))


@functools.lru_cache(maxsize=512)
def _parsed(name: str, path: Path, changed: int) -> Module:
    return Module(name, path)


def origin(top: str) -> tuple[str, ...]:
    """The folders of a top-level package, or the file of a top-level module, without an import of it."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        return ()
    if spec.submodule_search_locations:
        return tuple(spec.submodule_search_locations)
    return (spec.origin,) if spec.origin and spec.origin.endswith(".py") else ()


class Sources:
    """The modules of our top-level packages, as their files were at the first look."""

    def __init__(self, origins: Mapping[str, Sequence[str]], plumbing: Sequence[str]) -> None:
        self.origins = origins
        self.plumbing = frozenset(plumbing)
        self.stamps: dict[Path, int] = {}
        self.module = functools.cache(self._module)
        self.lookup = functools.cache(self._lookup)

    def current(self) -> bool:
        """Whether no file has changed since it was read."""
        return all(path.is_file() and path.stat().st_mtime_ns == stamp for path, stamp in self.stamps.items())

    def ours(self, name: str) -> bool:
        return name.partition(".")[0] in self.origins

    def file(self, name: str) -> Path | None:
        """A module's source file. None if the name is no module (an imported function), or has no source file."""
        top, *rest = name.split(".")
        for place in self.origins.get(top, ()):
            if place.endswith(".py"):
                return None if rest else Path(place)
            path = Path(place, *rest)
            for file in (path / "__init__.py", path.parent / f"{path.name}.py"):
                if file.is_file():
                    return file
        return None

    def _module(self, name: str) -> Module | None:
        path = self.file(name)
        if path is None or name in self.plumbing:
            return None
        self.stamps[path] = path.stat().st_mtime_ns
        return _parsed(name, path, self.stamps[path])

    def _lookup(self, module: str, name: str) -> Place | None:
        """The meaning of a name at a module's top level; None for a builtin or unbound name."""
        return self._search(module, name, ())

    def _search(self, module: str, name: str, seen: tuple[tuple[str, str], ...]) -> Place | None:
        if module in self.plumbing:
            return self._as_module(f"{module}.{name}") or Place("plumbing", "")
        if (source := self.module(module)) is not None and (module, name) not in seen:
            seen = (*seen, (module, name))
            if name in source.definitions:
                return Place("definition", module, name)
            if name in source.imports:
                return self.target(source.imports[name], seen)
            for star in source.stars:
                if self.ours(star) and not name.startswith("_") and (place := self._search(star, name, seen)):
                    return place
        return self._as_module(f"{module}.{name}")

    def _as_module(self, name: str) -> Place | None:
        if name in self.plumbing:
            return Place("plumbing", name)
        return Place("module", name) if self.file(name) else None

    def target(self, source: Import, seen: tuple[tuple[str, str], ...] = ()) -> Place | None:
        """The meaning of an import."""
        module, name = source
        if not self.ours(module):
            return Place("foreign", f"{module}.{name}" if name else module)
        return self._as_module(module) if name is None else self._search(module, name, seen)

    def follow(self, place: Place | None, attributes: list[str]) -> tuple[Place | None, list[str]]:
        """Follow a chain of attributes from a place. Returns the last place, and the attributes after it."""
        while place is not None and attributes:
            if place.kind == "foreign":
                return Place("foreign", ".".join([place.module, *attributes])), []
            if place.kind == "plumbing" and place.module:  # an attribute of a plumbing module
                return Place("plumbing", ""), attributes[1:]
            inner = self.lookup(place.module, attributes[0]) if place.kind == "module" else None
            if inner is None:
                break
            place, attributes = inner, attributes[1:]
        return place, attributes

    def dotted(self, module: str, node: ast.AST) -> Place | None:
        """The meaning of `a.b.c` at a module's top level; a builtin name counts as foreign. None if it is no place."""
        root, attributes = chain(node)
        if root is None:
            return None
        place, rest = self.follow(self.lookup(module, root) or Place("foreign", root), attributes)
        return None if rest else place

    def is_exception(self, place: Place, seen: frozenset[Place] = frozenset()) -> bool:
        """Whether this is an exception class: by its name, or by the bases of a class of ours."""
        if place.kind == "foreign":
            return is_error(place.module)
        module = self.module(place.module)
        if place.kind != "definition" or place in seen or module is None:
            return False
        match module.definitions.get(place.name):
            case [ast.ClassDef(bases=bases)]:
                above = (self.dotted(place.module, base) for base in bases)
                return any(self.is_exception(base, seen | {place}) for base in above if base)
        return False


def is_error(name: str) -> bool:
    """Whether a builtin or foreign class is an exception, judged by the usual ending of its name."""
    return name.endswith(("Error", "Exception", "Warning"))


def chain(node: ast.AST) -> tuple[str | None, list[str]]:
    """The first name of `a.b.c` (None if another expression stands first), and the attributes after it."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return (node.id if isinstance(node, ast.Name) else None), attributes
