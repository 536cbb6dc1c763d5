"""Names are found without importing what they name; other packages add to them; options are checked."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.records.record import Code
from harness.types import Column, InputError

PLUGIN = '''"""Alphabetical: units in the order of the alphabet.

More about it.
"""

from __future__ import annotations

from typing import Literal

from harness.types import Ranking

REGIME, UNITS = "trained", "heads"


def rank(vlm, calibration, *, seed: int = 0, order: Literal["up", "down"] = "up", share: float = 0.5, n: int = 3,
         low: float | int = 1, plain=None) -> Ranking:
    return Ranking({})
'''


@pytest.fixture
def fresh() -> Iterator[None]:
    """What the registry has found so far is forgotten, before and after."""
    for cached in (registry._modules, registry._named):
        cached.cache_clear()
    yield
    for cached in (registry._modules, registry._named):
        cached.cache_clear()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> str:
    """A method of another package, made known by an entry point; and one that takes a shipped name."""
    (tmp_path / "their_methods.py").write_text(PLUGIN)
    (tmp_path / "their_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = EntryPoints(
        [
            EntryPoint("alphabetical", "their_methods:rank", registry.GROUP),
            EntryPoint("broken", "their_broken", registry.GROUP),
            EntryPoint("random", "their_methods", registry.GROUP),
            EntryPoint("something", "their_methods", "another.group"),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", lambda **given: points.select(**given))
    monkeypatch.delitem(sys.modules, "their_methods", raising=False)
    return "alphabetical"


# --- methods ----------------------------------------------------------------------------------------------


def test_names_are_listed_without_importing_a_method() -> None:
    code = (
        "import sys; from harness import registry; names = registry.methods();"
        "assert {'none', 'random', 'magnitude', 'taylor', 'infoprune'} <= set(names), names;"
        "assert not {'linalg', 'low_rank'} & set(names), names;"
        "loaded = [m for m in sys.modules if m.startswith('baselines.') or m == 'torch'];"
        "assert not loaded, loaded;"
        "registry.method('random');"
        "loaded = [m for m in sys.modules if m.startswith('baselines.')];"
        "assert loaded == ['baselines.random'], loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_method_says_what_it_is() -> None:
    studied = registry.method("infoprune")
    assert (studied.role, studied.regime({}), studied.units) == ("studied", "trained", "both")
    assert studied.title.startswith("InfoPrune") and not studied.title.endswith(".")
    assert studied.options["alpha"] == 0.5 and "seed" not in studied.options
    assert registry.method("random").role == "floor" and not registry.method("random").options


def test_an_unknown_method_offers_the_nearest_and_lists_all() -> None:
    with pytest.raises(InputError, match=r"unknown method 'magnitud'; did you mean 'magnitude'\? choose from: ") as e:
        registry.method("magnitud")
    assert all(name in str(e.value) for name in registry.methods())


@pytest.mark.parametrize("content", [b"def rank(vlm, calibration, *, seed)\n", b"\xff\xfe = 1\n", b"x = '\0'\n"])
def test_a_method_that_is_no_python_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    package = tmp_path / "contestants"
    package.mkdir()
    for name, text in {"__init__": b"", "broken": content}.items():
        (package / f"{name}.py").write_bytes(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "BUILT_IN", "contestants")
    with pytest.raises(InputError, match=r"broken.py: not Python that can be read: "):
        registry.methods()


def test_a_path_to_no_file_is_no_method() -> None:
    with pytest.raises(InputError, match=r"method mine/power.py: no such file"):
        registry.method("mine/power.py")


def test_other_packages_add_methods(plugin: str) -> None:
    assert plugin in registry.methods() and "something" not in registry.methods()
    assert "their_methods" not in sys.modules  # listed, not imported
    method = registry.method(plugin)
    assert method.title == "Alphabetical: units in the order of the alphabet"
    assert (method.regime({}), method.units, method.role) == ("trained", "heads", "reference")
    assert method.module.rank.__module__ == "their_methods"
    assert set(method.options) == {"order", "share", "n", "low", "plain"}  # the seed is the board's


def test_shipped_names_cannot_be_taken(plugin: str) -> None:
    assert registry.method("random").module.__name__ == "baselines.random"


def test_a_missing_import_of_a_method_is_passed_on(plugin: str) -> None:
    assert "broken" in registry.methods()
    with pytest.raises(ImportError, match="not_installed_anywhere"):
        registry.method("broken")


@pytest.mark.parametrize("said", ['"""   """', "", '"""\n\n"""'])
def test_a_method_that_says_nothing_of_itself_is_called_by_its_name(tmp_path: Path, said: str) -> None:
    file = tmp_path / "silent.py"
    file.write_text(f"{said}\ndef rank(vlm, calibration, *, seed): ...\n")
    assert registry.method(str(file)).title == "silent"


def test_a_file_that_exits_ends_nothing(tmp_path: Path) -> None:
    file = tmp_path / "exits.py"
    file.write_text("exit(0)\n")
    with pytest.raises(InputError, match=r"exits.py: cannot be imported: SystemExit: 0"):
        registry.method(str(file))


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, {}),
        ({"order": "down"}, {"order": "down"}),
        ({"order": "up", "share": 0.5, "n": 3}, {}),  # defaults are dropped: one variant has one id
        ({"share": 1}, {"share": 1.0}),
        ({"low": 2}, {"low": 2}),
        ({"low": 0.25}, {"low": 0.25}),
        ({"plain": [1, "x"]}, {"plain": [1, "x"]}),
    ],
)
def test_options_that_fit(plugin: str, given: dict[str, Any], left: dict[str, Any]) -> None:
    checked = registry.method(plugin).check(given, "")
    assert checked == left
    assert [type(value) for value in checked.values()] == [type(value) for value in left.values()]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"ordr": "up"},
            r"here: unknown option of method 'alphabetical' 'ordr'; did you mean 'order'\? choose from: low",
        ),
        ({"seed": 1}, "unknown option of method 'alphabetical' 'seed'"),
        (
            {"order": "sideways"},
            r"here: option 'order' of method 'alphabetical': must be 'up' or 'down' \(given: 'sideways'\)",
        ),
        ({"share": "much"}, "option 'share'.*must be a number"),
        ({"share": float("nan")}, "option 'share'.*finite"),
        ({"n": 2.5}, "option 'n'.*whole number"),
        ({"n": "3"}, "option 'n'.*whole number"),
        ({"n": None}, "option 'n'"),
        ({"low": "x"}, "option 'low'.*must be a number or a whole number"),
    ],
)
def test_options_that_do_not(plugin: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        registry.method(plugin).check(given, "here: ")


@pytest.mark.parametrize("kind", ["object", "type('Own', (), {})"])
def test_an_option_whose_type_says_nothing_is_named(tmp_path: Path, kind: str) -> None:
    """As an array's does; `object` takes any value."""
    file = tmp_path / "odd.py"
    file.write_text(f"Kind = {kind}\ndef rank(vlm, calibration, *, seed, a: Kind = None): ...\n")
    method = registry.method(str(file))
    if kind == "object":
        assert method.check({"a": 3}, "here: ") == {"a": 3}
        return
    with pytest.raises(InputError, match="here: option 'a' of method 'odd': values of its type cannot be checked"):
        method.check({"a": 3}, "here: ")


# --- the rest ---------------------------------------------------------------------------------------------


def test_metrics_are_found_and_an_unknown_one_offers_the_nearest() -> None:
    assert {"accuracy", "flops", "latency"} <= set(registry.metrics())
    assert registry.metric("flops").__module__ == "harness.metrics.flops"
    with pytest.raises(InputError, match=r"unknown metric 'latncy'; did you mean 'latency'\?"):
        registry.metric("latncy")


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name, folder in registry.MODELS.items():
        assert registry.model(name) == str(folder)
    assert registry.model(str(tmp_path)) == str(tmp_path) and registry.model("here") == "here"
    assert registry.model("owner/name") == "owner/name"
    with pytest.raises(InputError, match=r"unknown model 'mini-qwen2'; did you mean 'mini-qwen2-vl'\?"):
        registry.model("mini-qwen2")
    for missing in ("./there", "/no/such/folder", "here/there", "a/b/c"):
        with pytest.raises(InputError, match=f"model {missing}: no such folder"):
            registry.model(missing)


def test_boards(tmp_path: Path) -> None:
    assert {"demo", "reference"} <= set(registry.boards())
    assert registry.board("demo").is_file()
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert registry.board(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(InputError, match=r"there\.yml: no such file"):
        registry.board("there.yml")
    with pytest.raises(InputError, match=r"unknown board 'dmeo'; did you mean 'demo'\?"):
        registry.board("dmeo")


def test_a_column_belongs_to_one_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    fidelity = importlib.import_module("harness.metrics.fidelity")
    monkeypatch.setattr(fidelity, "COLUMNS", (*fidelity.COLUMNS, Column("speedup_lo")))
    registry.columns.cache_clear()
    try:
        with pytest.raises(InputError, match="fidelity and latency both declare the column 'speedup_lo'"):
            registry.columns()
    finally:
        registry.columns.cache_clear()


def test_a_column_is_better_higher_or_lower() -> None:
    with pytest.raises(InputError, match="column 'flips': better is 'more'"):
        Column("flips", better="more")  # type: ignore[arg-type]


def test_a_metric_without_measure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(importlib.import_module("harness.metrics.flops"), "measure")
    with pytest.raises(InputError, match=r"harness/metrics/flops\.py: the function `measure` is missing"):
        registry.metric("flops")


@pytest.mark.parametrize("broken", ["none there", "another's folder", "no commit"])
def test_without_a_word_of_git_the_revision_is_unknown(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where git is not installed or refuses a folder that belongs to another user."""
    monkeypatch.setattr(registry, "HERE", tmp_path / "harness")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    if broken == "none there":
        monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    elif broken == "another's folder":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    registry.code.cache_clear()
    try:
        code = registry.code()
    finally:
        registry.code.cache_clear()
    assert code["version"] and code["revision"] is code["dirty"] is None
    assert "revision" not in str(Code(**code)) and capfd.readouterr() == ("", "")
