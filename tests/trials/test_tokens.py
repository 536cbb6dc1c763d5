"""Trials of the kind `tokens`: what is refused before any work, and mixtures of tokens with other kinds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from baselines import pool
from harness.checkpoints import export
from harness.families import load
from harness.machine.phases import PhaseTimer
from harness.metrics import flops
from harness.progress import silent
from harness.pruning import surgery, tokens
from harness.pruning.solver import TOLERANCE
from harness.records import record
from harness.trials import staleness
from harness.trials.context import Context
from harness.trials.methods import per_budget
from harness.trials.pruner import Pruner
from harness.trials.result import contestant
from harness.trials.worker import Worker
from harness.types import (
    VLM,
    Budget,
    CalibrationSpec,
    Chooser,
    InputError,
    Keep,
    Plan,
    Questions,
    Ranking,
    ReferenceInput,
    TokenPlan,
    TokenRule,
    Trial,
)
from tests.support.boards import read_board
from tests.support.trials import plain_trial

MIXED = '''"""Mixed: channels by size, heads by number, random tokens (an example)."""

import torch

from harness.types import Ordinal, Ranking, TokenRule

UNITS = ["heads", "ffn", "tokens"]


def rank(vlm, calibration, *, seed, layer: int = 1):
    scores = {
        (block.name, kind): Ordinal(tuple(map(float, range(block.units(kind).count))))
        for block, kind in vlm.select("all", "both")
    }
    return Ranking(scores, tokens=TokenRule(keep_tokens, layer))


def keep_tokens(states, count):
    return torch.arange(count)
'''


def read(folder: Path, model: Path, data: Path, **more: Any) -> Any:
    defaults: dict[str, Any] = {"units": "tokens", "scopes": ["language"], "budgets": [0.9]}
    return read_board(folder, model, data, more.pop("methods", ["random_tokens"]), **(defaults | more))


def trial(model: Path, method: str, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        "model": str(model),
        "method": method,
        "units": "tokens",
        "scope": "language",
        "budget": 0.9,
        "reference_input": ReferenceInput((64, 64)),
        "calibration": CalibrationSpec(3, ("mini_vqav2",)),
        "questions": Questions(("mini_vqav2",), limit=2),
    }
    return plain_trial(**(settings | changes))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"scopes": ["vision"]}, "scopes: vision: visual tokens are cut in the language model; use language or all"),
        ({"scopes": ["all", "vision"]}, "scopes: vision: visual tokens are cut"),
        ({"currency": "params"}, "currency: params: a budget of visual tokens is of FLOPs; use currency: flops"),
        ({"currency": "latency"}, "currency: latency: a budget of visual tokens is of FLOPs"),
        ({"tuning": {"method": "refit", "rounds": 2}}, "rounds: visual tokens are cut once; set rounds to 1"),
        ({"methods": [{"method": "fastv", "sequential": True}]}, "sequential: visual tokens have no blocks to rank"),
        ({"methods": [{"method": "fastv", "control": "random-units"}]}, "control: random-units: visual tokens have no"),
        ({"methods": ["taylor"]}, "taylor ranks heads, ffn only, so it cannot meet a budget over units: tokens"),
        ({"units": "both", "methods": ["fastv"]}, "fastv ranks tokens only, so it cannot meet a budget over"),
    ],
)
def test_what_tokens_cannot_have_is_refused(
    tmp_path: Path, tiny_folder: Path, questions: Path, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as e:
        read(tmp_path, tiny_folder, questions, **keys)
    assert "\n" not in str(e.value) and "small.yaml" in str(e.value)


def test_tokens_beside_other_kinds_need_shares(tmp_path: Path, tiny_folder: Path, questions: Path) -> None:
    (tmp_path / "mixed.py").write_text(MIXED)
    entry = {"method": str(tmp_path / "mixed.py")}
    kinds = ["heads", "ffn", "tokens"]
    with pytest.raises(InputError, match=r"units: both\+tokens|units: heads\+ffn\+tokens") as e:
        read(tmp_path, tiny_folder, questions, units=kinds, methods=[entry])
    assert "say with `shares` how much of the saving each kind gives" in str(e.value)
    entry["shares"] = {"heads": 0.25, "ffn": 0.25, "tokens": 0.5}  # type: ignore[assignment]
    assert read(tmp_path, tiny_folder, questions, units=kinds, methods=[entry]).trials()[-1].shares


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("fastv", {"options": {"layer": 2}}, "tokens: layer: 2 is not in the language model of .*; use 0 to 1"),
        ("random_tokens", {"options": {"layer": -1}}, "tokens: layer: -1 is not in the language model"),
        ("fastv", {"options": {"layer": 0}}, "tokens: layer: 0 has no layer before it, whose attention this method"),
        (
            "random_tokens",
            {"budget": 0.05},
            "budget: 0.05 of the FLOPs of scope language with fewer visual tokens .*: the",
        ),
        ("random_tokens", {"scope": "vision"}, "scopes: vision"),
        ("visionzip", {"options": {"contextual": 1.5}}, "visionzip: contextual: 1.5 should be"),
    ],
)
def test_trials_that_cannot_be_planned(tiny_folder: Path, method: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Pruner().prune(trial(tiny_folder, method, **changes), PhaseTimer())


def test_a_reference_without_visual_tokens_is_refused(tiny: VLM) -> None:
    from harness import registry
    from harness.families import encode, family

    inputs = encode(tiny.processor, [[]], ["How many?"])
    inputs["image_grid_thw"] = torch.zeros(0, 3, dtype=torch.long)
    extents = family(tiny.family).extents(tiny.model, inputs)
    ranking = registry.method("random_tokens").rank(tiny, None, seed=0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the reference image gives 0 visual tokens, so none can be dropped"):
        tokens.solve(tiny, ranking, Budget("language", 0.9, "tokens", extents), inputs, "x")


def test_a_trial_of_tokens_is_measured_as_planned(tiny_folder: Path) -> None:
    whole = trial(tiny_folder, "random_tokens", budget=1.0)
    same = Pruner().prune(whole, PhaseTimer())
    assert same.vlm.model.state_dict().keys() == same.dense.model.state_dict().keys() and same.plan.tokens is None
    asked = trial(tiny_folder, "random_tokens", budget=0.72, seed=4)
    pruned = Pruner().prune(asked, PhaseTimer())
    assert pruned.plan.tokens == TokenPlan(0, pruned.plan.tokens.share, "random_tokens", options={"seed": 4})  # type: ignore[union-attr]
    assert flops.measured_share(pruned.vlm, pruned.dense, asked, Context(asked.reference_input)) == pytest.approx(
        0.72, rel=TOLERANCE
    )
    other = Pruner().prune(trial(tiny_folder, "random_tokens", budget=0.72, seed=5), PhaseTimer())
    assert other.hashes["plan"] != pruned.hashes["plan"]  # the seed is part of the plan


@pytest.mark.parametrize("layer", [0, 1])
def test_a_mixture_meets_its_budget(tmp_path: Path, tiny_folder: Path, layer: int) -> None:
    """Tokens give their share of the saving; widths of the blocks that then see fewer tokens make up the rest."""
    (tmp_path / "mixed.py").write_text(MIXED)
    asked = trial(
        tiny_folder,
        "mixed",
        method_file=str(tmp_path / "mixed.py"),
        units="heads+ffn+tokens",
        options={"layer": layer},
        budget=0.8,
        scope="all",
        shares={"heads": 0.3, "ffn": 0.3, "tokens": 0.4},
    )
    pruned = Pruner().prune(asked, PhaseTimer())
    assert pruned.plan.tokens is not None and pruned.plan.parts
    kept = flops.measured_share(pruned.vlm, pruned.dense, asked, Context(asked.reference_input))
    assert kept == pytest.approx(0.8, rel=TOLERANCE) and kept == pytest.approx(pruned.plan.achieved, rel=1e-9)


MIXTURES = [
    ("taylor", "heads+ffn+tokens", Chooser("pool"), {"heads": 0.4, "ffn": 0.3, "tokens": 0.3}),
    ("taylor", "heads+ffn+tokens", Chooser("divprune"), {"tokens": 0.3}),
    ("random_layers", "heads+ffn+layers+tokens", Chooser("pool"), {"tokens": 0.2, "layers": 0.5}),
    ("wanda", "ffn+tokens", Chooser("fastv", {"layer": 1}), {"ffn": 0.8, "tokens": 0.2}),
    ("magnitude", "heads+ffn+tokens", Chooser("visionzip"), {"tokens": 0.2}),
    ("random", "heads+ffn+tokens", Chooser("fastv", {"layer": 1}), {"tokens": 0.3}),
    ("shortgpt", "ffn+layers+tokens", Chooser("random_tokens"), {"layers": 0.5, "ffn": 0.2, "tokens": 0.3}),
]


@pytest.mark.parametrize(("method", "units", "chooser", "shares"), MIXTURES)
def test_another_method_may_choose_the_tokens(
    tmp_path: Path, tiny_folder: Path, method: str, units: Any, chooser: Chooser, shares: Any
) -> None:
    asked = trial(
        tiny_folder, method, units=units, tokens=chooser, budget=0.7, scope="all", shares=shares, seed=3
    )  # fmt: skip
    assert Trial.of(json.loads(json.dumps(asked.content()))) == asked and f"tokens={chooser.method}" in asked.variant
    pruned = Pruner().prune(asked, PhaseTimer())
    cut = pruned.plan.tokens
    assert cut is not None and cut.method == chooser.method and pruned.plan.parts
    assert {kind for _, kind in pruned.plan.parts} <= set(units.split("+"))
    kept = flops.measured_share(pruned.vlm, pruned.dense, asked, Context(asked.reference_input))
    assert kept == pytest.approx(0.7, rel=TOLERANCE) and kept == pytest.approx(pruned.plan.achieved, rel=1e-9)
    written = export.prune(asked, tmp_path / "out")
    assert written.form == "custom code"
    again = load(tmp_path / "out", trust_remote_code=True)
    assert flops.measured_share(again, pruned.dense, asked, Context(asked.reference_input)) == pytest.approx(
        kept, rel=1e-9
    )


@pytest.mark.parametrize(
    ("units", "entry", "words"),
    [
        ("both", {"tokens": "pool"}, "taylor: tokens: units: both cuts no visual tokens; add tokens to units"),
        (["tokens"], {"tokens": "pool"}, "tokens: is for a method that cuts other kinds; name pool as the method"),
        (["ffn", "tokens"], {"method": "fastv", "tokens": "pool"}, "is for a method that cuts other kinds"),
        (["ffn", "tokens"], {"tokens": "wanda"}, "tokens: wanda ranks heads, ffn; name a method of visual tokens"),
        (["ffn", "tokens"], {"tokens": "poll"}, "unknown method 'poll'; did you mean 'pool'"),
        (["ffn", "tokens"], {"tokens": {"method": "pool", "options": {"layr": 1}}}, "'layr'; did you mean 'layer'"),
        (["ffn", "tokens"], {"tokens": {"methd": "pool"}}, "methods.0.tokens.method: this key is missing"),
        (["ffn", "tokens"], {"tokens": 3}, "methods.0.tokens: "),
        (["ffn", "tokens"], {"tokens": "./x.py"}, "tokens: ./x.py: a file cannot choose for another method"),
        (["ffn", "tokens"], {"tokens": "pool", "shares": {}}, "say with `shares` how much of the saving"),
        (["ffn", "tokens"], {}, "taylor ranks heads, ffn only"),
    ],
)
def test_a_chooser_of_tokens_that_is_none_is_refused(
    tmp_path: Path, tiny_folder: Path, questions: Path, units: Any, entry: dict[str, Any], words: str
) -> None:
    whole = {"method": "taylor", "shares": {"ffn": 0.5, "tokens": 0.5}, **entry}
    with pytest.raises(InputError, match=words) as e:
        read(tmp_path, tiny_folder, questions, units=units, methods=[whole])
    assert "\n" not in str(e.value)


def test_a_chooser_is_one_more_contestant(tmp_path: Path, tiny_folder: Path, questions: Path) -> None:
    """Its code counts for what is stale, and a name may stand for it."""
    shares = {"ffn": 0.5, "tokens": 0.5}
    methods = [{"method": "wanda", "tokens": name, "shares": shares} for name in ("pool", "divprune")]
    first, second = read(tmp_path, tiny_folder, questions, units=["ffn", "tokens"], methods=methods).trials()[1:]
    assert first.tokens == Chooser("pool") and first.ranking != second.ranking
    assert staleness.hashes(first)["code"] != staleness.hashes(second)["code"]


def test_a_chooser_counts_for_what_a_contestant_is(tiny_folder: Path) -> None:
    """Random widths with chosen tokens are no floor, and the options of both are written down."""
    settings: dict[str, Any] = {"units": "ffn+tokens", "shares": {"tokens": 0.3}, "scope": "all"}
    mixed = contestant(trial(tiny_folder, "random", tokens=Chooser("fastv", {"layer": 1}), **settings))
    assert (mixed.role, mixed.regime, mixed.resolved["tokens.layer"]) == ("reference", "none", 1)
    assert contestant(trial(tiny_folder, "random", tokens=Chooser("random_tokens"), **settings)).role == "floor"
    assert contestant(trial(tiny_folder, "infoprune", tokens=Chooser("pool"), **settings)).role == "studied"


def test_a_chooser_that_asks_for_the_budget_is_asked_for_each(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(states: Any, count: int, asked: float) -> Any:
        return torch.arange(count)

    def rank(vlm: Any, calibration: Any, *, seed: int, budget: Budget) -> Ranking:
        return Ranking({}, tokens=TokenRule(keep, 0, "none", {"asked": budget.keep}))

    monkeypatch.setattr(pool, "rank", rank)
    settings: dict[str, Any] = {"units": "ffn+tokens", "shares": {"tokens": 0.3}, "scope": "all"}
    pruner = Pruner()
    for budget in (0.8, 0.7):
        one = trial(tiny_folder, "random", tokens=Chooser("pool"), budget=budget, **settings)
        cut = pruner.prune(one, PhaseTimer()).plan.tokens
        assert cut is not None and cut.options["asked"] == budget and per_budget(one)


def test_a_row_is_exported_from_its_own_weights_only(tmp_path: Path, tiny_folder: Path) -> None:
    """Its card has the accuracy that these weights had; a plan alone fits others too (`load`)."""
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    shares: Any = {"ffn": 0.6, "tokens": 0.4}
    asked = trial(
        model, "random", units="ffn+tokens", tokens=Chooser("pool"), shares=shares, scope="all", metrics=("flops",)
    )
    done = Worker("cpu", silent).run(asked)
    record.write(tmp_path / "results" / asked.board, done.record, done.samples)
    file = model / "model.safetensors"
    weights = load_file(file)
    save_file({name: value / 2 for name, value in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"hashes\.weights"):
        export.export(tmp_path / "results", asked.id, tmp_path / "out")


def test_the_cut_follows_its_layer_where_layers_before_it_go(tiny: VLM) -> None:
    def keep(states: Any, count: int) -> Any:
        return torch.arange(count)

    parts: dict[Any, Any] = {("language.0", "layers"): Keep(())}
    plan = Plan(parts, 0.5, 0.5, tokens=TokenPlan(1, 0.5, "x"))
    pruned: Any = surgery.apply(tiny, plan, Ranking({}, tokens=TokenRule(keep, 1))).model
    assert pruned.token_cut.layer == 0 and len(pruned.model.language_model.layers) == 1
    read = replace(plan, tokens=TokenPlan(1, 0.5, "x", "text"))
    with pytest.raises(InputError, match="no layer stays before the cut of visual tokens"):
        surgery.apply(tiny, read, Ranking({}, tokens=TokenRule(keep, 1, "text")))


def test_a_plan_survives_json(tiny_folder: Path) -> None:
    plan = Plan({}, 0.5, 0.5, tokens=TokenPlan(2, 0.25, "fastv", "text", {"a": 1}))
    assert Plan.of(json.loads(json.dumps(plan.to_json()))) == plan
    assert "tokens" not in Plan({}, 0.5, 0.5).to_json()


def test_an_exported_folder_needs_torch_and_transformers_only(tmp_path: Path, tiny_folder: Path) -> None:
    """And its plan makes the same cut of other weights."""
    asked = trial(tiny_folder, "visionzip", budget=0.9)
    export.prune(asked, tmp_path / "out")
    for file in (tmp_path / "out").glob("*.py"):
        imports = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not any("harness" in line or "baselines" in line for line in imports), file
    code = (
        "import sys; sys.modules['harness'] = sys.modules['baselines'] = None\n"
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"model = Auto.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True)\n"
        "print(model.token_cut.layer, len(model.token_cut.asked))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stdout.split() == ["0", "4"], ran.stderr
    again = load(tmp_path / "out", trust_remote_code=True)
    assert again.model.token_cut.attention == "vision"  # type: ignore[union-attr]
    made = export.load(tmp_path / "out" / "plan.json", str(tiny_folder), tmp_path / "again")
    assert made.form == "custom code"
    assert (tmp_path / "again" / "token_choice.py").read_text() == (tmp_path / "out" / "token_choice.py").read_text()


def test_a_choice_that_cannot_be_written_out_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "outside.py"
    file.write_text(
        '"""Outside (an example)."""\n\nimport numpy\nimport torch\n\nfrom harness.types import Ranking, TokenRule\n\n'
        'UNITS = "tokens"\n\n\ndef rank(vlm, calibration, *, seed):\n'
        "    return Ranking({}, tokens=TokenRule(keep_tokens))\n"
        "\n\ndef keep_tokens(states, count):\n    return torch.from_numpy(numpy.arange(count))\n"
    )
    asked = trial(tiny_folder, "outside", method_file=str(file), budget=0.9)
    with pytest.raises(InputError, match=r"export: the choice of tokens cannot be written .*: keep_tokens uses numpy"):
        export.prune(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": 9}, "tokens.layer: 9 is beyond the 2 layers"),
        ({"share": 1.5}, r"tokens.share: 1.5 is not in \(0, 1\]"),
        ({"what": 1}, "tokens: .*what"),
        ({"layer": 0}, "tokens.layer: attention of the text is read in the layer before"),
    ],
)
def test_settings_of_a_folder_that_do_not_fit(
    tmp_path: Path, tiny_folder: Path, change: dict[str, Any], words: str
) -> None:
    export.prune(trial(tiny_folder, "fastv", options={"layer": 1}), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    content = json.loads(file.read_text())
    content["pruned"]["tokens"] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as e:
        load(tmp_path / "out", trust_remote_code=True)
    assert "config.json" in str(e.value)
