"""A pruned model is pruned again rightly or refused, and a plan is applied to a model of its own widths or to none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import harness
from harness import families, registry
from harness.checkpoints import export
from harness.checks.method_contract import TEXT, VISION, samples
from harness.checks.pruned_models import factored, narrowed
from harness.pruning import latency_rates, rounds, surgery
from harness.pruning.solver import solve
from harness.records import record
from harness.reference.model import build as untrained
from harness.statistics.calibration import Calibration
from harness.trials.pruner import Pruner
from harness.types import (
    VLM,
    WIDTHS,
    Budget,
    InputError,
    Keep,
    Kind,
    Ordinal,
    Plan,
    Ranking,
    Trial,
    kinds,
    short_hash,
)
from tests.support.boards import FinishedSweep, read_board
from tests.support.commands import Call, refused
from tests.support.family_configs import build
from tests.support.outputs import logits
from tests.support.paths import ROOT

NOTHING = Ranking({})
SMALL: dict[str, Any] = {"scope": "all", "samples": 2, "image": (64, 64)}


def prune(model: Path, out: Path, questions: Path, method: str = "magnitude", budget: float = 0.6, **more: Any) -> Path:
    export.prune(export.single_trial(str(model), method, budget, tasks=[str(questions)], **{**SMALL, **more}), out)
    return out


@pytest.fixture(scope="module")
def once(tiny_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with units cut."""
    return prune(tiny_folder, tmp_path_factory.mktemp("cut") / "once", questions)


@pytest.fixture(scope="module")
def twice(once: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """And cut again, in the language model alone."""
    return prune(once, tmp_path_factory.mktemp("cut") / "twice", questions, "random", scope="language")


@pytest.fixture(scope="module")
def low_rank(tiny_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with low-rank factors."""
    return prune(tiny_folder, tmp_path_factory.mktemp("cut") / "low", questions, "svd")


def same_weights(first: Path, second: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


# --- low-rank factors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in registry.methods() if name != "none"])
def test_no_method_ranks_factors(tiny: VLM, name: str) -> None:
    method = registry.method(name)
    for kind in set(kinds(method.units)) & set(WIDTHS):
        with pytest.raises(InputError, match=f"model tiny: low-rank factors stand in vision.0 {kind}, .* give {name} "):
            method.rank(factored(tiny, [kind]), None, seed=0, budget=None)  # type: ignore[arg-type]


def test_a_method_of_heads_prunes_between_factored_ffns(low_rank: Path, tiny: VLM) -> None:
    """The answer is that of the same heads masked."""
    vlm = factored(tiny, ["ffn"])
    parts: dict[tuple[str, Kind], Any] = {(block.name, "heads"): Keep((0,)) for block in vlm.blocks}
    cut = surgery.apply(vlm, Plan(parts, 0.5, 0.5), NOTHING)
    assert [block.heads.count for block in cut.blocks] == [1] * 4
    assert [block.ffn.factored for block in cut.blocks] == [True] * 4
    assert not any(block.heads.factored for block in cut.blocks)
    registry.method("michel").check_model(cut)
    calibration = Calibration(vlm, samples(), 4)
    inputs = {key: value for key, value in next(calibration.batches()).items() if key != "labels"}
    one: Any = {(block.name, "heads"): torch.eye(block.heads.count)[0] for block in vlm.blocks}
    with calibration.gated(one):
        expected = logits(vlm, inputs)
    torch.testing.assert_close(logits(cut, inputs), expected, atol=1e-5, rtol=0)
    loaded = families.load(low_rank)  # a folder says so as well
    assert all(block.heads.factored and block.ffn.factored for block in loaded.blocks)


@pytest.mark.parametrize("budget", ["0.5", "params=0.5", "latency=0.5"])
def test_prune_refuses_factors_before_the_work(
    call: Call, low_rank: Path, questions: Path, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pruner, "_budget", None)
    monkeypatch.setattr(Pruner, "_calibrated", None)
    words = ["--data", questions, "--samples", "2", "--image", "64x64", "--out", "out"]
    for method in ("taylor", "svd", "infoprune"):
        done = call("prune", low_rank, "--method", method, "--budget", budget, *words)
        refused(done, f"model {low_rank}: low-rank factors stand in vision.0 heads", f"give {method} the model")
    with pytest.raises(InputError, match="low-rank factors stand in"):
        harness.prune(str(low_rank), method="flap", tasks=[str(questions)], **SMALL)


def test_a_board_measures_factors_as_its_dense_model_and_says_why_it_prunes_none(
    low_rank: Path, questions: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"metrics": ["flops"], "tuning": "bias"}
    run = FinishedSweep(
        read_board(tmp_path, low_rank, questions, ["magnitude"], **settings), tmp_path / "results", inline=True
    )
    found = run.records()
    assert found["none"].error is None and found["none"].metrics["flops"]["kept"] == 1
    error = found["magnitude"].error
    assert error is not None and (error.type, error.phase) == ("InputError", "load")
    assert "low-rank factors stand in" in error.message


# --- units, composed ------------------------------------------------------------------------------------------


def test_what_is_cut_twice_is_one_cut(tiny: VLM) -> None:
    """And the one plan of both is of the widths of the first."""
    extents = Calibration(tiny, samples()).extents

    def cut(vlm: VLM, keep: float) -> tuple[Plan, VLM]:
        orders: Any = {
            (block.name, kind): Ordinal(tuple(map(float, range(block.units(kind).count))))
            for block, kind in vlm.select("all")
        }
        plan = solve(vlm, Ranking(orders), Budget("all", keep, extents=extents), tolerance=1)
        return plan, surgery.apply(vlm, plan, NOTHING)

    first, middle = cut(tiny, 0.7)
    second, last = cut(middle, 0.7)
    both = rounds.merged_plan(first, second)
    assert both.widths == first.widths == {(b.name, k): b.units(k).count for b, k in tiny.select("all")}
    assert second.widths == {(b.name, k): b.units(k).count for b, k in middle.select("all")} != first.widths
    at_once = surgery.apply(tiny, both, NOTHING)
    assert at_once.blocks == last.blocks and families.weights_hash(at_once.model) == families.weights_hash(last.model)


# --- a plan and a model ---------------------------------------------------------------------------------------


def test_a_plan_fits_the_model_that_it_is_of(once: Path, twice: Path, tiny_folder: Path, tmp_path: Path) -> None:
    export.load(once / export.PLAN, str(tiny_folder), tmp_path / "a")
    export.load(twice / export.PLAN, str(once), tmp_path / "b")
    assert same_weights(tmp_path / "a", once) and same_weights(tmp_path / "b", twice)


def deeper(once: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    return untrained(tmp_path / "deeper", vision={**VISION, "depth": 3}, text=TEXT)


def wider(once: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    return untrained(tmp_path / "wider", vision=VISION, text={**TEXT, "intermediate_size": 80})


def narrow(once: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    """A channel fewer in one block."""
    families.save(narrowed(families.load(tiny_folder)), tmp_path / "narrow")
    return tmp_path / "narrow"


OTHERS: dict[str, Callable[[Path, Path, Path], Path]] = {
    "pruned": lambda once, tiny_folder, tmp_path: once,
    "wider": wider,
    "deeper": deeper,
    "narrow": narrow,
    "another family": lambda once, tiny_folder, tmp_path: build("llava", tmp_path / "llava"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_plan_of_other_widths_is_refused(
    call: Call, once: Path, tiny_folder: Path, tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OTHERS[other](once, tiny_folder, tmp_path)
    monkeypatch.setattr(export, "_write", None)
    done = call("load", once / export.PLAN, model, "out")
    refused(done, f"{once / export.PLAN}: plan.widths.", f"{model} has ", f"this plan is of {tiny_folder}")


def test_the_plan_of_a_pruned_model_is_refused_by_the_dense_one(call: Call, twice: Path, tiny_folder: Path) -> None:
    refused(call("load", twice / export.PLAN, tiny_folder, "out"), "plan.widths.language.0.", "this plan is of ")


def test_a_record_of_a_model_that_was_replaced_is_refused_before_the_work(
    once: Path, tiny_folder: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trial names a folder, in which another model may lie by now."""
    model = shutil.copytree(once, tmp_path / "model")
    run = FinishedSweep(
        read_board(tmp_path, model, questions, ["magnitude"], metrics=["flops"]), tmp_path / "results", inline=True
    )
    found = run.records()["magnitude"]
    assert found.plan is not None and found.plan.widths
    export.export(run.results, found.id, tmp_path / "good")
    shutil.rmtree(model)
    shutil.copytree(tiny_folder, model)
    monkeypatch.setattr(Pruner, "prune", None)
    for again in (
        lambda: export.export(run.results, found.id, tmp_path / "out"),
        lambda: export.load(tmp_path / "good" / export.PLAN, str(model), tmp_path / "out"),
    ):
        with pytest.raises(InputError, match=r"hashes.weights: \w+, but|plan.widths"):
            again()
    assert not (tmp_path / "out").exists()


# --- plans from before they had widths ------------------------------------------------------------------------


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a plan.json with a changed plan, whose hash is right."""
    content = json.loads((folder / export.PLAN).read_text())
    change(content["plan"])
    content["hashes"]["plan"] = short_hash(content["plan"])
    path = folder.parent / "changed.json"
    path.write_text(json.dumps(content))
    return path


def older(folder: Path) -> Path:
    return changed(folder, lambda plan: plan.pop("widths"))


def test_a_plan_without_widths_fits_its_own_weights_and_others_of_its_widths(
    twice: Path, once: Path, tiny_folder: Path, questions: Path, tmp_path: Path
) -> None:
    done = export.load(older(twice), str(once), tmp_path / "a")
    assert same_weights(tmp_path / "a", twice) and done.plan != json.loads((twice / export.PLAN).read_text())
    families.save(families.load(once, random_weights=True, seed=1), tmp_path / "fresh")
    export.load(older(twice), str(tmp_path / "fresh"), tmp_path / "b")
    with pytest.raises(InputError, match=r"plan.achieved: 0\.\d+ of its model, but 0\.\d+ of .*; this plan is of "):
        export.load(older(twice), str(tiny_folder), tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("currency", ["params", "latency"])
def test_a_plan_without_widths_in_another_currency(
    once: Path, tiny_folder: Path, questions: Path, tmp_path: Path, currency: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: Any = {(part, kind): 1e-9 for part in ("vision", "language") for kind in ("heads", "ffn")}
    monkeypatch.setattr(latency_rates, "seconds", lambda *_: (rates, 0.0))
    small = prune(once, tmp_path / "small", questions, currency=currency)
    export.load(older(small), str(once), tmp_path / "a")
    families.save(families.load(once, random_weights=True, seed=1), tmp_path / "fresh")
    if currency == "params":
        export.load(older(small), str(tmp_path / "fresh"), tmp_path / "b")
    for other in [tiny_folder, *([tmp_path / "fresh"] if currency == "latency" else [])]:
        with pytest.raises(InputError, match=r"plan.achieved: |plan.widths: missing, and its budget is in time"):
            export.load(older(small), str(other), tmp_path / "c")


def test_records_without_widths_keep_their_hash() -> None:
    seen = 0
    for path in sorted((ROOT / "results").glob("*/*.json"))[::20]:
        found = record.read(path)
        if found.plan is not None and "widths" not in json.loads(path.read_text())["plan"]:
            seen += 1
            assert short_hash(found.plan.to_json()) == found.hashes["plan"]
            assert found.plan.widths == {} and found.trial.id == found.id
    content = {"requested": 0.5, "achieved": 0.5, "blocks": {"vision.0": {"heads": [1]}}}
    assert Plan.of(content).to_json() == content and (seen or not list((ROOT / "results").glob("*/*.json")))


@pytest.mark.slow
def test_an_older_record_is_exported_as_it_is(tiny_folder: Path, questions: Path, tmp_path: Path) -> None:
    board = read_board(tmp_path, tiny_folder, questions, ["magnitude", "svd"], metrics=["flops"])
    run = FinishedSweep(board, tmp_path / "results", inline=True)
    for method in ("magnitude", "svd"):
        found = run.records()[method]
        assert found.plan is not None
        plan = replace(found.plan, widths={})
        hashes = {**found.hashes, "plan": short_hash(plan.to_json())}
        record.write(tmp_path / "old" / "small", replace(found, plan=plan, hashes=hashes))
        done = export.export(tmp_path / "old", found.id, tmp_path / method)
        assert (
            done.plan == hashes["plan"] == short_hash(json.loads((tmp_path / method / export.PLAN).read_text())["plan"])
        )
        export.export(run.results, found.id, tmp_path / f"{method} new")
        assert same_weights(tmp_path / method, tmp_path / f"{method} new")
        export.load(tmp_path / method / export.PLAN, str(tiny_folder), tmp_path / f"{method} again")


# --- plans that nobody wrote ----------------------------------------------------------------------------------


def put_part(part: Any) -> Callable[[dict[str, Any]], object]:
    return lambda plan: plan["blocks"]["vision.0"].__setitem__("ffn", part)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put_part([0, 64]), "plan.blocks.vision.0.ffn: "),
        (put_part([-1, 3]), "plan.blocks.vision.0.ffn: "),
        (put_part([3, 3]), "plan.blocks.vision.0.ffn: "),
        (put_part([3, 2]), "plan.blocks.vision.0.ffn: "),
        (put_part([]), "plan.blocks.vision.0.ffn: "),
        (put_part(["a"]), "plan.blocks.vision.0.ffn: "),
        (put_part([0.0, 1.5]), "plan.blocks.vision.0.ffn: "),
        (put_part([True]), "plan.blocks.vision.0.ffn: "),
        (put_part(3), "not a plan.json"),
        (lambda plan: plan["blocks"].update({"vision.9": {"ffn": [0]}}), "plan.blocks.vision.9.ffn: "),
        (lambda plan: plan["blocks"]["vision.0"].update({"neck": [0]}), "plan.blocks.vision.0.neck: "),
        (lambda plan: plan["widths"]["vision.0"].update({"ffn": 63}), "plan.widths.vision.0.ffn: "),
        (lambda plan: plan["widths"]["vision.0"].update({"ffn": "64"}), "plan.widths.vision.0.ffn: "),
        (lambda plan: plan["widths"].pop("vision.1"), "plan.widths.vision.1.heads: "),
        (lambda plan: plan["widths"].update({"vision.9": {"ffn": 64}}), "plan.blocks.vision.9.ffn: "),
        (lambda plan: plan.update({"widths": 3}), "not a plan.json"),
        (lambda plan: plan.update({"widths": None}), "not a plan.json"),
        (lambda plan: plan.update({"widths": {"vision.0": [64]}}), "not a plan.json"),
    ],
)
def test_a_plan_that_cannot_be_applied(
    call: Call, once: Path, tiny_folder: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    refused(call("load", changed(once, change), tiny_folder, "out"), "changed.json: ", told)


def test_a_plan_with_widths_comes_back(once: Path) -> None:
    content = json.loads((once / export.PLAN).read_text())
    plan = Plan.of(content["plan"])
    assert plan.widths["vision.0", "ffn"] == 64 and plan.widths.keys() == plan.parts.keys()
    assert json.loads(json.dumps(plan.to_json())) == content["plan"] and Plan.of(plan.to_json()) == plan
    assert Trial.of(content["trial"]).id == content["id"]


# --- settings of a contestant ---------------------------------------------------------------------------------


def test_prune_takes_what_a_contestant_on_a_board_takes(
    call: Call, tiny_folder: Path, questions: Path, tmp_path: Path
) -> None:
    """The same model as from Python: weights refitted, and units of several kinds with visual tokens."""
    words = ("prune", tiny_folder, "--method", "magnitude", "--scope", "all", "--data", questions, "--samples", 2)
    size = ("--image", "64x64", "--budget", "0.6")
    refit = call(*words, *size, "--tuning", "refit", "--out", tmp_path / "refit")
    assert refit.code == 0, refit.err
    again = prune(tiny_folder, tmp_path / "again", questions, tuning="refit")
    assert same_weights(tmp_path / "refit", again)
    assert not same_weights(again, prune(tiny_folder, tmp_path / "bare", questions))
    mixed = (*size[:3], "0.7", "--units", "ffn+tokens", "--share", "tokens=0.5", "--share", "ffn=0.5")
    done = call(*words, *mixed, "--tokens", "pool", "--out", tmp_path / "mixed")
    assert done.code == 0, done.err
    plan = Plan.of(json.loads((tmp_path / "mixed" / "plan.json").read_text())["plan"])
    assert plan.tokens is not None and {kind for _, kind in plan.parts} == {"ffn"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tuning", "refitt"], "unknown value 'refitt'; did you mean 'refit'"),
        (["--tuning", "[bias, refit]"], "one model is recovered in one way"),
        (["--tuning", "{method: lora, rank: 0}"], "rank"),
        (["--tuning", "{weights: int8}"], "a checkpoint here has whole weights"),
        (["--tuning", "{method: lora"], "--tuning {method: lora: not YAML"),
        (["--tuning", ""], "one model is recovered in one way"),
        (["--share", "ffn=0.5", "--share", "ffn=0.7"], "ffn is given twice"),
        (["--share", "ffn"], "--share ffn: use name=value"),
        (["--share", "ffn=2"], "heads is cut, but has no share"),
        (["--share", "rows=1"], "rows"),
        (["--tokens", "pool"], "add tokens to units"),
        (["--tokens", "nobody", "--units", "ffn+tokens"], "nobody"),
    ],
)
def test_settings_of_a_contestant_that_do_not_fit(
    call: Call, tiny_folder: Path, questions: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    common = ("--method", "magnitude", "--budget", "0.6", "--image", "64x64", "--data", questions, "--samples", 2)
    refused(call("prune", tiny_folder, *common, *words, "--out", tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()
