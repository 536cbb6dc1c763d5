"""Accuracy through lmms-eval: official scores on known answers, and an adapter that hides nothing."""

from __future__ import annotations

import math
import random
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from lmms_eval.api.instance import Instance

from harness import tasks
from harness.metrics import accuracy, floors
from harness.tasks import adapter, data, suite
from harness.tasks.adapter import Adapter
from harness.tasks.ahead import Ahead
from harness.tasks.answers import loaded_suite
from harness.types import VLM, InputError
from tests.support.answers import TASK_NAMES, answers_of
from tests.support.contexts import Attached
from tests.support.question_files import asked, question_rows, rows_asked, write_parquet
from tests.support.trials import dense_trial

# --- scores -----------------------------------------------------------------------------------------------


def scored(path: Path, answer: str) -> float:
    """What the task made of this file gives the answer, on its first question."""
    task = suite.local(data.source("t", path, "validation", None), "validation")
    return task.process_results(dict(task.eval_docs[0]), [answer])["exact_match"]


@pytest.mark.parametrize(
    ("given", "answer", "score"),
    [
        (["red"] * 10, "red", 1.0),
        (["red"] * 10, " Red. ", 1.0),
        (["red"] * 10, "the red", 1.0),
        (["red"] * 10, "blue", 0.0),
        (["2"] * 10, "two", 1.0),
        (["red"] * 3 + ["blue"] * 7, "red", 0.9),  # leave one out: 3 annotators see 2 of 3 matches, 7 see 3
        (["red"] * 1 + ["blue"] * 9, "red", 0.3),  # 9 annotators see 1 of 3 matches, 1 sees none
        (["red"], "red", 1.0),
        (["red", "crimson"], "crimson", 1.0),
    ],
)
def test_soft_scores_by_hand(tmp_path: Path, given: list[str], answer: str, score: float):
    text = [{**row, "answers": given} for row in question_rows("mini_textvqa", 1)]
    assert scored(write_parquet(tmp_path / "a.parquet", text), answer) == pytest.approx(score)
    numbered = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(given)]
    entries = [{**row, "answers": numbered} for row in question_rows("mini_vqav2", 1)]
    assert scored(write_parquet(tmp_path / "b.parquet", entries), answer) == pytest.approx(score)


def test_annotators_without_their_own_ids_still_count(tmp_path: Path):
    """Ten equal entries would score 0 by the official comparison of entries."""
    same = [{**row, "answers": [{"answer": "red", "answer_id": 1}] * 10} for row in question_rows("mini_vqav2", 1)]
    assert scored(write_parquet(tmp_path / "a.parquet", same), "red") == 1.0


@pytest.mark.parametrize(("answer", "score"), [("red", 1), ("Red.", 1), ("a red", 0), ("blue", 0), ("", 0)])
def test_exact_match_by_hand(tmp_path: Path, answer: str, score: float):
    assert scored(write_parquet(tmp_path / "a.parquet", question_rows("mini_gqa", 1)), answer) == score


def test_result_and_samples_of_known_answers(sets: Path, tiny: VLM, monkeypatch: pytest.MonkeyPatch):
    """A model that answers every question "red": a third of the questions, in each task and of each image."""
    monkeypatch.setattr(Adapter, "_answer", lambda self, batch, prepared: ["red" for _ in batch])
    result, table = tasks.evaluate(tiny, asked(TASK_NAMES, "validation", None))
    assert result["mean"] == result["lo"] == result["hi"] == pytest.approx(1 / 3)
    for task in TASK_NAMES:
        own = result["tasks"][task]
        assert own == {"accuracy": pytest.approx(1 / 3), "lo": own["lo"], "hi": own["hi"], "n": 24, "images": 8}
    assert table.schema.names == ["task", "question_id", "image_id", "answer", "score"]
    assert table.schema.types == [pa.string()] * 4 + [pa.float64()]
    gqa = [row for row in table.to_pylist() if row["task"] == "mini_gqa"]
    assert [row["question_id"] for row in gqa] == [f"{i}-{n}" for i in range(8) for n in range(3)]
    assert [row["image_id"] for row in gqa] == [f"i{i}" for i in range(8) for _ in range(3)]
    assert [row["score"] for row in gqa] == [1, 0, 0] * 8


def test_asks_exactly_the_subset(sets: Path, tiny: VLM):
    result, table = tasks.evaluate(tiny, asked(["mini_gqa", "mini_vqav2"], "dev", 7))
    assert [own["n"] for own in result["tasks"].values()] == [7, 7]
    chosen = rows_asked("mini_gqa", "dev", 7)
    expected = [row["id"] for i, row in enumerate(question_rows("mini_gqa", 8, start=100)) if i in chosen]
    assert [row["question_id"] for row in table.to_pylist() if row["task"] == "mini_gqa"] == expected


def test_a_file_is_a_task(tmp_path: Path, tiny: VLM):
    path = str(write_parquet(tmp_path / "mine.parquet", question_rows("mini_textvqa", 10)))
    result, table = tasks.evaluate(tiny, asked([path], "validation", None))
    assert list(result["tasks"]) == [path] and result["tasks"][path]["n"] == table.num_rows == 18


def test_metrics_attach_samples_and_blank_floor(sets: Path, tiny: VLM):
    trial = dense_trial("mini_gqa", limit=6, metrics=("accuracy",))
    context = Attached()
    result = accuracy.measure(tiny, tiny, trial, context)
    assert result["tasks"]["mini_gqa"]["n"] == 6 and context.tables[0].num_rows == 6
    assert {name: result[name] for name in ("mean", "lo", "hi", "tasks")} == tasks.summary(context.tables[0])
    floor = floors.measure(tiny, tiny, trial, context)
    assert floor["blank"]["tasks"]["mini_gqa"]["n"] == 6 and len(context.tables) == 1


# --- the adapter ------------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_the_batch(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch):
    one = answers_of(talker, batch_size=1)
    assert len(set(one)) > 3  # the model does say different things
    assert answers_of(talker, batch_size=5) == one
    assert answers_of(talker, batch_size=64) == one
    assert answers_of(talker, batch_size=64) == one  # from kept inputs
    monkeypatch.setattr(adapter, "shares", lambda vlm: "")
    assert answers_of(talker, batch_size=64) == one  # each question with its own image features


@pytest.mark.parametrize("depth", [0, 2])
def test_short_memory_halves_the_batch(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch, depth: int):
    whole, real, sizes = answers_of(talker), adapter.Adapter._answer, []
    monkeypatch.setattr(adapter, "ahead", lambda model: depth)

    def answer(self: Any, requests: Any, prepared: Any, room: int = 2) -> list[str]:
        sizes.append(len(requests))
        prepared()  # what is encoded ahead is of the old size
        if len(requests) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, requests, prepared)

    monkeypatch.setattr(adapter.Adapter, "_answer", answer)
    found = tasks.answer(talker, asked(TASK_NAMES, "validation", 9))
    assert found.table["answer"].to_pylist() == whole and found.batch == 2 and max(sizes) > 2
    assert all(size <= 2 for size in sizes[sizes.index(2) :])  # and stays there
    monkeypatch.setattr(adapter.Adapter, "_answer", lambda self, *given: answer(self, *given, room=0))
    with pytest.raises(torch.OutOfMemoryError):
        tasks.answer(talker, asked(TASK_NAMES, "validation", 9))
    assert sizes[-1] == 1


def test_shares_of_the_batches_make_the_same_whole(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch):
    questions = asked(TASK_NAMES, "validation", 9)
    whole = tasks.answer(talker, questions, first=True, batch_size=4)
    shares = [tasks.answer_share(talker, questions, (k, 3), first=True, batch_size=4) for k in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]  # 27 questions in 7 batches
    made = []
    generate = Adapter._generate
    monkeypatch.setattr(
        Adapter, "_generate", lambda self, *of: made.append(adapter._places(of[0])) or generate(self, *of)
    )
    found = tasks.answer(talker, questions, first=True, batch_size=4, replies=shares[0] | shares[1] | shares[2])
    assert not made and found.table.equals(whole.table) and found.overlong == whole.overlong
    assert found.firsts is not None and whole.firsts is not None and torch.equal(found.firsts, whole.firsts)
    found = tasks.answer(talker, questions, batch_size=4, replies=shares[0] | shares[2])
    assert made == list(shares[1]) and found.table.equals(whole.table)  # what is missing is made
    made.clear()
    tasks.answer(talker, questions, batch_size=5, replies=shares[0])
    assert len(made) == 6  # other batches are other questions


def test_encoding_ahead_changes_no_answer(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch):
    whole, real, seen = answers_of(talker), adapter.Adapter._encode, []
    assert not seen and adapter.ahead(talker.model) == 0  # on a CPU it would only take the model's cores
    monkeypatch.setattr(adapter, "ahead", lambda model: 2)

    def encode(self: Any, requests: Any) -> Any:
        seen.append((threading.current_thread() is threading.main_thread(), len(requests)))
        return real(self, requests)

    monkeypatch.setattr(adapter.Adapter, "_encode", encode)
    assert answers_of(talker, batch_size=3) == whole
    assert len(seen) > 5 and not any(main for main, _ in seen)

    def fail(self: Any, requests: Any) -> Any:
        raise InputError("this image cannot be read")

    monkeypatch.setattr(adapter.Adapter, "_encode", fail)
    with pytest.raises(InputError, match="this image cannot be read"):
        answers_of(talker, batch_size=6)


def test_no_more_is_made_ahead_than_asked() -> None:
    made: list[int] = []

    def make(key: int) -> int:
        made.append(key)
        return threading.get_ident()

    with Ahead(make, 2) as batches:
        for key in range(9):
            assert batches.take(key, range(key + 1, 100)) != threading.get_ident()
            now = list(made)  # it may go on growing
            assert now == list(range(len(now))) and len(now) <= key + 3
        batches.take(50, [51, 52, 53])  # other keys than those that were begun
        assert 50 in made and 53 not in made
    count = len(made)
    with Ahead(make, 0) as batches:
        assert batches.take(7, [8, 9]) == threading.get_ident() and len(made) == count + 1


def test_answers_are_what_the_model_generates(sets: Path, talker: VLM):
    """One question by hand, with the processor's own call."""
    table = tasks.evaluate(talker, asked(["mini_gqa"], "validation", 1))[1].to_pylist()[0]
    row = next(row for row in question_rows("mini_gqa", 8) if row["id"] == table["question_id"])
    sample = next(
        s for s in tasks.samples(asked(["mini_gqa"], "validation"), 24, 0) if s.question_id == table["question_id"]
    )  # fmt: skip
    text = f"{row['question']}\nAnswer the question using a single word or phrase."
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = talker.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    inputs = talker.processor(text=[prompt], images=[sample.image], return_tensors="pt")
    model: Any = talker.model
    tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert table["answer"] == talker.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_blank_shows_grey_of_the_same_size(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch):
    shown: list[Any] = []

    def spy(processor: Any, images: Any, texts: Any, **how: Any) -> Any:
        shown.extend(image for own in images for image in own)
        return encode(processor, images, texts, **how)

    encode = adapter.encode
    seeing = answers_of(talker)
    monkeypatch.setattr(adapter, "encode", spy)
    blank = answers_of(talker, images="blank")
    grey = [image for image in shown if image.size == (48, 48)]
    assert len(grey) >= 27 and all(image.getcolors() == [(48 * 48, adapter.GREY)] for image in grey)
    assert blank != seeing
    assert answers_of(talker) == seeing  # and inputs kept from one are not used for the other


def test_limits_of_an_answer(tiny: VLM):
    own = Adapter(tiny)
    tokenizer = tiny.processor.tokenizer
    ids = tokenizer("one two\nthree")["input_ids"]
    end = tokenizer.eos_token_id
    assert own._text([*ids, end, *ids], {}) == "one two\nthree"
    assert own._text(ids, {"until": ["\n"]}) == "one two"
    assert own._text(ids, {"until": "three"}) == "one two"
    assert own._text(ids * 20, {"max_new_tokens": 1024}) == own._text((ids * 20)[:16], {})
    assert own._text(ids, {"max_new_tokens": 1}) == tokenizer.decode(ids[:1]).strip()
    assert own._text([end], {}) == ""


def test_checkpoint_settings_do_not_change_greedy(sets: Path, talker: VLM):
    before = answers_of(talker)
    config: Any = talker.model.generation_config
    was = config.to_dict()
    config.update(do_sample=True, temperature=5.0, top_p=0.1, top_k=2, repetition_penalty=3.0)
    try:
        assert answers_of(talker) == before
    finally:
        config.update(**was)


def test_a_failing_model_fails(sets: Path, talker: VLM, monkeypatch: pytest.MonkeyPatch):
    model: Any = talker.model
    head = model.get_output_embeddings()
    head.weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"NaN or Inf; the first layer with such an output is .*embed_tokens"):
        answers_of(talker)
    head.weight.data[0, 0] = 0
    for linear in ("model.language_model.layers.1.mlp.gate_proj", "model.visual.blocks.1.mlp.fc1"):
        model.get_submodule(linear).weight.data[0, 0] = math.inf
        with pytest.raises(FloatingPointError, match=f"the first layer with such an output is {linear}"):
            answers_of(talker)
    assert not any(module._forward_hooks for module in model.modules())

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr(talker.model, "generate", broken)
    with pytest.raises(RuntimeError, match="out of something"):
        answers_of(talker)


def test_a_failing_scorer_fails_at_once(sets: Path, tiny: VLM, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def broken(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        raise KeyError("scorer")

    task = loaded_suite(asked(["mini_vqav2"], "validation", 3))
    monkeypatch.setattr(task.tasks["mini_vqav2"].config, "process_results", broken)
    with pytest.raises(KeyError, match="scorer"):
        tasks.evaluate(tiny, asked(["mini_vqav2"], "validation", 3))
    assert len(calls) == 1


def test_leaves_no_trace(
    sets: Path,
    tiny: VLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """No network, nothing on stdout, no file, no random state touched, the model as it was."""

    def refuse(*args: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    weights = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    state = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().sum())
    tasks.evaluate(tiny, asked(TASK_NAMES, "validation", 5))
    assert state == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().sum())
    assert not list(tmp_path.iterdir())
    out, err = capsys.readouterr()
    assert out == "" and "Postprocessing" not in err
    after = tiny.model.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_a_changed_file_is_read_again(tmp_path: Path, tiny: VLM):
    path = write_parquet(tmp_path / "a.parquet", question_rows("mini_gqa", 5))
    first = tasks.evaluate(tiny, asked([str(path)], "validation", None))[1]
    write_parquet(path, question_rows("mini_gqa", 10))
    second = tasks.evaluate(tiny, asked([str(path)], "validation", None))[1]
    assert (first.num_rows, second.num_rows) == (9, 18)


def test_variants_have_names_of_their_own(tiny: VLM):
    variants = [
        Adapter(tiny),
        Adapter(tiny, label="plan 1"),
        Adapter(tiny, label="plan 2"),
        Adapter(tiny, images="blank"),
        Adapter(replace(tiny, weights_hash="other")),
    ]
    assert len({repr(variant) for variant in variants}) == len(variants)
    assert repr(Adapter(tiny)) == repr(Adapter(tiny)) and tiny.weights_hash in repr(variants[0])


def test_other_kinds_of_requests_are_refused(tiny: VLM):
    own = Adapter(tiny)
    request = Instance("loglikelihood", (), 0, metadata={"task": "t", "doc_id": 0, "repeats": 1})
    with pytest.raises(InputError, match="task t: scores likelihoods"):
        own.loglikelihood([request])
    with pytest.raises(InputError, match="task t: has several rounds"):
        own.generate_until_multi_round([request])
    with pytest.raises(InputError, match="task t: asks about video"):
        adapter.read([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "t")


def test_own_tasks_of_lmms_eval_are_cut_to_the_same_draw(sets: Path):
    """Stands in for a downloaded set: the whole task, then `restrict`."""
    whole = suite.local(data.source("t", sets / "mini_vqav2", "validation", None), "validation")
    cut = suite.restrict(whole, 7)
    chosen = rows_asked("mini_vqav2", "validation", 7)
    expected = [row for i, row in enumerate(question_rows("mini_vqav2", 8)) if i in chosen]
    assert cut.task is whole and cut.question_ids == tuple(str(row["question_id"]) for row in expected)
    assert cut.image_ids == tuple(str(row["image_id"]) for row in expected)
    assert list(map(str, whole.dataset["validation"]["question_id"])) == list(cut.question_ids)
    assert len(whole.eval_docs_no_media) == 7
