"""What a user writes in YAML is plain data, or refused in one line; of a key that stands twice no value is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.trials import yaml_text
from harness.types import InputError
from tests.support.paths import ROOT

SHIPPED = [file for folder in ("harness", "baselines") for file in sorted((ROOT / folder).rglob("*.yaml"))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "give the key 'a' once: .* line 3"),
        ("a: 1\n'a': 1", "give the key 'a' once"),
        ("a: {b: [{c: 1, c: 2}]}", "give the key 'c' once"),
        ("<<: {a: 1}\n<<: {b: 1}", "give the key '<<' once"),
        ("!!bool x", "'x' is no bool"),
        ("a: !!timestamp x", "'x' is no timestamp"),
        ("a: !!int ''", "'' is no int"),
        ("a: !!float x", "'x' is no float"),
        ("a: 2024-13-45", "'2024-13-45' is no timestamp"),
        (f"a: 1{':59' * 200}.5", "is no float"),
        (f"a: {'9' * 5000}", "is no int"),
        ("a: [", "while parsing"),
        ("[" * 5000, "recursion"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=f"^here: not YAML: .*{words}") as error:
        yaml_text.value(text, "here: ")
    assert "\n" not in str(error.value)


def test_a_merged_key_may_be_given_again() -> None:
    text = "a: &a {x: 1}\np: {q: &b {<<: *a, x: 2}}\nc: {<<: *b}\n"
    assert yaml_text.value(text, "") == {"a": {"x": 1}, "p": {"q": {"x": 2}}, "c": {"x": 2}}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_files_give_each_key_once(file: Path) -> None:
    """Also those that others of our readers take as they are."""
    try:
        yaml_text.value(file.read_text(encoding="utf-8"), "")
    except InputError as error:
        assert "tag '!function'" in str(error), error  # lmms-eval's own
