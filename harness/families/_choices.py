"""The source of a function with all that it needs of its own file: how a method's choice of tokens goes into a folder.

(folder / "token_choice.py").write_text(source(keep_tokens))    # `keep` is the function
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from harness.types import InputError

MODULES = {"torch", *sys.stdlib_module_names}
PLAIN = (bool, int, float, str, tuple, type(None))
HEADER = (
    '"""Which visual tokens go on; copied from the method that chose them."""\n\nfrom __future__ import annotations\n'
)


def source(function: Any) -> str:
    """Python source that defines `keep` as this function, with the functions and constants of its file that it uses.

    Raises InputError for a function that uses anything else but torch and the standard library, or whose source cannot
    be read.
    """
    modules: dict[str, str] = {}
    constants: dict[str, str] = {}
    functions: dict[str, str] = {}
    waiting = [function]
    while waiting:
        now = waiting.pop()
        name = getattr(now, "__name__", repr(now))
        if not isinstance(now, FunctionType) or now.__closure__ or not name.isidentifier():
            raise _refused(function, "is not a plain function of a file")
        try:
            text = textwrap.dedent(inspect.getsource(now))
        except (OSError, TypeError) as error:
            raise _refused(function, "has no source that can be read") from error
        functions[name] = text
        for used in dict.fromkeys(_names(ast.parse(text))):
            if used in functions or used not in now.__globals__:
                if used not in functions and not hasattr(builtins, used):
                    raise _refused(function, f"uses {used}, which its file does not define")
                continue
            value = now.__globals__[used]
            if isinstance(value, ModuleType) and value.__name__.split(".")[0] in MODULES:
                modules[used] = f"import {value.__name__}" + ("" if used == value.__name__ else f" as {used}")
            elif isinstance(value, FunctionType) and value.__module__ == function.__module__:
                waiting.append(value)
            elif isinstance(value, PLAIN):
                constants[used] = f"{used} = {value!r}"
            else:
                raise _refused(
                    function, f"uses {used}, which is neither torch nor the standard library nor of its own file"
                )
    keep = [] if function.__name__ == "keep" else [f"keep = {function.__name__}"]
    parts = ["\n".join(sorted(modules.values())), "\n".join(constants.values()), *functions.values(), *keep]
    return "\n\n".join([HEADER, *(part.strip("\n") + "\n" for part in parts if part)])


def _refused(function: Any, why: str) -> InputError:
    name = getattr(function, "__qualname__", repr(function))
    return InputError(f"export: the choice of tokens cannot be written into the folder: {name} {why}")


def _names(tree: ast.AST) -> Iterator[str]:
    """The global names that a function's source reads; annotations are not run."""
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if hasattr(node, field):
                setattr(node, field, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in bound:
            yield node.id
