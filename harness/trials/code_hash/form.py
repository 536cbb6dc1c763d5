"""The canonical form of one definition of ours: a text that depends only on its behaviour.

    Form(sources, module, "solve").parts  # texts, and a `Place` for every reference to another definition of ours

The form omits comments, docstrings, annotations, imports, file paths and message texts. Locals get numbers. The
form keeps the names of parameters, attributes and fields, and the names of other packages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.trials.code_hash.names import (
    Import,
    Module,
    Place,
    Sources,
    bound,
    chain,
    for_typing,
    imports,
    is_error,
    same_scope,
)

SKIPPED = ("annotation", "returns", "type_comment", "type_params", "ctx", "kind", "simple")
# Methods whose arguments are messages.
MESSAGE_METHODS = ("debug", "info", "warning", "warn", "error", "critical", "exception", "log")
LOGGERS = ("logging", "warnings", "loguru.logger")
FIELD_WORDS = ("ClassVar", "InitVar", "KW_ONLY")  # annotations that change what a dataclass does
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+\.?")


@dataclass
class Scope:
    """The names that a function, class or comprehension binds, and those that it takes from another scope."""

    kind: str
    parameters: frozenset[str]
    bound: frozenset[str]
    imports: dict[str, Import] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()  # nonlocal
    module: frozenset[str] = frozenset()  # global
    numbers: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, parameters: Iterable[str], body: Sequence[ast.AST], package: str) -> Scope:
        nodes = list(same_scope(body))
        return cls(
            kind,
            frozenset(parameters),
            frozenset(bound(body)),
            imports={name: source for node in nodes for name, source in imports(node, package)},
            shared=frozenset(name for node in nodes if isinstance(node, ast.Nonlocal) for name in node.names),
            module=frozenset(name for node in nodes if isinstance(node, ast.Global) for name in node.names),
        )


class Form:
    """The form of one definition: texts, and a `Place` for each reference to another definition."""

    def __init__(self, sources: Sources, module: Module, name: str) -> None:
        self.sources, self.module = sources, module
        self.statements = module.definitions[name] if name else module.statements
        self.names = list(dict.fromkeys(bound(self.statements)))
        self.parts: list[str | Place] = []
        self.mentioned: set[Place] = set()  # places in annotations
        self.imported: set[str] = set()  # modules that functions import
        self._scopes: list[Scope] = []
        self._locals = 0
        self._message = False
        self._write(self.statements)

    # --- names ---

    def _binding(self, name: str) -> Place | str | None:
        """The meaning of a name here: a place, or the text for a name inside the definition."""
        for depth, scope in enumerate(reversed(self._scopes)):
            if name in scope.module:
                break
            if name in scope.shared or (scope.kind == "class" and depth):
                continue
            if name in scope.parameters:
                return f"parameter {name}"
            if name in scope.imports and name not in scope.bound:
                return self.sources.target(scope.imports[name])
            if name in scope.bound:
                if scope.kind == "class":
                    return f"field {name}"
                return f"local {self._number(scope, name)}"
        return self.sources.lookup(self.module.name, name)

    def _number(self, scope: Scope, name: str) -> int:
        if name not in scope.numbers:
            scope.numbers[name] = self._locals
            self._locals += 1
        return scope.numbers[name]

    def _resolve(self, node: ast.AST) -> tuple[Place, list[str]] | None:
        """The place at the start of `a.b.c`, and the attributes after it; None if no place is there."""
        root, attributes = chain(node)
        place = self._binding(root) if root else None
        if not isinstance(place, Place):
            return None
        where, rest = self.sources.follow(place, attributes)
        return (where, rest) if where else None

    def _refer(self, place: Place, attributes: Sequence[str] = ()) -> None:
        if place.kind == "foreign":
            self.parts.append(f"foreign {place.module}")
        elif place.kind == "definition" and place.module == self.module.name and place.name in self.names:
            self.parts.append(f"self {self.names.index(place.name)}")
        else:
            self.parts.append(place if place.kind != "plumbing" else "plumbing")
        self.parts += [f".{name}" for name in attributes]

    def _bind(self, name: str) -> None:
        binding = self._binding(name)
        if isinstance(binding, Place):
            self._refer(binding)
        else:
            self.parts.append(binding or f"name {name}")

    # --- nodes ---

    def _write(self, value: object) -> None:
        if isinstance(value, list):
            self.parts.append("[")
            for item in _kept(value) if value and isinstance(value[0], ast.stmt) else value:
                before = len(self.parts)
                self._write(item)
                self.parts += [","] if len(self.parts) > before else []
            self.parts.append("]")
        elif isinstance(value, ast.AST):
            self._node(value)
        else:
            self.parts.append(repr(value))

    def _node(self, node: ast.AST) -> None:
        match node:
            case ast.expr() if _is_own_path(node):
                name = node.right.value if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant) else ""
                self.parts.append(f"a place of ours {name!r}")
            case ast.Name() | ast.Attribute() if target := self._resolve(node):
                self._refer(*target)
            case ast.Name(id=name):
                self._bind(name)
            case ast.JoinedStr() | ast.Constant(value=str()) if self._message:
                self.parts.append("a message")
            case ast.Constant(value=value):
                self.parts.append("a module of ours" if self._names_module(value) else repr(value))
            case ast.Import() | ast.ImportFrom():
                self._import(node)
            case ast.AnnAssign():
                self._annotated(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._function(node)
            case ast.ClassDef():
                self._fields(node, "body")
                self._inside(Scope.of("class", (), node.body, self.module.package), node.body)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._comprehension(node)
            case ast.Raise():
                self._write_message_call(node)
            case ast.Assert():
                self._fields(node, "msg")
                if node.msg is not None:
                    self._write_message_call(ast.Expr(node.msg))
            case ast.Call(func=func) if self._is_message_call(func):
                self._write(func)
                self._write_message_call(node, "func")
            case _:
                self._fields(node)

    def _fields(self, node: ast.AST, *left_out: str) -> None:
        self.parts.append(f"{type(node).__name__}(")
        for key, value in ast.iter_fields(node):
            if key in ("annotation", "returns") and value is not None:
                self._mention(value)
            if key in SKIPPED or key in left_out or value is None or value == []:
                continue
            self.parts.append(f"{key}=")
            binds = key == "rest" or (key == "name" and not isinstance(node, ast.alias))
            if binds and isinstance(value, str):
                self._bind(value)
            else:
                self._write(value)
        self.parts.append(")")

    def _write_message_call(self, node: ast.AST, *left_out: str) -> None:
        """Write a node, with each string as a message."""
        before, self._message = self._message, True
        self._fields(node, *left_out)
        self._message = before

    def _inside(self, scope: Scope, body: Sequence[ast.AST]) -> None:
        self._scopes.append(scope)
        self._write(body)
        self._scopes.pop()

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self._fields(node, "body")  # decorators and defaults belong to the outer scope
        parameters = [inner.arg for inner in ast.iter_child_nodes(node.args) if isinstance(inner, ast.arg)]
        body = node.body if isinstance(node.body, list) else [node.body]
        self._inside(Scope.of("function", parameters, body, self.module.package), body)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first, *_ = node.generators
        self._write(first.iter)  # belongs to the outer scope
        scope = Scope("comprehension", frozenset(), frozenset(bound([part.target for part in node.generators])))
        self._scopes.append(scope)
        for part in node.generators:
            self._fields(part, *(["iter"] if part is first else []))
        self._fields(node, "generators")
        self._scopes.pop()

    def _annotated(self, node: ast.AnnAssign) -> None:
        if self._scopes and self._scopes[-1].kind == "class":
            words = [word for word in FIELD_WORDS if word in ast.unparse(node.annotation)]
            self.parts.append(f"{words}")
            self._fields(node)
        else:
            self._mention(node.annotation)
            if node.value is not None:
                self._node(ast.Assign([node.target], node.value))

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Write an import only if another statement binds the same name; otherwise the name means its target."""
        self.imported |= {source for _, (source, _) in imports(node, self.module.package)}
        for name, source in imports(node, self.module.package):
            place = self.sources.target(source)
            if place and (name in self._scopes[-1].bound if self._scopes else name in self.names):
                self._bind(name)
                self._refer(place)

    def _mention(self, annotation: ast.expr) -> None:
        for node in ast.walk(annotation):
            if isinstance(node, ast.Name | ast.Attribute) and (target := self._resolve(node)):
                self.mentioned.add(target[0])

    def _names_module(self, text: object) -> bool:
        """Whether a text is the name of a module of ours, or a prefix of such names."""
        if not isinstance(text, str) or not DOTTED.fullmatch(text):
            return False
        return self.sources.ours(text) and self.sources.file(text.rstrip(".")) is not None

    def _is_message_call(self, func: ast.expr) -> bool:
        """Whether a call of this logs, warns or makes an exception, so that its string arguments are messages."""
        if isinstance(func, ast.Attribute):
            if func.attr in MESSAGE_METHODS and self._logs(func.value):
                return True
            if self._is_message_call(func.value):  # a classmethod that constructs an exception
                return True
        if target := self._resolve(func):
            place, rest = target
            logger, _, method = place.module.rpartition(".")
            is_message = place.kind == "foreign" and logger in LOGGERS and method in MESSAGE_METHODS
            return is_message or (not rest and self.sources.is_exception(place))
        return isinstance(func, ast.Name) and self._binding(func.id) is None and is_error(func.id)

    def _logs(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Call):
            target = self._resolve(node.func)
            return target is not None and target[0].module == "logging.getLogger"
        target = self._resolve(node)
        if target is None:
            return False
        place = target[0]
        if place.kind == "foreign":
            return place.module in LOGGERS
        module = self.sources.module(place.module)
        match module.definitions.get(place.name) if module else None:
            case [ast.Assign(value=ast.Call(func=func))]:
                return self.sources.dotted(place.module, func) == Place("foreign", "logging.getLogger")
        return False


def _kept(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body that do something, or declare the fields of a class."""
    for statement in body:
        match statement:
            case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Global() | ast.Nonlocal():
                pass
            case ast.If(orelse=orelse) if for_typing(statement):
                yield from _kept(orelse)
            case _:
                yield statement


def _is_own_path(node: ast.AST) -> bool:
    """Whether this is the path of a file or folder beside the module. Only its content counts, not its path."""
    match node:
        case ast.Name(id="__file__"):
            return True
        case ast.Attribute(value=value, attr="parent" | "parents") | ast.Subscript(value=value, slice=ast.Constant()):
            return _is_own_path(value)
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant()):
            return _is_own_path(left)
        case ast.Call(func=ast.Name(id="Path") | ast.Attribute(attr="Path"), args=[value], keywords=[]):
            return _is_own_path(value)
        case ast.Call(func=ast.Attribute(value=value, attr="resolve" | "absolute"), args=[]):
            return _is_own_path(value)
    return False
