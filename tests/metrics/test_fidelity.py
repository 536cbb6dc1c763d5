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

from harness import tasks
from harness.families import encode
from harness.metrics import accuracy, fidelity
from harness.tasks.adapter import Adapter
from harness.trials.caches import ModelCache
from harness.types import VLM, MetricContext, Trial
from tests.support.answers import TASK_NAMES
from tests.support.contexts import Attached
from tests.support.question_files import asked
from tests.support.trials import dense_trial


def asking(*names: str, limit: int | None = None) -> Trial:
    return dense_trial(*names, limit=limit, metrics=("accuracy", "fidelity"))


def kept(vlm: VLM, trial: Trial, context: MetricContext, *, first: bool = False) -> tasks.Answers:
    return accuracy.kept_answers(vlm, trial, context, first=first, name="")


def changed(vlm: VLM, by: float) -> VLM:
    model = copy.deepcopy(vlm.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=generator)
    return replace(vlm, model=model)


def test_a_copy_is_faithful(sets: Path, talker: VLM) -> None:
    found = fidelity.measure(changed(talker, 0), talker, asking(*TASK_NAMES), Attached())
    assert (found["flips"], found["agreement"], found["lost"], found["gained"]) == (0, 1, 0, 0)
    assert found["kl_first_token"] == pytest.approx(0, abs=1e-6)


def test_figures_are_those_of_the_answers(sets: Path, talker: VLM) -> None:
    """Against the answers of two evaluations and, for KL, one forward pass by hand."""
    other = changed(talker, 0.02)
    found = fidelity.measure(other, talker, asking("mini_gqa"), Attached())
    tables = [tasks.evaluate(vlm, asked(["mini_gqa"], "validation", None))[1] for vlm in (talker, other)]
    pairs = list(zip(*(table["answer"].to_pylist() for table in tables), strict=True))
    assert 0 < found["flips"] == pytest.approx(sum(a != b for a, b in pairs) / 24)
    assert found["agreement"] == pytest.approx(1 - found["flips"])
    assert found["flips_lo"] <= found["flips"] <= found["flips_hi"]

    total = 0.0
    for sample in tasks.samples(asked(["mini_gqa"], "validation"), 24, 0):
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
    found = fidelity.measure(other, talker, asking(*TASK_NAMES), Attached())
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
    values = ModelCache()
    for other in others:
        trial = asking("mini_gqa", limit=6)
        accuracy.measure(other, talker, trial, Attached(values=values))
        fidelity.measure(other, talker, trial, Attached(values=values))
    assert sorted(asked) == sorted([id(talker.model), *(id(other.model) for other in others)])


def test_answers_are_forgotten_with_their_model(sets: Path, talker: VLM) -> None:
    other, context = changed(talker, 0.01), Attached()
    kept(other, asking("mini_gqa", limit=3), context)
    model = weakref.ref(other.model)
    del other
    gc.collect()
    assert model() is None


def test_other_questions_are_other_answers(sets: Path, talker: VLM) -> None:
    context, three, six = Attached(), asking("mini_gqa", limit=3), asking("mini_gqa", limit=6)
    assert kept(talker, three, context).table.num_rows == 3
    assert kept(talker, six, context).table.num_rows == 6
    dev = replace(six, questions=replace(six.questions, split="dev"))
    assert kept(talker, dev, context).table.num_rows == 6
    assert not kept(talker, dev, context).table.equals(kept(talker, six, context).table)
    assert kept(talker, three, context).firsts is None
    assert kept(talker, three, context, first=True).firsts is not None
