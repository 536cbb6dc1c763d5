"""Kinds of units: their sets as text, in one form whatever their order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from harness.types import KINDS, kinds, unit_kinds
from harness.types.kinds import in_words, kinds_order

SETS = [chosen for size in range(1, len(KINDS) + 1) for chosen in itertools.combinations(KINDS, size)]


@pytest.mark.parametrize("chosen", SETS)
def test_a_set_has_one_text_whatever_its_order(chosen: tuple[Any, ...]) -> None:
    texts = {unit_kinds(list(order)) for order in itertools.permutations(chosen)}
    assert len(texts) == 1
    text = texts.pop()
    assert kinds(text) == chosen and unit_kinds(text) == text and unit_kinds("+".join(chosen)) == text


def test_what_the_first_records_hold_stays() -> None:
    assert [unit_kinds(text) for text in ("both", "heads", "ffn")] == ["both", "heads", "ffn"]
    assert unit_kinds(["ffn", "heads"]) == "both" and unit_kinds(["layers", "both"]) == "heads+ffn+layers"


def test_different_sets_have_different_texts_words_and_places() -> None:
    texts = [unit_kinds(chosen) for chosen in SETS]
    assert len(set(texts)) == len({in_words(text) for text in texts}) == len(SETS)
    assert sorted(texts, key=kinds_order)[0] == "both"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("neurons", "unknown kind of units 'neurons'; choose from: both, ffn, heads, layers, tokens"),
        (["layer"], "did you mean 'layers'"),
        ("heads,ffn", "unknown kind of units 'heads,ffn'"),
        (["ffn", "both"], "ffn is named twice"),
        (["layers", "layers"], "layers is named twice"),
        ([], "no kind is named"),
        (["heads", None], "unknown kind of units 'None'"),
        (7, "unknown kind of units '7'"),
        ([["heads"]], "unknown kind of units"),
        ({"heads": 1}, "unknown kind of units"),
        (None, "unknown kind of units 'None'"),
    ],
)
def test_what_is_no_set_of_kinds_is_named(value: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        unit_kinds(value)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_words() -> None:
    assert in_words("both") == "heads and FFN"
    assert in_words("ffn") == "FFN only"
    assert in_words("heads+ffn+tokens") == "heads, FFN and tokens"
