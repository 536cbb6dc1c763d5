"""A board with a wrong value is refused in words about the board, whichever key it is, not in those of a library."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.trials import spec
from harness.types import CalibrationSpec, Generation, InputError, LatencySpec, ReferenceInput, Tuning

BOARD: dict[str, Any] = {
    "name": "small",
    "model": "mini-qwen2-vl",
    "methods": ["random"],
    "budgets": [0.5],
    "tasks": ["mini_gqa"],
    "calibration": {"samples": 8},
}
RAW = (
    "Input should",
    "should be",
    "should have",
    "after validation",
    "a valid ",
    "unable to",
    "Field required",
    "Value error",
)
TYPES = ("Tuple", "tuple[", "constrained-", "literal[", ".bool", ".int", ".float")
WRONG: tuple[Any, ...] = (None, True, -1, 0, 2.5, "50%", [], ["50%"], [-3], [[1]], {}, {"a": 1}, 10**400, float("nan"))
PARTS = {
    "calibration": CalibrationSpec,
    "latency": LatencySpec,
    "reference_input": ReferenceInput,
    "tuning": Tuning,
    "generation": Generation,
}
KEYS = [
    *((key,) for key in spec.Board.model_fields),
    *((part, item.name) for part, kind in PARTS.items() for item in dataclasses.fields(kind)),
    *(("methods", key) for key in spec.Contestant.model_fields),
]


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_no_key_is_refused_in_pydantics_words(sets: Path, key: tuple[str, ...]) -> None:
    for value in WRONG:
        content: Any = {**BOARD, key[0]: value}
        if key[0] == "methods" and len(key) == 2:
            content["methods"] = [{"method": "random", key[1]: value}]
        elif len(key) == 2:
            content[key[0]] = {"method": "lora", key[1]: value} if key[0] == "tuning" else {key[1]: value}
        try:
            spec.check(content, Path("board.yaml"))
        except InputError as error:
            line = str(error)
            assert not [word for word in (*RAW, *TYPES) if word in line.partition("(given:")[0]], line
            assert line.startswith("board board.yaml: ") and "\n" not in line
            assert key[0] in line or "task" in line, line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": ["50%"]}, r"budgets\.0: must be a number \(given: '50%'\)"),
        ({"floors": "yes please"}, r"floors: must be true or false or a list"),
        ({"floors": [0.5, "x"]}, r"floors\.1: must be a number"),
        ({"align": 2.5}, r"align: must be a whole number or 'auto' or 'off'"),
        ({"limit": "all"}, r"limit: must be a whole number"),
        ({"reference_input": {"image": [64]}}, r"reference_input\.image\.1: this entry is missing"),
        ({"reference_input": {"image": [64, 64, 3]}}, r"reference_input\.image: must be a list of at most 2"),
        ({"random_weights": "maybe"}, r"random_weights: must be true or false"),
        ({"name": "a b"}, r"name: must be letters, digits"),
    ],
)
def test_plain_words(sets: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"board\.yaml: {words}"):
        spec.check({**BOARD, **changes}, Path("board.yaml"))
