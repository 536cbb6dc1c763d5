"""A pruned model on disk is the one in memory: by this package, and by transformers where this package is not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from harness import families, tasks
from harness.checkpoints import export
from harness.families import encode
from harness.metrics import flops
from harness.pruning import latency_rates, surgery
from harness.records import record
from harness.records.record import Record
from harness.statistics import linears
from harness.trials.context import Context
from harness.types import (
    VLM,
    Choice,
    Dense,
    InputError,
    Keep,
    Kind,
    LowRank,
    Option,
    Options,
    Plan,
    Ranking,
    Trial,
    short_hash,
)
from tests.support.boards import FinishedSweep, read_board
from tests.support.commands import Call, refused
from tests.support.family_configs import build
from tests.support.outputs import generate, logits
from tests.support.pictures import noise_picture
from tests.support.trials import random_trial

FULL = {"method": "full", "samples": 4, "steps": 2, "batch": 2}
METHODS: list[Any] = [
    "random",
    "flap",
    "infoprune_free",
    "svd_llm",
    {"method": "random", "control": "random-units", "tuning": FULL},
]
LEFT = {".json", ".jinja", ".md", ".py", ".safetensors", ".txt", ".model"}  # no pickle among them


@pytest.fixture(scope="module")
def run(tiny_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    root = tmp_path_factory.mktemp("exported")
    metrics = ["flops", "accuracy"]
    board = read_board(root, tiny_folder, questions, METHODS, metrics=metrics, limit=6, scopes=["all"], floors=False)
    return FinishedSweep(board, root / "results", inline=True)


def records(run: FinishedSweep) -> dict[str, Record]:
    found, problems = record.load(run.results / "small")
    assert not problems and not run.outcome.failed
    return {f"{one.trial.method} {one.contestant.variant}".strip(): one for one in found}


def cut(vlm: VLM, stay: Callable[[Kind, int], int], scope: Any) -> Plan:
    """A random plan in which `stay` says how many of a block's units of a kind stay."""
    rng, parts = random.Random(0), {}
    for block, kind in vlm.select(scope):
        count = block.units(kind).count
        parts[block.name, kind] = Keep(tuple(sorted(rng.sample(range(count), stay(kind, count)))))
    return Plan(parts, 0.5, 0.5)


def uneven(vlm: VLM, scope: Any = "all") -> VLM:
    rng = random.Random(1)
    return surgery.apply(vlm, cut(vlm, lambda _, count: rng.randint(1, count), scope), Ranking({}))


def even(vlm: VLM) -> VLM:
    """Half of the channels of every FFN of the language model: a width that the config can say."""
    stay = cut(vlm, lambda kind, count: count // 2 if kind == "ffn" else count, "language")
    return surgery.apply(vlm, stay, Ranking({}))


def factored(vlm: VLM) -> VLM:
    """Two factors in attention and FFNs, an activation left out, a bias where there was none."""
    path = vlm.blocks[-1].heads.consumer
    weight = cast(Any, vlm.model.get_submodule(path)).weight
    biased = Dense(weight * 2, torch.linspace(-1, 1, len(weight)))
    scores: dict[Any, Any] = {}
    for block, kind in vlm.select("all"):
        made: dict[str, Any] = {block.ffn.activation: None} if kind == "ffn" else {}
        for own in linears(block.units(kind)):
            linear, rank = cast(Any, vlm.model.get_submodule(own)), torch.Generator().manual_seed(block.index)
            down, up = (torch.randn(s, generator=rank) for s in ((5, linear.in_features), (linear.out_features, 5)))
            made[own] = biased if own == path else LowRank(down / 8, up / 8, None)
        scores[block.name, kind] = Options((Option("dense", 2, 0.0), Option("low", 1, 1.0, lambda made=made: made)))
    return surgery.apply(vlm, Plan({key: Choice(1, "low") for key in scores}, 0.5, 0.5), Ranking(scores))


# --- a row of a board -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_exported_row_answers_and_costs_as_its_record_says(run: FinishedSweep, tmp_path: Path) -> None:
    """Of every kind of trial: units cut, biases recovered, factors, weights tuned."""
    found = records(run)
    assert set(found) == {
        "none", "random", "flap", "infoprune_free", "svd_llm", "random control=random-units"
    }  # fmt: skip
    for number, (name, made) in enumerate(found.items()):
        out = tmp_path / str(number)
        row = f"small/{name}/all/{made.trial.budget:g}"
        done = export.export(run.results, made.id[:9] if number % 2 else row, out)
        assert {file.suffix for file in out.iterdir()} <= LEFT
        assert done.form == ("plain" if name == "none" else "custom code")
        again = families.load(out)
        own = made.trial
        answers = tasks.answer(again, own.questions).table
        stored = pq.read_table(run.results / "small" / f"{made.id}.parquet")
        assert answers.to_pylist() == stored.to_pylist(), name
        dense = families.load(own.model)
        context = Context(own.reference_input)
        counted = json.loads(json.dumps(flops.measure(again, dense, own, context)))
        assert counted == made.metrics["flops"], name
        kept = json.loads((out / export.PLAN).read_text())
        assert made.plan is not None and kept["plan"] == json.loads(json.dumps(made.plan.to_json()))
        assert short_hash(kept["plan"]) == done.plan == made.hashes["plan"]
        card = (out / "README.md").read_text()
        assert made.id in card and f"{100 * made.metrics['accuracy']['mean']:.1f} (" in card
        assert ("trust_remote_code=True" in card) == (done.form == "custom code")


@pytest.mark.slow
def test_a_plan_on_fresh_dense_weights_gives_the_same_model(
    run: FinishedSweep, tmp_path: Path, tiny_folder: Path
) -> None:
    found = records(run)
    for name in ("random", "flap", "infoprune_free", "svd_llm", "random control=random-units"):
        first, second = tmp_path / f"{name} 1", tmp_path / f"{name} 2"
        export.export(run.results, found[name].id, first)
        export.load(first / export.PLAN, str(tiny_folder), second)
        weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items()), name
    other = build("qwen2_vl", tmp_path / "other")
    assert export.load(tmp_path / "random 1" / export.PLAN, str(tiny_folder), tmp_path / "again").form == "custom code"
    with pytest.raises(InputError, match=r"hashes.weights: \w+, but .*other now gives \w+; a plan that is made again"):
        export.load(tmp_path / "svd_llm 1" / export.PLAN, str(other), tmp_path / "wrong")
    llava = build("llava", tmp_path / "llava")
    with pytest.raises(InputError, match=r"plan.widths.language.0.heads: .*llava has 4 units, and the plan's model 2"):
        wide = json.loads((tmp_path / "random 1" / export.PLAN).read_text())
        wide["plan"]["blocks"]["language.0"]["heads"] = [7]
        wide["hashes"]["plan"] = short_hash(wide["plan"])
        (tmp_path / "wide.json").write_text(json.dumps(wide))
        export.load(tmp_path / "wide.json", str(llava), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused(run: FinishedSweep, tmp_path: Path) -> None:
    own = records(run)["random"]
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no record begins with 'ffff'"):
        export.export(run.results, "ffff", out)
    with pytest.raises(InputError, match=r"unknown row 'small/random/all/0.9'; did you mean 'small/random/all/0.5/0'"):
        export.export(run.results, "small/random/all/0.9", out)
    with pytest.raises(InputError, match="not BOARD/METHOD/SCOPE/BUDGET"):
        export.export(run.results, "nowhere/random", out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(InputError, match="already exists and is not an empty folder"):
        export.export(run.results, own.id, tmp_path / "full")
    other = tmp_path / "results"
    assert own.plan is not None
    ffn = own.plan.parts["language.0", "ffn"]
    assert isinstance(ffn, Keep)
    moved = Keep((ffn.indices[0] + 1, *ffn.indices[1:]))
    plan = replace(own.plan, parts={**own.plan.parts, ("language.0", "ffn"): moved})
    hashes = {**own.hashes, "plan": short_hash(plan.to_json())}
    del hashes["samples"]
    metrics = {name: result for name, result in own.metrics.items() if name != "accuracy"}
    record.write(other / "small", replace(own, plan=plan, hashes=hashes, metrics=metrics))
    with pytest.raises(InputError, match=r"hashes.plan: \w+, but .* now gives \w+; a plan that is made again"):
        export.export(other, own.id, out)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("full", "results")] == []


def test_prune_without_a_board(call: Call, tiny_folder: Path, questions: Path) -> None:
    words = ["--budget", "0.5", "--scope", "all", "--data", questions, "--samples", "4", "--image", "64x64"]
    done = call(
        "prune", tiny_folder, "--method", "magnitude", *words, "--option", "norm=l1", "--out", "small", "--json"
    )
    assert done.code == 0, done
    found = json.loads(done.out)
    assert found["after"]["macs"] / found["before"]["macs"] == pytest.approx(0.5, rel=0.01)
    assert found["after"]["bytes"] == 4 * found["after"]["params"] < 4 * found["before"]["params"]
    families.check_folder(Path("small"))
    assert "not measured" in Path("small/README.md").read_text()
    shown = call("load", "small/plan.json", tiny_folder, "twin")
    assert shown.code == 0 and "custom code" in shown.out and Path("twin/modeling_pruned.py").is_file()
    assert Path("twin/model.safetensors").read_bytes() == Path("small/model.safetensors").read_bytes()


def test_a_budget_in_another_currency(
    call: Call, tiny_folder: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["prune", tiny_folder, "--method", "magnitude", "--data", questions, "--samples", "4", "--image", "64x64"]
    code = [sys.executable, "-m", "harness.cli", *words, "--json"]
    for budget, currency in (("params=0.5", "params"), ("flops=0.5", "flops")):
        made = [str(word) for word in (*code, "--budget", budget, "--out", tmp_path / currency)]
        done = subprocess.run(made, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        kept = json.loads((tmp_path / currency / export.PLAN).read_text())
        assert kept["plan"].get("currency", "flops") == kept["trial"].get("currency", "flops") == currency
        assert kept["plan"]["achieved"] == pytest.approx(0.5, rel=0.01)
        assert json.loads(done.stdout)["plan"] == short_hash(kept["plan"])
    rates: Any = {("vision", "heads"): 3e-9, ("vision", "ffn"): 1e-9}
    monkeypatch.setattr(latency_rates, "seconds", lambda vlm, asked, call, repeats: (rates, 0.0))
    assert call(*words, "--budget", "latency=0.6", "--out", "fast").code == 0
    kept = json.loads(Path("fast", export.PLAN).read_text())
    assert Plan.of(kept["plan"]).currency == Trial.of(kept["trial"]).currency == "latency"
    assert Plan.of(kept["plan"]).to_json() == kept["plan"]
    assert "to 0.6 of its vision time, as predicted" in Path("fast/README.md").read_text()


def test_bad_flags_are_refused(call: Call, tiny_folder: Path, questions: Path) -> None:
    words = ["prune", tiny_folder, "--method", "magnitude", "--data", questions, "--samples", "4", "--out", "out"]
    refused(call(*words, "--budget", "0.5", "--option", "nrm=l1"), "nrm", "norm")
    refused(call(*words, "--budget", "0.5", "--option", "norm"), "--option norm", "name=value")
    refused(call(*words, "--budget", "1.5"), "budgets", "1.5")
    refused(call(*words, "--budget", "latency=1.5"), "budgets", "1.5")
    refused(call(*words, "--budget", "latncy=0.5"), "--budget latncy=0.5", "did you mean 'latency'?")
    refused(call(*words, "--budget", "=0.5"), "--budget =0.5", "flops, latency, params")
    refused(call(*words, "--budget", "params=half"), "--budget params=half", "such as latency=0.6")
    refused(call(*words, "--budget", "0.5", "--image", "big"), "--image big", "448x448")
    refused(call(*words[:3], "magnitud", *words[4:], "--budget", "0.5"), "magnitud", "'magnitude'")
    refused(call(*words[:3], "none", *words[4:], "--budget", "0.5"), "method none", "nothing to prune")
    refused(call("load", "no.json", tiny_folder, "out"), "no.json")


def test_prune_says_what_it_calibrates_on_and_what_of_the_scope_it_cuts(call: Call, tiny_folder: Path) -> None:
    words = ["--budget", "0.5", "--samples", "4", "--image", "64x64", "--out", "small"]
    done = call("prune", tiny_folder, "--method", "dgmr", *words)
    assert done.code == 0 and "no --data: the calibration questions are the embedded sets'" in done.err
    assert "pruned by dgmr to 0.5 of its vision FFNs' FLOPs" in Path("small/README.md").read_text()


# --- a shape that a config says, and one that none does ---------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return families.load(build(request.param, tmp_path_factory.mktemp("dense") / request.param))


MAKE = {"even": even, "uneven": uneven, "factored": factored}

# Runs where neither this package nor its methods can be imported.
ALONE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("harness", "baselines"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor
try:
    import harness
    raise SystemExit("this package can be imported")
except ModuleNotFoundError:
    pass
found = {}
for folder in sys.argv[1:]:
    load = AutoModelForImageTextToText.from_pretrained
    stock = None
    try:
        model = load(folder).eval()
    except RuntimeError as error:
        stock = str(error)
        model = load(folder, trust_remote_code=True).eval()
    AutoProcessor.from_pretrained(folder)
    inputs = load_file(folder + ".inputs")
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            logits = model(**inputs, use_cache=False).logits
        tokens = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    expected = load_file(folder + ".expected")
    found[folder] = {
        "stock": stock,
        "class": type(model).__mro__[1 if stock else 0].__module__,
        "logits": torch.equal(logits, expected["logits"]),
        "tokens": torch.equal(tokens, expected["tokens"]),
        "flops": counter.get_total_flops(),
    }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_transformers_alone_loads_the_same_model(tmp_path: Path) -> None:
    """Logits bit for bit, the same tokens, the same FLOPs; of Qwen2-VL and LLaVA, plain and with custom code."""
    expected: dict[str, int] = {}
    for family in ("qwen2_vl", "llava"):
        dense = families.load(build(family, tmp_path / "dense" / family))
        images = [[noise_picture(0, 64, 64)], [noise_picture(1, 96, 64)]]
        inputs = encode(dense.processor, images, ["How many?", "What colour is it?"])
        for kind, make in MAKE.items():
            name, vlm = f"{family}-{kind}", make(dense)
            model: Any = vlm.model
            assert families.save(vlm, tmp_path / name) == ("plain" if kind == "even" else "custom code")
            save_file({key: value.contiguous() for key, value in inputs.items()}, tmp_path / f"{name}.inputs")
            with torch.no_grad():
                with FlopCounterMode(display=False) as counter:
                    found = model(**inputs, use_cache=False).logits
                tokens = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
            expected[name] = counter.get_total_flops()
            save_file({"logits": found.contiguous(), "tokens": tokens}, tmp_path / f"{name}.expected")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = [sys.executable, "-c", ALONE, *(str(tmp_path / name) for name in expected)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, got in json.loads(done.stdout).items():
        name = Path(folder).name
        assert got["logits"] and got["tokens"], (name, got)
        assert got["flops"] == expected[name]
        # Without leave to run its code it fails, and does not make weights up.
        assert (got["stock"] is None) == name.endswith("-even"), got["stock"]
        assert got["class"].startswith("transformers.models."), got["class"]


def test_this_package_loads_the_same_model(dense: VLM, tmp_path: Path) -> None:
    """And cuts it again, and writes it again."""
    inputs = encode(
        dense.processor, [[noise_picture(0, 64, 64)], [noise_picture(1, 96, 64)]], ["How many?", "What colour is it?"]
    )
    for name, make in MAKE.items():
        vlm = make(dense)
        families.save(vlm, tmp_path / name)
        again = families.load(tmp_path / name)
        assert torch.equal(logits(again, inputs), logits(vlm, inputs)) and again.blocks == vlm.blocks
        assert generate(again, inputs) == generate(vlm, inputs)
        if name == "factored":  # factors cannot be cut again
            continue
        twice = uneven(again, "vision")
        assert families.save(twice, tmp_path / f"{name} twice") == "custom code"
        third = families.load(tmp_path / f"{name} twice")
        assert torch.equal(logits(third, inputs), logits(uneven(vlm, "vision"), inputs))
    drawn = families.load(tmp_path / "uneven", random_weights=True, seed=1)
    assert drawn.blocks == uneven(dense).blocks


def test_a_config_that_does_not_fit_is_refused(dense: VLM, tmp_path: Path) -> None:
    families.save(uneven(dense), tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    for place, value, message in (
        ("linears", {"model.nothing.here": {"in": 1, "out": 1, "bias": False}}, "no module model.nothing.here"),
        ("sizes", {"model": {"forward": 3}}, "model.forward: not an integer size"),
    ):
        path.write_text(json.dumps({**config, "pruned": {**config["pruned"], place: value}}))
        with pytest.raises(InputError, match=f"config.json: pruned: .*{message}|{message}"):
            families.load(tmp_path / "a")


@pytest.mark.slow
def test_a_trial_and_a_plan_come_back_from_a_record(run: FinishedSweep) -> None:
    for made in records(run).values():
        content = json.loads(json.dumps(made.to_json()))
        assert Trial.of(content["trial"]) == made.trial and made.trial.id == made.id
        assert Plan.of(content["plan"]) == made.plan
    assert Trial.of(random_trial().content()) == random_trial()
