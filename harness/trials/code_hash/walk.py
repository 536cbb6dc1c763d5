"""Hashes of the behaviour of code, blind to the places of its parts and most names. Nothing is imported.

    hashes(["harness.trials.worker"], ["baselines.random"], plumbing)  # a hash for each definition that counts

The walk starts at all definitions of the root modules and follows references to our other definitions (see `names`).
Each definition is written in a form that shows only its behaviour (see `form`), with a hash in place of each reference.
References that exist only at run time (getattr, importlib) are not followed; name their modules as roots.

A class of ours in an annotation counts too, because its objects may come from plumbing. So does the work of a module at
import: its other statements, and definitions with a decorator of ours, which may register them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

from harness.trials.code_hash.form import Form
from harness.trials.code_hash.names import Place, Sources, origin

DEPTH = 4  # of references: in a reference, a difference further down does not show


def hashes(roots: Sequence[str], asked: Sequence[str], plumbing: Sequence[str], ours: Sequence[str] = ()) -> list[str]:
    """The hashes of all definitions that the root modules reach, sorted; two that do the same count once.

    roots: modules that others of ours import. asked: modules of which the code asks for things by name, so that the
    names count, but for those of definitions that others refer to. plumbing: modules where the walk ends, and
    definitions of asked modules that do not count. ours: further packages, which count where they are imported.
    """
    code = _code(roots, asked, plumbing, ours)
    reached = code.reached([*roots, *asked])
    referred = {part for place in reached for part in code.form(place).parts}
    asked_for = [(name, place) for root in asked for name, place in code.entries(root).items()]
    named = {f"{name} {code.reference(place, DEPTH)}" for name, place in asked_for if place not in referred}
    return sorted({code.hash(place, DEPTH) for place in reached} | named)


def reached(roots: Sequence[str], asked: Sequence[str], plumbing: Sequence[str]) -> set[str]:
    """The dotted names of the definitions that count. A module's own name means its statements at import."""
    places = _code(roots, asked, plumbing).reached([*roots, *asked])
    return {f"{place.module}.{place.name}".rstrip(".") for place in places}


_codes: dict[object, _Code] = {}  # packages and plumbing -> their code, until a file changes


def _code(roots: Sequence[str], asked: Sequence[str], plumbing: Sequence[str], ours: Sequence[str] = ()) -> _Code:
    tops = sorted({name.partition(".")[0] for name in (*roots, *asked, *ours)})
    origins = {top: origin(top) for top in tops}
    key = (tuple(origins.items()), tuple(plumbing))
    if key not in _codes or not _codes[key].sources.current():
        _codes[key] = _Code(Sources(origins, plumbing))
    return _codes[key]


class _Code:
    """The definitions of our packages. Each is read and hashed once."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.form = functools.cache(self._form)
        self.hash = functools.cache(self._hash)

    def _form(self, place: Place) -> Form:
        module = self.sources.module(place.module)
        assert module is not None
        return Form(self.sources, module, place.name)

    def _hash(self, place: Place, depth: int) -> str:
        parts = (
            self.reference(part, depth - 1) if isinstance(part, Place) else part for part in self.form(place).parts
        )
        return sha256("\n".join(parts).encode()).hexdigest()

    def reference(self, place: Place, depth: int) -> str:
        """The text in place of a reference to a definition. At depth -1 it only says that a definition is there."""
        if depth < 0 or place.kind == "module":
            return f"a {place.kind} of ours"
        return f"{self.hash(place, depth)} {self.form(place).names.index(place.name)}"

    def entries(self, root: str) -> dict[str, Place]:
        """The definitions that a root module has or re-exports, under its names for them.

        A value or import that appears in the module's annotations counts only through its uses.
        """
        module = self.sources.module(root)
        if module is None:
            return {}
        entries = {name: place for star in module.stars for name, place in self.entries(star).items() if name[0] != "_"}
        for name in (*module.imports, *module.definitions):
            if f"{root}.{name}" in self.sources.plumbing:
                continue
            place = self.sources.lookup(root, name)
            made_here = isinstance(module.definitions.get(name, [None])[0], ast.FunctionDef | ast.ClassDef)
            counts = made_here or name in module.passed_on or name not in module.annotating
            if counts and place is not None and place.kind == "definition":
                entries[name] = place
        return entries

    def reached(self, roots: Iterable[str]) -> set[Place]:
        """All definitions that count for these root modules."""
        places: set[Place] = set()
        run: set[str] = set()
        waiting = [place for root in roots for place in (*self.entries(root).values(), *self._at_import(root, run))]
        while waiting:
            place = waiting.pop()
            if place in places:
                continue
            places.add(place)
            if place.kind == "module":  # the code uses the module itself
                waiting += self.entries(place.module).values()
                waiting += self._at_import(place.module, run)
                continue
            form = self.form(place)
            waiting += (part for part in form.parts if isinstance(part, Place))
            waiting += self._classes(form)
            for name in (place.module, *sorted(form.imported)):
                waiting += self._at_import(name, run)
        return {place for place in places if place.kind == "definition"}

    def _classes(self, form: Form) -> Iterator[Place]:
        """The classes in a definition's annotations, also through an alias."""
        waiting, seen = list(form.mentioned), set()
        while waiting:
            place = waiting.pop()
            if place.kind != "definition" or place in seen:
                continue
            seen.add(place)
            inner = self.form(place)
            if isinstance(inner.statements[0], ast.ClassDef):
                yield place
            elif isinstance(inner.statements[0], ast.Assign | ast.AnnAssign):
                waiting += (part for part in inner.parts if isinstance(part, Place))

    def _at_import(self, name: str, run: set[str]) -> Iterator[Place]:
        """The definitions that an import of this module runs, here and in modules that it imports.

        `run` holds the modules imported so far; this call adds to it.
        """
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if not name or name in run:
                continue
            run.add(name)
            waiting.append(name.rpartition(".")[0])
            if (module := self.sources.module(name)) is None:
                continue
            waiting += module.runs
            if module.statements:
                yield Place("definition", name)
            for definition, statements in module.definitions.items():
                decorators = [mark for statement in statements for mark in getattr(statement, "decorator_list", ())]
                marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in decorators]
                if any(self._ours(name, mark) for mark in marks):
                    yield Place("definition", name, definition)

    def _ours(self, module: str, mark: ast.expr) -> bool:
        """Whether a decorator is a definition of ours, or a method of such a definition."""
        place = self.sources.dotted(module, mark)
        if place is None and isinstance(mark, ast.Attribute):
            place = self.sources.dotted(module, mark.value)
        return place is not None and place.kind == "definition"
