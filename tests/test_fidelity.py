"""Fidelity: nothing has changed for the same model, known changes are counted, the dense model answers once."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_accuracy import NAMES, talker
from test_tasks import made_sets, sets

from harness import tasks
from harness.metrics import accuracy, fidelity
from harness.prompts import encode
from harness.tasks.adapter import Adapter
from harness.types import VLM, Trial

__all__ = ["made_sets", "sets", "talker"]  # fixtures


class Context:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.replies: dict[Any, Any] = {}

    def progress(self, text: str) -> None:
        self.said.append(text)

    def attach_samples(self, table: Any) -> None:
        pass


def asking(*names: str, limit: int | None = None) -> Trial:
    metrics = ("accuracy", "fidelity")
    return Trial("b", "m", "none", {}, "all", "both", 1.0, 0, names, "validation", limit, metrics, {}, {}, {})


def changed(vlm: VLM, by: float) -> VLM:
    model = copy.deepcopy(vlm.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=generator)
    return replace(vlm, model=model)


def test_a_copy_is_faithful(sets: Path, talker: VLM) -> None:
    found = fidelity.measure(changed(talker, 0), talker, asking(*NAMES), Context())
    assert (found["flips"], found["agreement"], found["lost"], found["gained"]) == (0, 1, 0, 0)
    assert found["kl_first_token"] == pytest.approx(0, abs=1e-6)


def test_figures_are_those_of_the_answers(sets: Path, talker: VLM) -> None:
    """Against the answers of two evaluations and, for KL, one forward pass by hand."""
    other = changed(talker, 0.02)
    found = fidelity.measure(other, talker, asking("mini_gqa"), Context())
    tables = [tasks.evaluate(vlm, ["mini_gqa"], "validation", None)[1] for vlm in (talker, other)]
    pairs = list(zip(*(table["answer"].to_pylist() for table in tables), strict=True))
    assert 0 < found["flips"] == pytest.approx(sum(a != b for a, b in pairs) / 24)
    assert found["agreement"] == pytest.approx(1 - found["flips"])
    assert found["flips_lo"] <= found["flips"] <= found["flips_hi"]

    total = 0.0
    for sample in tasks.samples(["mini_gqa"], "validation", 24, 0):
        inputs = encode(talker.processor, [[sample.image]], [sample.question])
        with torch.no_grad():
            dense, pruned = (v.model(**inputs).logits[0, -1].double().log_softmax(-1) for v in (talker, other))
        total += float((dense.exp() * (dense - pruned)).sum())
    assert total > 0.01 and found["kl_first_token"] == pytest.approx(total / 24, rel=1e-3)


def test_lost_and_gained_are_counted_by_score(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense says red to all, pruned 2: of three questions one is lost, one gained, all flip."""
    other = changed(talker, 0)

    def say(self: Adapter, batch: list[Any], prepared: Any) -> list[str]:
        self.firsts |= {(r.task_name, r.doc_id): torch.full((9,), 1 / 9).log() for r in batch}
        return ["2" if self.vlm is other else "red" for _ in batch]

    monkeypatch.setattr(Adapter, "_answer", say)
    found = fidelity.measure(other, talker, asking(*NAMES), Context())
    assert found["flips"] == 1 and found["agreement"] == 0 and found["kl_first_token"] == pytest.approx(0, abs=1e-6)
    assert found["lost"] == pytest.approx(1 / 3) and found["gained"] == pytest.approx(1 / 3)


def test_each_model_answers_once(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense over all trials of a worker; pruned for accuracy and fidelity together."""
    asked: list[int] = []
    answer = tasks.answer
    monkeypatch.setattr(
        tasks, "answer", lambda vlm, *args, **more: asked.append(id(vlm.model)) or answer(vlm, *args, **more)
    )
    others = [changed(talker, by) for by in (0.01, 0.02)]
    for other in others:
        trial = asking("mini_gqa", limit=6)
        accuracy.measure(other, talker, trial, Context())
        fidelity.measure(other, talker, trial, Context())
    assert sorted(asked) == sorted([id(talker.model), *(id(other.model) for other in others)])


def test_answers_are_forgotten_with_their_model(sets: Path, talker: VLM) -> None:
    other = changed(talker, 0.01)
    tasks.answer_cached(other, ["mini_gqa"], "validation", 3)
    model = weakref.ref(other.model)
    del other
    gc.collect()
    assert model() is None


def test_other_questions_are_other_answers(sets: Path, talker: VLM) -> None:
    assert tasks.answer_cached(talker, ["mini_gqa"], "validation", 3).table.num_rows == 3
    assert tasks.answer_cached(talker, ["mini_gqa"], "validation", 6).table.num_rows == 6
    assert tasks.answer_cached(talker, ["mini_gqa"], "dev", 6).table.num_rows == 6
    assert tasks.answer_cached(talker, ["mini_gqa"], "validation", 3).firsts is None
    assert tasks.answer_cached(talker, ["mini_gqa"], "validation", 3, first=True).firsts is not None
