"""The hash of code: the same wherever things are and whatever they are called, another once something else is done."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import registry
from harness.trials import code_hash, staleness
from tests.support.paths import ROOT

DEEP = """
def first(given):
    return second(given + 1) if given < 0 else abs(given)


def second(given):
    return first(given - 1) if given > 9 else given * 2
"""
TOOLS = """
FACTOR = 2


def size(item):
    return item * FACTOR


def unused(item):
    return item
"""
PACK = {
    "__init__.py": "",
    "runner.py": '''"""Runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pack import parts, tools
from pack.errors import Refused
from pack.shapes import Shape
from pack.store import keep

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
LIMIT = 3
PLACE = Path(__file__).parent / "data"
Sizes = tuple[int, ...]


def run(given: int, scale: float = 0.5, report: Callable[[Sizes], None] | None = None) -> float:
    """Runs it."""
    total = parts.first(given) - parts.second(given)  # a difference
    if total < 0:
        log.warning("the total %s is negative", total)
        raise Refused(f"negative: {total}")
    sizes = [tools.size(item) for item in range(LIMIT)]
    best = torch.argmax(torch.tensor(sizes)) + np.max(sizes)
    keep(total)

    def grown(value):
        return value + best

    return Shape(grown(total), best, name="shape").area(scale=scale)
''',
    "parts/__init__.py": "from pack.parts.deep import first as first\nfrom pack.parts.deep import second as second\n",
    "parts/deep.py": DEEP,
    "tools.py": TOOLS,
    "shapes.py": """
from dataclasses import dataclass


class Base:
    def area(self, scale):
        return self.total * scale


@dataclass(frozen=True)
class Shape(Base):
    total: float
    best: int
    name: str = ""
""",
    "errors.py": "class Refused(ValueError):\n    pass\n",
    "store.py": "def keep(value):\n    return value\n\n\ndef drop(value):\n    return None\n",
    "method.py": '''"""A method."""

import logging

from pack.tools import size

logging.captureWarnings(True)
ROLE = "studied"


def rank(values, *, seed, share=0.5):
    return sorted(values, key=_key)


def _key(value):
    return size(value)
''',
}
Edit = tuple[str, str, str]  # file, what stands there ("": the text is added), what stands there then

SAME: dict[str, list[Edit]] = {
    "a function moves to another module": [
        ("tools.py", "def size(item):\n    return item * FACTOR\n", ""),
        ("measures.py", "", "from pack import tools as kit\n\ndef size(item):\n    return item * kit.FACTOR\n"),
        ("runner.py", "import parts, tools", "import measures, parts"),
        ("runner.py", "tools.size", "measures.size"),
        ("method.py", "pack.tools", "pack.measures"),
    ],
    "a module is renamed": [
        ("tools.py", TOOLS, ""),
        ("kit.py", "", TOOLS),
        ("runner.py", "import parts, tools", "import kit as tools, parts"),
        ("method.py", "from pack.tools import size", "from pack.kit import size"),
    ],
    "a module becomes a package": [
        ("errors.py", "class Refused(ValueError):\n    pass\n", ""),
        ("refusals/__init__.py", "", "from .kinds import *\n"),
        ("refusals/kinds.py", "", "class Refused(ValueError):\n    pass\n"),
        ("runner.py", "pack.errors", "pack.refusals"),
    ],
    "an import names more": [
        ("runner.py", "from pack import parts, tools", "import pack.parts\nimport pack.tools as tools"),
        ("runner.py", "parts.first(given) - parts.second", "pack.parts.first(given) - pack.parts.second"),
    ],
    "an import goes into the function": [
        ("runner.py", "from pack.shapes import Shape\n", ""),
        ("runner.py", "    keep(total)\n", "    from pack.shapes import Shape as Made\n\n    keep(total)\n"),
        ("runner.py", "return Shape(", "return Made("),
    ],
    "another package is imported otherwise": [
        ("runner.py", "import torch\n", "from torch import argmax as most\nfrom torch import tensor\n"),
        ("runner.py", "torch.argmax(torch.tensor(", "most(tensor("),
        ("runner.py", "import numpy as np", "import numpy"),
        ("runner.py", "np.max", "numpy.max"),
    ],
    "a function is renamed": [
        ("tools.py", "def size", "def extent"),
        ("runner.py", "tools.size", "tools.extent"),
        ("method.py", "import size", "import extent"),
        ("method.py", "size(value)", "extent(value)"),
    ],
    "a class is renamed": [("shapes.py", "Base", "Figure")],
    "a constant is renamed": [("tools.py", "FACTOR", "TIMES")],
    "two that call each other are renamed": [
        ("parts/deep.py", "first", "front"),
        ("parts/deep.py", "second", "back"),
        ("parts/__init__.py", "import first", "import front"),
        ("parts/__init__.py", "import second", "import back"),
    ],
    "locals are renamed": [
        ("runner.py", "total", "amount"),
        ("runner.py", "item", "i"),
        ("runner.py", "grown", "enlarged"),
        ("runner.py", "best", "most"),
    ],
    "a helper of the method is renamed": [("method.py", "_key", "_order")],
    "a docstring": [("runner.py", '"""Runs it."""', '"""Runs it.\n\n    Well.\n    """')],
    "a docstring in place of pass": [("errors.py", "pass", '"""What was refused."""')],
    "a comment": [("runner.py", "# a difference", "# what is left")],
    "line breaks": [("runner.py", "(grown(total), best, name", "(\n        grown(total),\n        best, name")],
    "the message of an error": [("runner.py", 'f"negative: {total}"', 'f"{given} gives {total}, below 0"')],
    "a warning": [("runner.py", "the total %s is negative", "%s: negative")],
    "an annotation": [("runner.py", "given: int, scale: float", "given, scale: int"), ("runner.py", ") -> float", ")")],
    "the annotation of a local": [("runner.py", "    total = ", "    total: float = ")],
    "an alias for annotations": [("runner.py", "Sizes = tuple[int, ...]", "Sizes = list[int]")],
    "an import for annotations": [("runner.py", "import Callable", "import Callable, Mapping")],
    "another order of definitions": [
        ("tools.py", "FACTOR = 2\n", ""),
        ("tools.py", "", "\nFACTOR = 2\n"),
        ("shapes.py", "", "\nLAST = 1\n"),
    ],
    "definitions that nothing reaches": [
        ("tools.py", "", "\ndef more():\n    return unused(FACTOR)\n\n\nMORE = more()\n"),
    ],
    "a script at a module's end": [("tools.py", "", '\nif __name__ == "__main__":\n    print(size(1))\n')],
    "plumbing": [
        ("store.py", "return value", "return str(value)"),
        ("store.py", "keep", "put"),
        ("runner.py", "import keep", "import put as keep"),
    ],
    "a folder of data moves": [("runner.py", '.parent / "data"', '.parents[1] / "there" / "data"')],
}  # fmt: skip

OTHER: dict[str, list[Edit]] = {
    "a constant": [("parts/deep.py", "* 2", "* 3")],
    "the type of a constant": [("parts/deep.py", "* 2", "* 2.0")],
    "an operator": [("runner.py", "(given) - parts", "(given) + parts")],
    "two calls change places": [("runner.py", "first(given) - parts.second", "second(given) - parts.first")],
    "two locals change places": [("runner.py", "return value + best", "return best + value")],
    "a function of another package": [("runner.py", "torch.argmax", "torch.argmin")],
    "another package's function of that name": [("runner.py", "import numpy as np", "import scipy as np")],
    "the default of a parameter": [("runner.py", "scale: float = 0.5", "scale: float = 0.25")],
    "the default of a method's option": [("method.py", "share=0.5", "share=0.4")],
    "a keyword's value": [("runner.py", 'name="shape"', 'name="form"')],
    "a keyword": [("runner.py", "scale=scale", "size=scale")],
    "a parameter's name": [("parts/deep.py", "def second(given)", "def second(given, other=1)")],
    "an attribute": [("shapes.py", "self.total *", "self.best *")],
    "a field's name": [("shapes.py", "best: int", "most: int")],
    "what a dataclass takes as a field": [("shapes.py", "name: str", "name: ClassVar[str]")],
    "a decorator": [("shapes.py", "@dataclass(frozen=True)", "@dataclass")],
    "the body of a base class": [("shapes.py", "* scale", "/ scale")],
    "a base class": [("shapes.py", "Shape(Base)", "Shape")],
    "a constant of a module": [("tools.py", "FACTOR = 2", "FACTOR = 4")],
    "what changes a constant afterwards": [("tools.py", "", "\nFACTOR += 1\n")],
    "what is behind a re-export": [("parts/deep.py", "abs(given)", "given")],
    "what is re-exported": [("parts/__init__.py", "first as first", "second as first")],
    "what is imported under a name": [("runner.py", "import Shape", "import Base as Shape")],
    "what a module runs when it is imported": [("tools.py", "", "\nprint(FACTOR)\n")],
    "what an imported module runs": [("tools.py", "", "\nimport pack.more\n"), ("more.py", "", "print(1)\n")],
    "what the package runs": [("__init__.py", "", "print(1)\n")],
    "what a decorator of ours notes down": [
        ("tools.py", "", "\ndef noted(value):\n    return value\n\n\n@noted\ndef apart():\n    return 1\n"),
    ],
    "a function that the method is asked for": [("method.py", "", "\ndef repair(vlm):\n    return {}\n")],
    "what the method is asked for by name": [("method.py", "ROLE", "UNITS")],
    "a string that is no message": [("method.py", "studied", "reference")],
    "the file that is read": [("runner.py", '"data"', '"others"')],
    "a condition": [("runner.py", "if total < 0", "if total <= 0")],
    "one more statement": [("runner.py", "    keep(total)\n", "    keep(total)\n    keep(total)\n")],
    "what is raised": [("runner.py", "raise Refused", "raise KeyError")],
}  # fmt: skip

Hashed = Callable[[list[Edit]], list[str]]


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hashed:
    """Writes the package with these edits and hashes it."""
    places = itertools.count()

    def hashes(edits: list[Edit]) -> list[str]:
        files = dict(PACK)
        for file, old, new in edits:
            text = files.get(file, "")
            assert old in text, (file, old)
            files[file] = text.replace(old, new) if old else text + new
        root = tmp_path / f"{next(places)}"
        for file, text in files.items():
            path = root / "pack" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(root)
        return code_hash.hashes(["pack.runner"], ["pack.method"], ["pack.store"])

    return hashes


@pytest.mark.parametrize("change", SAME)
def test_same_hash(hashed: Hashed, change: str) -> None:
    assert hashed(SAME[change]) == hashed([])


@pytest.mark.parametrize("change", OTHER)
def test_another_hash(hashed: Hashed, change: str) -> None:
    assert hashed(OTHER[change]) != hashed([])


def test_a_file_that_changes_is_read_again(hashed: Hashed, tmp_path: Path) -> None:
    before, path = hashed([]), tmp_path / "0" / "pack" / "tools.py"
    for text, same in ((TOOLS.replace("2", "4"), False), (TOOLS, True)):
        path.write_text(text)
        os.utime(path, ns=(len(text), int(same)))  # another time, however coarse the clock
        assert (code_hash.hashes(["pack.runner"], ["pack.method"], ["pack.store"]) == before) is same


def test_relative_and_missing_imports(hashed: Hashed) -> None:
    relative = [
        ("method.py", "from pack.tools", "from .tools"),
        ("parts/__init__.py", "from pack.parts.deep", "from .deep"),
    ]
    assert hashed([(file, old, new) for file, old, new in relative]) == hashed([])
    assert hashed([("method.py", "from pack.tools import", "from pack.nowhere import")]) != hashed([])


# --- the package itself -------------------------------------------------------------------------------------

METRICS = ("accuracy", "flops")


def codes() -> dict[str, str]:
    staleness.code.cache_clear()
    return {name: staleness.code(name, METRICS, "qwen2_vl") for name in registry.methods()}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of our sources, which is hashed in their place."""
    for top in ("harness", registry.BUILT_IN):
        for path in (ROOT / top).rglob("*.py"):
            place = tmp_path / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    monkeypatch.setattr("harness.trials.code_hash.walk.origin", lambda top: (str(tmp_path / top),))
    yield tmp_path
    staleness.code.cache_clear()


def _file(copy: Path, module: str) -> Path:
    """A module's file in the copy."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin
    return copy / Path(spec.origin).relative_to(ROOT)


def test_each_method_has_its_hash() -> None:
    hashes = codes()
    assert len(set(hashes.values())) == len(hashes) > 10


def test_a_copy_elsewhere_has_the_same_hashes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = codes()
    monkeypatch.undo()
    assert there == codes()


@pytest.mark.parametrize(
    ("module", "old", "new", "touched"),
    [
        ("harness.metrics.accuracy", "FEW = ", "FEW = 1 + ", None),
        ("harness.trials.pruner", "BATCH = 16", "BATCH = 32", None),
        (registry.module_path("wanda"), "def rank(", "CONSTANT = 1\n\n\ndef rank(", {"wanda"}),
        (registry.module_path("taylor"), ".mean(0)", ".sum(0)", {"taylor"}),
        ("harness.report.tables", "def ", "CONSTANT = 1\n\n\ndef ", set()),
        ("harness.cli", "def ", "CONSTANT = 1\n\n\ndef ", set()),
    ],
)
def test_who_is_touched(copy: Path, module: str, old: str, new: str, touched: set[str] | None) -> None:
    """None: all methods."""
    before, path = codes(), _file(copy, module)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    os.utime(path, ns=(1, 1))
    after = codes()
    assert {name for name in after if after[name] != before[name]} == (set(before) if touched is None else touched)


@pytest.mark.parametrize("module", sorted(set(staleness.RECOVERIES.values())))
def test_a_recovery_touches_the_trials_that_use_it(copy: Path, module: str) -> None:
    def hashes() -> dict[str, str]:
        staleness.code.cache_clear()
        return {
            name: staleness.code("random", METRICS, "qwen2_vl", (name,) if name != "none" else ())
            for name in ("none", *staleness.RECOVERIES)
        }

    before, path = hashes(), _file(copy, module)
    path.write_text(re.sub(r"(?m)^    (fitting, held|device|head) =", r"    _ = 0\n    \1 =", path.read_text()))
    os.utime(path, ns=(1, 1))
    touched = {name for name, code in hashes().items() if code != before[name]}
    assert touched == {name for name, its in staleness.RECOVERIES.items() if its == module}


def test_hashing_imports_nothing_of_what_it_hashes() -> None:
    check = (
        "import sys; from harness import registry; from harness.trials import staleness\n"
        "for name in registry.methods(): staleness.code(name, ('accuracy', 'latency'), 'qwen2_vl')\n"
        "assert not {'torch', 'harness.trials.worker', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
