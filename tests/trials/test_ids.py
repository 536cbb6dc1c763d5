"""The ids of all trials of the shipped boards: stored records are found by them, so they stay."""

from __future__ import annotations

from hashlib import sha256

import pytest

from harness import registry, tasks
from harness.trials import spec
from harness.types import SCOPES

# Board -> trials, first id, last id, 16 hex digits of the SHA-256 over all ids, one a line.
IDS = {
    "ablation": (103, "a89a3db427fee49f", "f0b11813dd824dcf", "b8b73181fe5aa6a3"),
    "ablation-ffn": (67, "cec6a5de26ec9404", "0b40520c8429afef", "0dac23f13a9101ab"),
    "ablation-heads": (103, "be4abab5a152ef0f", "e290963cb1410125", "9dce8ccaae61adc7"),
    "bits": (12, "ee90a00d0c71303b", "58d78c97fbd92ed5", "f36011920db21750"),
    "choices": (394, "e8a8406cab00af81", "4195cf1989c0ac6c", "636f4b480572c843"),
    "demo": (13, "b8f308cb9a6549a9", "4bd81c2bb3e593bf", "c95d9e3977c0bf99"),
    "draws": (1009, "f3514f411bef346f", "e8c30558d34dcb9e", "18fc81062e509118"),
    "ffn": (385, "9c3a095ffa6f9117", "c631181f242836c0", "3f0da76644811c0c"),
    "geometry-llava-1.5-7b": (55, "b6404c500563d38d", "0231b5134339a55d", "3db45084c01dc92d"),
    "geometry-mini": (19, "86675ec0fc9f69df", "e4a2d904619e7183", "af6b483add12dc22"),
    "geometry-qwen2-vl-2b": (55, "a2d4fb4908e4fb37", "13d6d1e6497d92c4", "32344fe279c1ef7b"),
    "geometry-qwen2-vl-7b": (55, "4d090ffb7dbd335d", "8f0147c2dc758724", "00a334033938c7ef"),
    "heads": (298, "bea45821b465d62a", "00611f664c18864d", "4f3f7ea7889856e0"),
    "layers": (67, "46995d9e504f6419", "e928cac718a1554c", "d0d8c4cbb564e8dc"),
    "options": (451, "9d5e873511c553c8", "1259306f1f087457", "f3a9165e2b690219"),
    "options-choices": (97, "16bbca43b3ca9691", "38a5dd229a284b91", "aa4bc6bd565771e6"),
    "options-ffn": (111, "85831699d8be3b98", "cc7a41c75b96c1fb", "c9b52bc1a291dca8"),
    "options-heads": (121, "51c08c5a912d8908", "d522826ee5cad99d", "3fec82796332a71a"),
    "options-layers": (37, "2c0a0f77f37d201e", "4971797e28ecd06c", "6fbb68c35f236c91"),
    "paper": (577, "dc2a12545f2dcbfd", "ba6ca85f2753b491", "7285e93c7e8c2f48"),
    "pretrained": (1189, "fe5f3a9952f06bee", "45088be2b5599704", "d851561db830daf2"),
    "pretrained-ffn": (89, "be797f2c7894b106", "0218884ef8a798fc", "c7e757233d9570bc"),
    "pretrained-heads": (81, "49edab13c502704f", "340a7987caf939cf", "c94a0d4825e90703"),
    "pretrained-orders": (40, "d3f854b6978033a0", "603aa0923aa7b851", "df7c29ff34f88bab"),
    "recoveries": (49, "ee3dacf6e40cc2b5", "e3af374851d4e53a", "63b21d2922a54359"),
    "recovery-rates": (41, "2ca3ad81a40c56df", "4784dc71ef531b52", "ab879099918d401a"),
    "reference": (1801, "f87da4345c0718ad", "c17ffa9ef78ef93c", "d9788f8b24928f95"),
    "reference-check": (33, "ab9eaadb4c69a1d6", "bea562849920aa28", "20c55a8da0c250dc"),
    "reference-check-heads": (6, "07fb93e22cd76ab6", "5e084fcc0c12eb33", "31bd3a8efd36158f"),
    "tokens": (63, "e014fa4c1e810dc8", "f17b2fbd7fce84b3", "cb6b5ccabb98d9dd"),
    "tuned": (181, "0931be2119463c01", "0edea986c0151520", "154f889ff9604417"),
    "tuned-rates": (69, "c1be0900c05d6568", "bfc0c67d625d7800", "0ca906262193a98f"),
}


def test_every_shipped_board_is_listed() -> None:
    assert set(registry.boards()) == set(IDS)


@pytest.mark.parametrize("board", IDS)
def test_trials_keep_their_ids(board: str, every_model: None) -> None:
    ids = [trial.id for trial in spec.read(board).trials()]
    assert (len(ids), ids[0], ids[-1], sha256("\n".join(ids).encode()).hexdigest()[:16]) == IDS[board]


def test_what_the_docs_say_of_demo_and_reference() -> None:
    demo, reference = spec.read("demo"), spec.read("reference")
    assert len(demo.trials()) == 1 + 4 * 3
    assert reference.scopes == SCOPES and reference.budgets == (0.9, 0.75, 0.5, 0.3125, 0.2, 0.1)
    assert set(reference.tasks) == set(tasks.names()) and reference.limit == 400
