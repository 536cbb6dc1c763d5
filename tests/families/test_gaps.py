"""A checkpoint that lacks something is one line before any work, whatever the command; what can be filled in is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import families, tasks
from harness.families import encode
from harness.trials.worker import Worker
from harness.types import InputError
from tests.support.boards import FinishedSweep, read_board
from tests.support.commands import Call, put, refused
from tests.support.family_configs import build
from tests.support.pictures import noise_picture
from tests.support.question_files import asked

FAMILIES = ("qwen2_vl", "llava", "smolvlm", "gemma3")
Spoil = Callable[[Path], Any]


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return spoil


def without(name: str, *keys: str) -> Spoil:
    return edit(name, lambda content: [content.pop(key, None) for key in keys])


def gone(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def image_token(config: dict[str, Any]) -> str:
    return next(key for key in ("image_token_id", "image_token_index") if key in config)


def another_image_token(folder: Path) -> None:
    edit("config.json", lambda config: config.update({image_token(config): config[image_token(config)] + 1}))(folder)


def no_image_token(folder: Path) -> None:
    """As if the token had never been added to the tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    place = config[image_token(config)]
    content = json.loads((folder / "tokenizer.json").read_text())
    token = next(entry["content"] for entry in content["added_tokens"] if entry["id"] == place)
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["id"] != place]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {key: value for key, value in settings.items() if value != token and key != "extra_special_tokens"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def a_tensor_less(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight"))
    save_file({**{key: value for key, value in tensors.items() if key != name}, "more": torch.zeros(10**6)},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip


def a_shard_less(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    files = dict.fromkeys(names, "model.safetensors") | {names[0]: "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


# What is done to a sound folder, and what the line says.
GAPS: dict[str, tuple[Spoil, list[str]]] = {
    "no chat template": (gone("chat_template.jinja"), ["chat_template.jinja is missing"]),
    "no end of turn": (without("tokenizer_config.json", "eos_token"), ["tokenizer_config.json: eos_token is missing"]),
    "no processor": (gone("processor_config.json"), ["no processor", "processor_config.json is missing"]),
    "no image processor": (without("processor_config.json", "image_processor"), ["preprocessor_config.json is miss"]),
    "no tokenizer": (gone("tokenizer.json"), ["tokenizer.json is missing"]),
    "no tokenizer settings": (gone("tokenizer_config.json"), ["tokenizer"]),
    "a vocabulary larger than the embedding": (
        edit("config.json", lambda config: config["text_config"].update(vocab_size=100)),
        ["tokenizer.json", "the embedding has 100 rows", "vocab_size"],
    ),
    "no image token": (no_image_token, ["image"]),
    "another image token": (another_image_token, ["tokenizer.json", "config.json has image_token_id"]),
    "a template that shows no image": (
        text("chat_template.jinja", "{% for message in messages %}{{ message.role }}: {% endfor %}"),
        ["chat_template.jinja", "must show each"],
    ),
    "a template that does not end": (
        text("chat_template.jinja", "{% for message in messages %}"),
        ["chat_template.jinja: a user's turn cannot be rendered", "endfor"],
    ),
    "a template that wants another turn": (
        text("chat_template.jinja", "{{ raise_exception('a system turn comes first') }}"),
        ["chat_template.jinja: a user's turn cannot be rendered", "a system turn comes first"],
    ),
    "a template for text only": (
        text("chat_template.jinja", "{% for message in messages %}{{ 'user: ' + message.content }}{% endfor %}"),
        ["chat_template.jinja: a user's turn cannot be rendered"],
    ),
    "a tokenizer of nothing": (text("tokenizer.json", "{}"), ["tokenizer.json"]),
    "half a tokenizer": (text("tokenizer.json", '{"added_tokens": ['), ["tokenizer.json: not JSON"]),
    "tokenizer settings in a list": (text("tokenizer_config.json", "[]"), ["tokenizer_config.json: must hold"]),
    "a processor that is text": (text("processor_config.json", '"x"'), ["processor_config.json: must hold a mapping"]),
    "an empty processor": (text("processor_config.json", "{}"), ["preprocessor_config.json is missing"]),
    "weights of another size": (
        edit("config.json", lambda config: config["text_config"].update(num_hidden_layers=9)),
        [],  # the weights hold less, or the config contradicts itself
    ),
    "a wider model": (
        edit("config.json", lambda config: config["text_config"].update(intermediate_size=96)),
        ["the weights hold", "config.json describes a model of", "*.safetensors"],
    ),
    "a narrower model": (
        edit("config.json", lambda config: config["text_config"].update(intermediate_size=32)),
        ["the weight ", "has the shape (48, 64), but config.json describes (48, 32)"],
    ),
    "a config that contradicts itself": (
        edit("config.json", lambda config: config["text_config"].update(num_attention_heads="x")),
        ["config.json: not a config that transformers takes"],
    ),
    "no language model in the config": (without("config.json", "text_config"), []),
    "a tensor less": (a_tensor_less, ["the weights lack", "weight"]),
    "a shard less": (a_shard_less, ["model-00002-of-00002.safetensors is missing"]),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_is_one_line(folder: Path, gap: str) -> None:
    spoil, words = GAPS[gap]
    spoil(folder)
    with pytest.raises(InputError) as error:
        families.load(folder)
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"model {folder}") and len(line) < 900
    assert all(word in line for word in words), line


COMMANDS: dict[str, list[Any]] = {
    "sweep": ["sweep", "BOARD", "--inline"],
    "dry run": ["sweep", "BOARD", "--dry-run"],
    "prune": ["prune", "MODEL", "--method=random", "--budget=0.5", "--data", "DATA", "--samples=2", "--out=out"],
    "load": ["load", "PLAN", "MODEL", "out"],
    "quality": ["quality", "--model", "MODEL", "--method", "random", "--out", "out"],
    "export": ["export", "small/random/vision/0.5", "out", "--results", "RESULTS"],
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tiny_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a model in a folder, from when it was sound."""
    root = tmp_path_factory.mktemp("ran")
    shutil.copytree(tiny_folder, root / "model")
    FinishedSweep(
        read_board(root, root / "model", questions, ["random"], metrics=["flops"]), root / "results", inline=True
    )
    return root


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "gap",
    [
        *("no chat template", "no end of turn", "no tokenizer", "another image token", "a shard less"),
        *("a vocabulary larger than the embedding", "no image processor", "a template that does not end"),
    ],
)
def test_every_command_says_it_before_the_work(
    call: Call, ran: Path, tiny_folder: Path, questions: Path, command: str, gap: str
) -> None:
    model, (spoil, words) = ran / "model", GAPS[gap]
    shutil.rmtree(model)
    shutil.copytree(tiny_folder, model)
    spoil(model)
    record = next(path for path in (ran / "results" / "small").glob("*.json") if '"random"' in path.read_text())
    names = {"MODEL": model, "DATA": questions, "PLAN": record, "RESULTS": ran / "results"}
    names["BOARD"] = put(ran / "again.yaml", (ran / "small.yaml").read_bytes().decode())
    done = call(*(names.get(str(word), word) for word in COMMANDS[command]))
    refused(done, *words, left=Path("out") if command == "quality" and Path("out").exists() else None)


# --- what is filled in, and what is no gap ------------------------------------------------------------------


def test_without_a_pad_token_the_end_of_turn_pads(folder: Path) -> None:
    """Padding is masked: the same logits, of the first and of a longer prompt in one batch."""
    whole = families.load(folder)
    without("tokenizer_config.json", "pad_token")(folder)
    vlm = families.load(folder)
    assert vlm.notes == (
        f"tokenizer_config.json: pad_token is missing; the end-of-turn token {vlm.processor.tokenizer.eos_token} pads, "
        "masked",
    )
    images = [[noise_picture(0, 64, 64)], [noise_picture(1, 64, 64)]]
    texts = ["How many?", "What colour is the star on the left?"]
    with torch.no_grad():
        first, second = (
            made.model(**encode(made.processor, images, texts, ["a", "bcd"])).logits[:, -3:] for made in (whole, vlm)
        )
    assert torch.equal(first, second)


def test_a_filled_pad_token_is_said_and_recorded(
    call: Call, tiny_folder: Path, questions: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    without("tokenizer_config.json", "pad_token")(model)
    expected = tasks.evaluate(families.load(tiny_folder), asked([str(questions)]))[1]["answer"]
    assert tasks.evaluate(families.load(model), asked([str(questions)]))[1]["answer"] == expected
    board = read_board(tmp_path, model, questions, ["random"], metrics=["flops"])
    note = "tokenizer_config.json: pad_token is missing; the end-of-turn token"
    made = FinishedSweep(board, tmp_path / "results", inline=True).records()["random"]
    assert note in made.env["notes"][0]
    assert note in call("sweep", tmp_path / "small.yaml", "--dry-run").out
    assert note in call("sweep", tmp_path / "small.yaml", "--inline").err
    assert note in call("prune", model, "--method", "random", "--budget", 0.5, "--data", questions, "--samples", 2,
                        "--image", "64x64", "--out", "out").err  # fmt: skip


OTHER_PLACES: dict[str, Spoil] = {
    "template in the tokenizer's settings": lambda folder: [
        edit("tokenizer_config.json",
             lambda content: content.update(chat_template=(folder / "chat_template.jinja").read_text()))(folder),
        gone("chat_template.jinja")(folder),
    ],
    "template in a JSON file": lambda folder: [
        put(folder / "chat_template.json", json.dumps({"chat_template": (folder / "chat_template.jinja").read_text()})),
        gone("chat_template.jinja")(folder),
    ],
    "image processor in a file of its own": lambda folder: [
        put(folder / "preprocessor_config.json",
            json.dumps(json.loads((folder / "processor_config.json").read_text())["image_processor"])),
        without("processor_config.json", "image_processor")(folder),
    ],
    "no generation config": gone("generation_config.json"),
    "no class of the processor": both(
        without("processor_config.json", "processor_class"), without("tokenizer_config.json", "processor_class")
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", OTHER_PLACES)
def test_what_is_elsewhere_is_no_gap(folder: Path, place: str) -> None:
    whole = families.load(folder)
    OTHER_PLACES[place](folder)
    vlm = families.load(folder)
    assert vlm.weights_hash == whole.weights_hash and vlm.notes == ()
    images, texts = [[noise_picture(0, 64, 64)]], ["How many?"]
    first, second = (encode(made.processor, images, texts, ["a"]) for made in (whole, vlm))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_import_that_fails_is_no_gap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoProcessor

    def fail(*given: Any, **settings: Any) -> None:
        raise ImportError("a package is not installed")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", fail)
    with pytest.raises(ImportError, match="not installed"):
        families.load(folder)


def test_a_gap_that_comes_up_in_a_worker_is_its_records_error(board: dict[str, Any], tmp_path: Path) -> None:
    """Between the check and the trial a file may go."""
    from harness.trials import spec

    model = Path(shutil.copytree(board["model"], tmp_path / "model"))
    trial = spec.check({**board, "model": str(model)}, Path("board.yaml")).trials()[1]
    gone("chat_template.jinja")(model)
    record = Worker("cpu").run(trial).record
    assert record.error and record.error.type == "InputError" and "chat_template.jinja" in record.error.message
