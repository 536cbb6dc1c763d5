"""Python files of the user's as modules: found by Python's import system, and imported anew when asked for.

module = load(Path("power.py"), "power.py")
"""

from __future__ import annotations

import importlib.util
import os
import sys
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.types import InputError

PREFIX = "infoprune_file_"  # of the name of such a module; a hash of the file's path follows
FAILURES = (Exception, SystemExit)  # what code of others may raise, whatever it does; an interrupt is the user's


class _Finder(MetaPathFinder):
    """Tells Python's import system where files outside of any package lie, so that their sources are found."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}  # by module name

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.files:
            return None
        return importlib.util.spec_from_file_location(fullname, self.files[fullname])


_finder = _Finder()
sys.meta_path.append(_finder)


def findable(file: Path) -> str:
    """The module name of a file, under which Python finds its source from now on; the file is not run."""
    path = file.resolve()
    name = f"{PREFIX}{sha256(os.fsencode(path)).hexdigest()[:16]}"
    _finder.files[name] = path
    return name


def load(file: Path, name: str | None = None) -> ModuleType:
    """A method's module from a file, run anew at each call.

    It does not stay among the imported modules, so other processes are sent its functions whole, not by name.
    Raises InputError, which calls the file `name`, for whatever goes wrong in it.
    """
    spec = importlib.util.find_spec(findable(file))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and annotations look for it
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except FAILURES as error:
        raise InputError(f"method {name or file}: {reason(error)}") from error
    finally:
        del sys.modules[spec.name]
    return module


def reason(error: BaseException) -> str:
    """Why a module cannot be imported, in one line."""
    return f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
