"""What check-method says of choices of visual tokens that break the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checks import method_contract, token_rules
from harness.types import VLM, Ranking, TokenRule


def first(states: Any, count: int) -> Any:
    return torch.arange(count)


def by_attention(states: Any, count: int, attention: Any) -> Any:
    return attention.argsort()[:count]


def turned(count: int, states: Any) -> Any:
    return torch.arange(count)


def many(states: Any, count: int) -> Any:
    return torch.arange(count + 1)


def twice(states: Any, count: int) -> Any:
    return torch.zeros(count).long()


def drawn(states: Any, count: int) -> Any:
    return torch.randperm(len(states))[:count]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (None, "`rank` gave NoneType as tokens; it must give TokenRule(keep_tokens)"),
        (TokenRule(3), "keep of TokenRule is int; it must be a function"),  # type: ignore[arg-type]
        (TokenRule(turned), "the first parameters of the choice of tokens must be states and count"),
        (TokenRule(by_attention), "takes `attention` exactly if attention of TokenRule is text or vision"),
        (TokenRule(first, attention="text"), "takes `attention` exactly if"),
        (TokenRule(first, attention="heads"), "choose from: none, text, vision"),  # type: ignore[arg-type]
        (TokenRule(first, -1), "layer of TokenRule is -1"),
        (TokenRule(first, options={"seed": 1}), "does not take the option 'seed'"),
        (TokenRule(lambda states, count: torch.arange(count)), "is not a plain function of a file"),
    ],
)
def test_faults_of_a_rule(rule: Any, words: str) -> None:
    assert any(words in fault for fault in token_rules.faults(rule))


def test_what_cannot_be_examined_is_a_finding(tmp_path: Path, tiny: VLM) -> None:
    """And not the end of the check: the signature of a builtin, attention that no layer gives, a choice that exits."""
    head = (
        "import torch\nfrom harness.types import Ranking, TokenRule\nUNITS = 'tokens'\n"
        "def leaves(states, count): raise SystemExit(0)\n"
        "def by(states, count, attention): return attention.argsort()[:count]\n"
        "def rank(vlm, calibration, *, seed): return Ranking({}, tokens=TokenRule("
    )
    for rule, check, words in (
        ("torch.topk", "scores", "cannot be checked: ValueError: no signature found"),
        ("by, 0, 'text'", "budgets", "cannot be checked: tokens: layer: 0 has no layer before it"),
        ("leaves", "budgets", "the choice of tokens raised SystemExit: 0"),
    ):
        file = tmp_path / "chooses.py"
        file.write_text(f"{head}{rule}))\n")
        breaches = method_contract.breaches(*method_contract.load(str(file)), tiny)
        assert {breach.check for breach in breaches} == {check} and words in breaches[0].text, breaches


def test_a_good_rule_has_no_fault() -> None:
    assert token_rules.faults(TokenRule(first)) == token_rules.faults(TokenRule(by_attention, 1, "text")) == []


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (many, "the choice of tokens raised ValueError: tokens: the method keeps"),
        (twice, "must keep different positions from 0 to"),
        (drawn, "the logits of a question depend on the others in its batch"),
    ],
)
def test_faults_of_a_choice_show_on_the_tiny_model(tiny: VLM, keep: Any, words: str) -> None:
    faults = token_rules.unmet(tiny, Ranking({}, tokens=TokenRule(keep)), "mine", method_contract.samples())
    assert any(words in fault for fault in faults)
