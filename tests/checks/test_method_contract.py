"""`infoprune check-method`: what it says of methods that break the contract, the guide's and another package's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.checks import method_contract
from harness.checks.method_contract import SIGNATURE
from harness.types import VLM
from tests.support.commands import Call, refused
from tests.support.paths import ROOT, environment

HEAD = """import torch
from harness.types import Additive, Global, Option, Options, Ordinal, Ranking

def order(vlm, seed=0, kinds="both"):
    own = torch.Generator().manual_seed(seed)
    return {(b.name, k): Ordinal(tuple(torch.rand(b.units(k).count, generator=own).tolist()))
            for b, k in vlm.select("all", kinds)}

def but(vlm, block, kind, score):
    return Ranking({**order(vlm), (block, kind): score})

def rank(vlm, calibration, *, seed):
    """
FINE = "return Ranking(order(vlm))"
LAYERS = """return Ranking({**order(vlm), **{(b.name, "layers"): score_of(b) for b in vlm.blocks}})

UNITS = ["layers", "heads", "ffn"]

def priced(block, *costs):
    full = block.layer.token_macs
    return Options((Option("dense", full, 0.0), *(Option(str(cost), cost, 1.0, dict) for cost in costs)))

def score_of(b):
    return """
HIDDEN = """return Ranking({(b.name, "ffn"): Options((dense(b), less(b))) for b in vlm.blocks})

UNITS = "ffn"

def dense(block):
    return Option("dense", block.ffn.count * block.ffn.token_macs, 0.0)

def less(block):
    return Option("less", block.ffn.count * block.ffn.token_macs - 1, 1.0, dict)
"""


def claims(kind: str, make: str) -> str:
    """A method whose options claim falling costs for this kind, but install what `make` gives, which costs more."""
    return f"""return Ranking({{(b.name, "{kind}"): costs(b, "{kind}", {make}) for b in vlm.blocks}})

UNITS = "{kind}"

from harness.statistics import linears
from harness.types import Dense

def weight_of(vlm, path):
    return vlm.model.get_parameter(path + ".weight").detach().clone()

def costs(block, kind, make):
    full = block.units(kind).count * block.units(kind).token_macs
    points = [Option(str(n), full * n // 100, 1 - n / 100, make) for n in range(99, 0, -1)]
    return Options((Option("dense", full, 0.0), *points))
"""


LEARN = """vlm.model.requires_grad_(True)
    vlm.model(**next(calibration.batches())).loss.backward()
    vlm.model.requires_grad_(False)
    return Ranking(order(vlm))"""
BROKEN = {  # what is wrong: the body of `rank`, the check, words of the finding
    "wrong shape": (
        "return but(vlm, 'vision.0', 'ffn', Ordinal((1.0,)))",
        "scores",
        "vision.0 ffn: 1 scores for 64 units",
    ),
    "NaN": (
        "return but(vlm, 'vision.1', 'heads', Ordinal((1.0, float('nan'), 2.0, 3.0)))",
        "scores",
        "vision.1 heads: score 1 is nan, not a finite number",
    ),
    "tensor": (
        "return but(vlm, 'vision.1', 'heads', Ordinal(torch.ones(4)))",
        "scores",
        r"a tuple of plain numbers, not Tensor \(use .tolist\(\) for a tensor\)",
    ),
    "unknown block": (
        "return but(vlm, 'vision.7', 'heads', Ordinal((1.0,)))",
        "scores",
        "unknown block and kind .*vision.7.* choose from: .*vision.1 heads",
    ),
    "unknown kind": (
        "return but(vlm, 'vision.1', 'channels', None)",
        "scores",
        "vision.1: unknown kind 'channels'; choose from: ffn, heads, layers, tokens",
    ),
    "one kind": (
        "return Ranking(order(vlm, kinds='heads'))",
        "scores",
        "no score for vision.0 ffn, .* and 1 more; a method that ranks only one kind sets UNITS = 'heads' or 'ffn'",
    ),
    "no score": (
        "return but(vlm, 'vision.0', 'heads', None)",
        "scores",
        "NoneType is not Ordinal, Global, Additive or Options",
    ),
    "mixed": (
        "return but(vlm, 'vision.0', 'ffn', Additive((1.0,) * 64))",
        "scores",
        "Ordinal or Global everywhere or nowhere",
    ),
    "log": (
        "return Ranking(order(vlm), {'curve': torch.ones(2)})",
        "scores",
        "log cannot be stored in a record: .*Tensor",
    ),
    "no ranking": ("return order(vlm)", "scores", "returned dict; it must return Ranking"),
    "raises": ("return Ranking(vlm.nothing)", "rank", r"raised AttributeError: .*nothing.* \(line 13 of method.py\)"),
    "weights": (f"vlm.model.lm_head.weight.data.mul_(1.5); {FINE}", "model", "weights were changed: .*embed_tokens"),
    "hooks": (
        f"vlm.model.model.visual.register_forward_hook(lambda *a: None); {FINE}",
        "model",
        "hooks were left: model.visual",
    ),
    "train mode": (f"vlm.model.train(); {FINE}", "model", "evaluation mode was changed: the model, .* more"),
    "eval mode": (f"vlm.model.eval(); {FINE}", "model", "train or evaluation mode was changed: [a-z_.]+$"),
    "flags": (f"vlm.model.requires_grad_(False); {FINE}", "model", "requires_grad was changed: .* more"),
    "modules": (f"vlm.model.extra = torch.nn.Identity(); {FINE}", "model", "modules were added, .* replaced: extra"),
    "global generator": (f"torch.rand(1); {FINE}", "seed", "draws from torch's global generator"),
    "no determinism": (
        "import random; return Ranking(order(vlm, random.randrange(2**31)))",
        "seed",
        "other scores in a second run .vision.0 heads, vision.0 ffn, .*torch.Generator",
    ),
    "options that change nothing": (
        claims("ffn", "dict"),
        "budgets",
        r"its plan states 0\.\d+ of the FLOPs of ffn in scope vision, but 1\.0000 are measured",
    ),
    "fake quantisation": (
        claims("ffn", "lambda: {p: Dense(weight_of(vlm, p).bfloat16().float(), None) for p in linears(b.ffn)}"),
        "budgets",
        r"its plan states 0\.\d+ of the FLOPs of ffn in scope vision, but 1\.0000 are measured",
    ),
    "masks on attention": (
        claims("heads", "lambda: {b.heads.consumer: Dense(0 * weight_of(vlm, b.heads.consumer), None)}"),
        "budgets",
        r"its plan states 0\.\d+ of the FLOPs of heads in scope vision, but 1\.0000 are measured",
    ),
    "one width for all blocks": (
        "return Ranking({(b.name, k): Ordinal((1.0,) * vlm.block(b.component + '.0').units(k).count)"
        " for b, k in vlm.select('all')})",
        "pruned",
        "on a model of uneven widths: vision.1 heads: 4 scores for 3 units",
    ),
    "weights of what it does not score": (
        "[vlm.model.get_parameter(b.ffn.consumer + '.weight') for b in vlm.blocks]\n"
        "    return Ranking(order(vlm, kinds='heads'))\n\nUNITS = 'heads'\n",
        "pruned",
        r"on a model with factored ffn: raised AttributeError: .*weight.* \(line 13 of method.py\)",
    ),
    "exit": ("raise SystemExit(0)", "rank", r"raised RuntimeError: the method exits: 0 \(line 13 of method.py\)"),
    "exit on a pruned model": (
        f"[exit(0) for b in vlm.blocks if b.ffn.count % 2]; {FINE}",
        "pruned",
        r"on a model of uneven widths: raised RuntimeError: the method exits: 0",
    ),
    "exit in an option": (
        claims("ffn", "lambda: exit(0)"),
        "budgets",
        "the plan cannot be applied: SystemExit: 0",
    ),
    "options of another class": (
        "return but(vlm, 'vision.0', 'ffn', Options(({'loss': 0},)))",
        "scores",
        "cannot be checked: AttributeError: 'dict' object has no attribute",
    ),
    "no budget": (HIDDEN, "budgets", "0.75 of the FLOPs of ffn in scope vision: the smallest reachable is 0.9998"),
}
SIGNATURES = {
    "missing": ("def score(vlm): ...", "no function `rank`; write `def rank"),
    "no function": ("rank = 3", "no function `rank`"),
    "positional seed": ("def rank(vlm, calibration, seed): ...", "`rank` needs the keyword-only parameter `seed`"),
    "no seed": ("def rank(vlm, calibration): ...", "`rank` needs the keyword-only parameter `seed`"),
    "names": ("def rank(model, data, *, seed): ...", "the first parameters of `rank` must be vlm and calibration"),
    "star": (
        "def rank(vlm, calibration, *, seed, **options): ...",
        r"takes \*\*options; every option must be keyword-only",
    ),
    "no type": ("def rank(vlm, calibration, *, seed, power=2.0): ...", "'power' has no type; write `power: float"),
    "no default": ("def rank(vlm, calibration, *, seed, power: float): ...", "option 'power' has no default"),
    "wrong default": ("def rank(vlm, calibration, *, seed, power: int = 'x'): ...", "default of option 'power'"),
    "unknown type": ("def rank(vlm, calibration, *, seed, power: 'Float' = 1): ...", "annotation of `rank` cannot be"),
    "units": (
        f"UNITS = 'neurons'\n{SIGNATURE}: ...",
        "UNITS: unknown kind of units 'neurons'; choose from: both, ffn, heads, layers, tokens",
    ),
    "array": (
        "import numpy as np\ndef rank(vlm, calibration, *, seed, a: np.ndarray = np.zeros(2)): ...",
        "default of option 'a' of method 'method': values of its type cannot be checked; annotate it",
    ),
    "regime that exits": (f"def regime(options): exit(0)\n{SIGNATURE}: ...", "`regime` raised SystemExit: 0"),
    "role": (
        f"import numpy as np\nROLE = np.zeros(2)\n{SIGNATURE}: ...",
        "cannot be checked: ValueError: The truth value",
    ),
    "regime": (
        f"REGIME = 'repaired'\n{SIGNATURE}: ...",
        "REGIME = 'repaired'; choose from: none, bias, ",
    ),
}


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ("Additive((0.5,))", ""),
        ("Global((float(b.index),))", ""),
        ("priced(b, 0)", ""),
        ("priced(b, 5)", "the Options of a layer are two: the dense one, and one of cost 0"),
        ("Ordinal((1.0, 2.0))", "vision.0 layers: 2 scores for 1 units"),
        ("Ordinal((1.0,)) if b.index else Additive((1.0,))", "Ordinal or Global everywhere or nowhere"),
    ],
)
def test_layers_may_have_a_shape_of_their_own(tmp_path: Path, tiny: VLM, score: str, words: str) -> None:
    """Heads and channels are Ordinal here; layers are checked, solved and removed like other units."""
    breaches = found(tmp_path, HEAD + f"    {LAYERS}{score}\n", tiny)
    assert not breaches if not words else any(words in breach.text for breach in breaches), breaches


def found(folder: Path, text: str, vlm: VLM) -> list[method_contract.Breach]:
    file = folder / "method.py"
    file.write_text(text)
    return method_contract.breaches(*method_contract.load(str(file)), vlm)


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_breach_is_named_and_leaves_no_trace(tmp_path: Path, tiny: VLM, wrong: str) -> None:
    body, check, words = BROKEN[wrong]
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    breaches = found(tmp_path, HEAD + body, tiny)
    assert {breach.check for breach in breaches} == {check}, breaches
    assert re.search(words, breaches[0].text) and "\n" not in breaches[0].text, breaches
    after = tiny.model.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert found(tmp_path, HEAD + FINE, tiny) == []


@pytest.mark.parametrize("wrong", SIGNATURES)
def test_a_wrong_signature_is_named_before_anything_runs(tmp_path: Path, tiny: VLM, wrong: str) -> None:
    text, words = SIGNATURES[wrong]
    (breach,) = found(tmp_path, text, tiny)
    assert breach.check == "signature" and re.search(words, breach.text), breach


def test_gradients_are_not_left(tmp_path: Path, tiny: VLM) -> None:
    breaches = found(tmp_path, HEAD + LEARN, tiny)
    assert breaches[0].check == "model" and breaches[0].text.startswith("gradients were left: "), breaches
    assert all(weight.grad is None and not weight.requires_grad for weight in tiny.model.parameters())


def test_every_breach_of_a_sort_is_not_listed(tmp_path: Path, tiny: VLM) -> None:
    body = "return Ranking({key: Ordinal((1.0,)) for key in order(vlm)})"
    breaches = found(tmp_path, HEAD + body, tiny)
    assert len(breaches) == 4 and breaches[-1].text == "5 more like these"


def guide() -> str:
    """The method of the guide."""
    page = ROOT / "docs/guides/your-method.md"
    (text,) = re.findall(r"```python\n(.*?def rank.*?)```", page.read_text(), re.DOTALL)
    return text


def test_the_method_of_the_guide_is_sound_and_ten_lines(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "power.py"
    file.write_text(guide())
    assert sum(bool(line.strip()) for line in guide().splitlines()) <= 11
    done = call("check-method", file)
    assert (done.code, done.out) == (0, "ok  power: signature, rank, scores, model, seed, budgets, pruned\n")
    done = call("check-method", file, "--json")
    assert json.loads(done.out) == {"method": "power", "sound": True, "findings": []}


def test_a_breach_is_exit_1_and_a_line(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text(guide().replace(".tolist()", ""))
    done = call("check-method", file)
    assert done.code == 1 and done.out.startswith("no  scores: vision.0 heads: the scores must be") and not done.err
    said = json.loads(call("check-method", file, "--json").out)
    assert not said["sound"] and {finding["check"] for finding in said["findings"]} == {"scores"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing.py", None, "no such file"),
        ("folder.py", "", "a folder, not a Python file"),
        ("notes.txt", "x", "not a Python file"),
        ("wrong.py", "def rank(vlm,\n", "SyntaxError"),
        ("needs.py", "import not_installed_anywhere\n", "No module named 'not_installed_anywhere'"),
        ("early.py", "1 / 0\n", "ZeroDivisionError"),
        ("exits.py", "import sys; sys.exit(0)\n", "cannot be imported: SystemExit: 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_exit_2(
    call: Call, tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    file = tmp_path / name
    if text:
        file.write_text(text)
    elif text is not None:
        file.mkdir()
    refused(call("check-method", file), name, words)


def test_an_unknown_name_offers_the_nearest(call: Call) -> None:
    refused(call("check-method", "randum"), "did you mean 'random'?")


@pytest.mark.slow
def test_an_installed_package_adds_a_method(tmp_path: Path) -> None:
    """Built and installed by pip into a folder of its own, and found by its entry point."""
    package, site = tmp_path / "package", tmp_path / "site"
    (package / "their_pruning").mkdir(parents=True)
    (package / "their_pruning" / "__init__.py").write_text("")
    (package / "their_pruning" / "power.py").write_text(guide())
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "their-pruning"\nversion = "1.0"\n'
        '[project.entry-points."infoprune.methods"]\npower = "their_pruning.power"\n'
        '[tool.setuptools]\npackages = ["their_pruning"]\n'
    )
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(package)],
        check=True,
        cwd=tmp_path,
    )

    found = environment(site, HF_HUB_OFFLINE="1")

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "harness.cli", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=found).stdout

    listed = {method["name"]: method for method in json.loads(run("list", "methods", "--json"))}
    assert listed["power"]["title"] == "Largest weights stay (an example)"
    assert listed["power"]["options"]["power"]["default"] == 2.0
    assert run("check-method", "power").startswith("ok  power: ")
