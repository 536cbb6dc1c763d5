"""Answers are greedy whatever a checkpoint says of decoding; what a board adds is added, in every batch alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, WatermarkingConfig

from harness import families, registry, tasks
from harness.tasks import decoding
from harness.trials.worker import Worker
from harness.types import VLM, Generation, InputError, Questions
from tests.support.boards import FinishedSweep, read_board
from tests.support.commands import Call, put

ASKED = Questions(("mini_gqa",), "validation", 6)
# Each of these changes a model's answers, what `generate` returns, or ends it, if it is listened to.
KEYS: dict[str, Any] = {
    "min_new_tokens": 6,
    "min_length": 200,
    "max_length": 3,
    "max_new_tokens": 1,
    "max_time": 1e-9,
    "stop_strings": ["e"],
    "do_sample": True,
    "num_beams": 3,
    "num_return_sequences": 2,
    "early_stopping": True,
    "length_penalty": -5.0,
    "temperature": 50.0,
    "top_k": 1000,
    "top_p": 0.01,
    "min_p": 0.9,
    "typical_p": 0.1,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[token] for token in range(3, 500)],
    "suppress_tokens": list(range(3, 500)),
    "begin_suppress_tokens": list(range(3, 500)),
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "sequence_bias": [[[token], -100.0] for token in range(3, 500)],
    "exponential_decay_length_penalty": [1, 5.0],
    "encoder_repetition_penalty": 9.0,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "guidance_scale": 3.0,
    "watermarking_config": {"bias": 50.0, "seeding_scheme": "lefthash"},
    "token_healing": True,
    "prompt_lookup_num_tokens": 4,
    "assistant_early_exit": 1,
    "use_cache": False,
    "cache_implementation": "static",
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "pad_token_id": 2,
    "bos_token_id": 5,
}


def checkpoint(folder: Path, content: Any) -> Path:
    """The embedded model with this generation_config.json; None: without one."""
    folder.mkdir()
    for file in Path(registry.model("mini-qwen2-vl")).iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    if content is not None:
        put(folder / "generation_config.json", content if isinstance(content, str) else json.dumps(content))
    return folder


def answers(vlm: VLM, batch_size: int = 64) -> list[str]:
    return tasks.evaluate(vlm, ASKED, batch_size=batch_size)[1]["answer"].to_pylist()


@pytest.fixture(scope="module")
def mini() -> VLM:
    return families.load(registry.model("mini-qwen2-vl"), name="mini-qwen2-vl")


@pytest.fixture(scope="module")
def plain(mini: VLM) -> list[str]:
    found = answers(mini)
    assert len(set(found)) > 2 and not mini.notes
    return found


# --- the checkpoint's word does not count -------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_a_model_changes_answers(mini: VLM, plain: list[str], key: str) -> None:
    model: Any = mini.model
    before = model.generation_config
    value = WatermarkingConfig(**KEYS[key]) if key == "watermarking_config" else KEYS[key]
    model.generation_config = GenerationConfig(eos_token_id=before.eos_token_id)
    setattr(model.generation_config, key, value)
    try:
        assert answers(mini) == plain
        assert getattr(model.generation_config, key) == value  # it is the model's, and only put aside
    finally:
        model.generation_config = before


def test_no_key_of_the_file_does_either_and_all_are_named(tmp_path: Path, plain: list[str]) -> None:
    vlm = families.load(checkpoint(tmp_path / "model", {"eos_token_id": 2, "transformers_version": "4.1", **KEYS}))
    assert answers(vlm) == plain
    (note,) = vlm.notes
    for key in set(KEYS) - {"pad_token_id", "bos_token_id"}:
        assert f"{key}=" in note, key
    assert note.startswith("generation_config.json: not used") and "transformers_version" not in note


@pytest.mark.parametrize(
    "content",
    [
        {"num_beams": "many", "temperature": [], "eos_token_id": 2},
        {"watermarking_config": 5, "cache_config": [1], "compile_config": "no", "max_length": None},
        {"no_such_key": {"a": 1}, "generation_kwargs": 7},
        None,
    ],
)
def test_values_that_transformers_refuses_do_not_matter(tmp_path: Path, plain: list[str], content: Any) -> None:
    assert answers(families.load(checkpoint(tmp_path / "model", content))) == plain


@pytest.mark.parametrize("part", ["", "text_config", "vision_config"])
def test_no_key_of_the_config_does_either(tmp_path: Path, plain: list[str], part: str) -> None:
    """Older checkpoints have some there, and some change what a forward pass returns."""
    folder = checkpoint(tmp_path / "model", None)
    config = json.loads((folder / "config.json").read_text())
    keys = {"return_dict": False, "output_attentions": True, "output_hidden_states": True, "use_cache": False}
    (config[part] if part else config).update({**KEYS, **keys, "watermarking_config": None, "pad_token_id": 0})
    (folder / "config.json").unlink()
    put(folder / "config.json", json.dumps(config))
    vlm = families.load(folder)
    assert answers(vlm) == plain
    families.save(vlm, tmp_path / "saved")
    assert answers(families.load(tmp_path / "saved")) == plain


def test_values_that_change_nothing_are_not_named(tmp_path: Path) -> None:
    neutral = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "use_cache": True, "top_k": 50, "top_p": None}
    assert families.load(checkpoint(tmp_path / "model", neutral)).notes == ()


def test_end_of_turn_tokens_are_the_checkpoints(mini: VLM, tmp_path: Path, plain: list[str]) -> None:
    """Its tokenizer's and all of the file's."""
    token = mini.processor.tokenizer(plain[0], add_special_tokens=False)["input_ids"][0]
    cut = answers(families.load(checkpoint(tmp_path / "model", {"eos_token_id": [2, token]})))
    assert cut[0] == "" and [b for a, b in zip(plain, cut, strict=True) if a != plain[0]] == plain[1:]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '"x"',
        "null",
        '{"eos_token_id": "</s>"}',
        '{"eos_token_id": [1, "x"]}',
        '{"eos_token_id": 2.0}',
        '{"eos_token_id": -1}',
        '{"eos_token_id": true}',
        '{"eos_token_id": [[1]]}',
        '{"eos_token_id": {"a": 1}}',
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, call: Call, content: str) -> None:
    folder = checkpoint(tmp_path / "model", content)
    with pytest.raises(InputError, match=r"model/generation_config\.json: ") as error:
        families.load(folder)
    assert "\n" not in str(error.value)
    board = {"name": "b", "model": str(folder), "methods": ["random"], "budgets": [0.5], "tasks": ["mini_gqa"]}
    done = call("sweep", put(tmp_path / "board.yaml", board), "--dry-run")
    assert done.code == 2 and done.err.count("\n") == 1 and "generation_config.json: " in done.err


def test_what_is_left_out_is_recorded_shown_and_kept_for_export(
    tmp_path: Path, tiny_folder: Path, questions: Path, call: Call
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    stated = {**json.loads((folder / "generation_config.json").read_text()), "min_new_tokens": 6, "temperature": 0.1}
    put(folder / "generation_config.json", json.dumps(stated))
    board = read_board(tmp_path, folder, questions, ["random"], metrics=["flops", "accuracy"], floors=False)
    plain_board = read_board(tmp_path, tiny_folder, questions, ["random"], metrics=["flops", "accuracy"], floors=False)
    made = FinishedSweep(board, tmp_path / "results", inline=True).records()
    expected = FinishedSweep(plain_board, tmp_path / "plain", inline=True).records()
    for name in ("none", "random"):
        assert made[name].metrics["accuracy"] == expected[name].metrics["accuracy"]
        assert "min_new_tokens=6" in made[name].env["notes"][0] and "notes" not in expected[name].env
    shown = call("results", "show", made["none"].id, "--results", tmp_path / "results")
    assert "env.notes" in shown.out and "min_new_tokens=6" in shown.out

    pruned = Worker("cpu").prune(board.trials()[1])
    families.save(pruned.vlm, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == stated


# --- what a board adds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "generation",
    [
        Generation(repetition_penalty=3.0),
        Generation(repetition_penalty=0.2),
        Generation(no_repeat_ngram_size=1),
        Generation(no_repeat_ngram_size=2),
        Generation(suppress_tokens=tuple(range(400, 500))),
        Generation(bad_words_ids=((445,), (3, 4))),
        Generation(repetition_penalty=2.0, no_repeat_ngram_size=3, suppress_tokens=(445,)),
    ],
    ids=str,
)
def test_a_boards_additions_are_transformers_own_in_every_batch(mini: VLM, generation: Generation) -> None:
    """Padding does not count, so answers do not depend on the batch."""
    vlm = replace(mini, generation=generation)
    one_by_one = answers(vlm, 1)
    assert answers(vlm) == answers(vlm, 4) == one_by_one
    model: Any = mini.model
    asked = {
        key: list(map(list, value)) if key == "bad_words_ids" else list(value) if isinstance(value, tuple) else value
        for key, value in vars(generation).items()
        if value != getattr(Generation(), key)
    }
    row = next(iter(tasks.samples(Questions(("mini_gqa",)), 1, 0)))
    inputs = families.encode(mini.processor, [[row.image]], [row.question])
    theirs = model.generate(**inputs, max_new_tokens=16, do_sample=False, **asked)
    added = decoding.added(vlm, inputs["attention_mask"])
    with decoding.without_own_settings(model):
        ours = model.generate(**inputs, generation_config=decoding.greedy(vlm), logits_processor=added)
    assert ours.tolist() == theirs.tolist()


def test_a_board_sets_them_and_they_are_part_of_the_trial(tmp_path: Path, tiny_folder: Path, questions: Path) -> None:
    methods: dict[str, Any] = {"methods": ["random"], "metrics": ["flops", "accuracy", "fidelity"], "floors": False}
    plain = read_board(tmp_path, tiny_folder, questions, **methods)
    spelled = read_board(tmp_path, tiny_folder, questions, **methods, generation={"repetition_penalty": 1.0})
    other = read_board(tmp_path, tiny_folder, questions, **methods, generation={"suppress_tokens": [5, 6]})
    assert [trial.id for trial in plain.trials()] == [trial.id for trial in spelled.trials()]
    assert not {trial.id for trial in plain.trials()} & {trial.id for trial in other.trials()}
    made = FinishedSweep(other, tmp_path / "results", inline=True).records()
    assert made["random"].status == "ok"  # a token of probability 0 is no NaN in the divergence
    assert made["random"].trial == other.trials()[1]
    assert made["random"].trial.content()["loading"] == {"generation": {"suppress_tokens": (5, 6)}}


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"repetition_penalti": 1.1}, ["generation", "unknown key", "did you mean 'repetition_penalty'?"]),
        ({"min_new_tokens": 6}, ["unknown key 'min_new_tokens'", "choose from: bad_words_ids, no_repeat_ngram_size"]),
        ({"repetition_penalty": 0}, ["generation.repetition_penalty", "greater than 0"]),
        ({"no_repeat_ngram_size": -1}, ["generation.no_repeat_ngram_size"]),
        ({"suppress_tokens": [-1]}, ["generation.suppress_tokens.0"]),
        ({"bad_words_ids": [[]]}, ["generation.bad_words_ids.0"]),
        ({"bad_words_ids": 7}, ["generation.bad_words_ids"]),
        (5, ["generation"]),
        ({"suppress_tokens": [10**9]}, ["generation.suppress_tokens: 1000000000 is no token", "0 to "]),
        ({"bad_words_ids": [[1, 10**9]]}, ["generation.bad_words_ids: 1000000000 is no token"]),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "run"])
def test_additions_that_cannot_be(
    call: Call, tmp_path: Path, board: dict[str, Any], generation: Any, words: list[str], dry: list[str]
) -> None:
    done = call("sweep", put(tmp_path / "board.yaml", {**board, "generation": generation}), *dry)
    assert done.code == 2 and done.err.count("\n") == 1 and not list(Path().iterdir())
    for word in words:
        assert word in done.err
