"""Theory, measured: information of Gaussian channels, correlations of planted data, exact and inexact predictions."""

from __future__ import annotations

import csv
import json
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from baselines.infoprune import findings, theory
from baselines.infoprune.bench import decomposed, energy_error
from baselines.infoprune.correlation import correlation
from baselines.infoprune.ffn import Ffn
from baselines.infoprune.probe import Reading, cross_entropy
from baselines.infoprune.spectrum import effective_rank, masked_spectrum
from baselines.infoprune.theory import head_masks, information, share
from harness import tasks
from harness.families import encode
from harness.statistics.calibration import Calibration
from harness.types import VLM, Dense, InputError, LowRank, Sample
from tests.support.commands import Call, refused
from tests.support.question_files import asked

DECODED = 8


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return tasks.samples(asked(tasks.names(), "calibration"), 36, 0)


@pytest.fixture(scope="module")
def points(tiny: VLM, samples: list[Sample]) -> dict[str, theory.Points]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory, "DECODED", DECODED)
        return theory.measure(tiny, samples)


# --- correlations -----------------------------------------------------------------------------------------


def test_correlations_are_scipys() -> None:
    x, y = matrix(40).tolist(), (matrix(40) + matrix(40, seed=1)).round(decimals=1).tolist()
    found = correlation(x, y)
    assert found["n"] == 40 and "within" not in found
    assert found["pearson"] == pytest.approx(pearsonr(x, y)[0])
    assert found["spearman"] == pytest.approx(spearmanr(x, y)[0])


def test_what_only_the_groups_bring_about_is_gone_within_them() -> None:
    draw = random.Random(0)
    groups = [i % 5 for i in range(500)]
    x, noise = ([g + 0.1 * draw.random() for g in groups] for _ in range(2))
    found = correlation(x, noise, groups)
    assert found["spearman"] > 0.9
    assert abs(found["within"]["spearman"]) < 0.15
    against = correlation(x, [10 * g - value for g, value in zip(groups, x, strict=True)], groups)
    assert against["spearman"] > 0.9
    assert against["within"] == {"n": 500, "spearman": pytest.approx(-1)}


def test_correlations_that_cannot_be_told_are_none() -> None:
    assert correlation([1, 2], [1, 2])["spearman"] is None
    constant = correlation([1, 2, 3, 4], [5, 5, 5, 5], ["a", "b", "c", "c"])
    assert (constant["pearson"], constant["spearman"]) == (None, None)
    assert constant["within"] == {"n": 2, "spearman": None}


@pytest.mark.parametrize(
    "rho, words",
    [
        (None, "cannot be told"),
        (1.0, "holds"),
        (0.8, "holds"),
        (0.5, "holds in part"),
        (0.0, "does not hold"),
        (-0.3, "is reversed"),
    ],
)
def test_a_correlation_in_words(rho: float | None, words: str) -> None:
    assert findings.verdict(rho) == words


# --- theorem 1 --------------------------------------------------------------------------------------------


def test_information_is_that_of_the_gaussian_channel() -> None:
    """Against I(X; Z + E) = h(X) + h(Z + E) - h(X, Z + E) with X normal, Z = W X."""
    weight, noise = matrix(4, 6), 0.3
    output = weight @ weight.T + noise * torch.eye(4)
    joint = torch.cat([torch.cat([torch.eye(6), weight.T], 1), torch.cat([weight, output], 1)], 0)
    expected = (torch.logdet(output) - torch.logdet(joint)) / 2
    assert float(information(torch.linalg.svdvals(weight), noise)) == pytest.approx(float(expected))
    # One direction with a signal-to-noise ratio of 3 carries half of ln 4; directions without signal carry nothing.
    assert float(information(torch.tensor([3**0.5, 0, 0]), 1)) == pytest.approx(math.log(2))


def test_masks_are_distinct_neither_full_nor_empty() -> None:
    assert head_masks(3, 99, 0) == sorted(
        {(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)} - {(0, 0, 0), (1, 1, 1)}
    )
    some = head_masks(8, 40, 0)
    assert len(set(some)) == 40 and {sum(mask) for mask in some} == set(range(1, 8))
    assert head_masks(8, 40, 0) == some != head_masks(8, 40, 1)
    assert head_masks(1, 40, 0) == []


def test_theorem_1_points_are_differences_to_the_whole_layer(tiny: VLM, samples: list[Sample], points: Any) -> None:
    block = tiny.blocks[1]
    moment = Calibration(tiny, samples).moments([block.heads.consumer])[block.heads.consumer]
    weight = tiny.model.get_parameter(f"{block.heads.consumer}.weight").detach().double()
    assert {p["block"] for p in points["theorem1"]} == {b.name for b in tiny.blocks}
    own = [p for p in points["theorem1"] if p["block"] == block.name]
    assert len(own) == len(theory.NOISES) * (2**block.heads.count - 2)
    for point in own[:: len(own) // 5]:
        mask = torch.tensor([int(bit) for bit in point["mask"]], dtype=torch.float64)
        assert (point["kept"], point["heads"]) == (int(mask.sum()), block.heads.count)
        gates = mask.repeat_interleave(block.heads.width)
        covariances = [weight * g @ moment.covariance @ (weight * g).T for g in (torch.ones_like(gates), gates)]
        noise = point["noise"] * covariances[0].trace() / len(weight)
        one = torch.eye(len(weight), dtype=torch.float64)
        full, pruned = (torch.logdet(one + c / noise) / 2 for c in covariances)
        assert point["information"] == pytest.approx(float(pruned - full), rel=1e-4)
        spectra = [masked_spectrum(moment.covariance, weight, m) for m in (torch.ones_like(mask), mask)]
        for kind in ("amplitude", "energy"):
            before, after = (float(effective_rank(spectrum, kind)) for spectrum in spectra)
            assert point[f"erank_{kind}"] == pytest.approx(after - before, rel=1e-4)


# --- theorem 2 --------------------------------------------------------------------------------------------


def test_a_probe_reads_what_is_there_and_nothing_from_noise() -> None:
    draw = np.random.default_rng(0)
    labels, folds = draw.integers(0, 3, 600), draw.integers(0, 4, 600)
    noise = torch.from_numpy(draw.normal(size=(600, 4)))
    telling = noise.clone()
    telling[:, 0] += 20 * torch.from_numpy(labels)
    nothing = cross_entropy(torch.zeros(600, 1, dtype=torch.float64), labels, folds)
    assert nothing == pytest.approx(math.log(3), abs=0.02)
    assert cross_entropy(noise, labels, folds) == pytest.approx(nothing, abs=0.03)
    assert cross_entropy(telling, labels, folds) < 0.5 * nothing
    turned = telling @ matrix(4, 4, seed=5)
    assert cross_entropy(turned, labels, folds) == pytest.approx(cross_entropy(telling, labels, folds), abs=0.05)


def test_a_probe_is_judged_on_what_it_has_not_seen() -> None:
    """As many features as rows: a fit to the training folds is perfect, and worth nothing elsewhere."""
    draw = np.random.default_rng(0)
    labels, folds = draw.integers(0, 2, 60), np.arange(60) % 4
    assert cross_entropy(torch.from_numpy(draw.normal(size=(60, 60))), labels, folds) > 0.6


def test_a_reading_has_the_pooled_input_of_each_sample(tiny: VLM, samples: list[Sample]) -> None:
    reading = Reading.of(tiny, samples)
    counts = Counter(sample.answer for sample in samples)
    used = [sample for sample in samples if counts[sample.answer] >= 4]
    classes = sorted({sample.answer for sample in used})
    assert [classes[label] for label in reading.labels] == [sample.answer for sample in used]
    assert len(used) < len(samples)
    for image in {sample.image.tobytes() for sample in used}:  # never on both sides
        own = [fold for fold, sample in zip(reading.folds, used, strict=True) if sample.image.tobytes() == image]
        assert len(set(own)) == 1
    place = 2
    for block in (tiny.blocks[0], tiny.blocks[-1]):
        seen: list[Tensor] = []

        def see(_: Any, args: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
            seen.append(args[0].detach().double())

        hook = tiny.model.get_submodule(block.heads.consumer).register_forward_pre_hook(see)
        with torch.no_grad():  # the prompt alone: its last token cannot see the answer
            tiny.model(**encode(tiny.processor, [[used[place].image]], [used[place].question]))
        hook.remove()
        rows = seen[0].flatten(0, -2)
        expected = rows.mean(0) if block.component == "vision" else rows[-1]
        torch.testing.assert_close(reading.inputs[block.name][place], expected, atol=1e-5, rtol=1e-4)


def test_answers_too_rare_to_learn_are_refused(tiny: VLM, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="--samples 3: a probe needs two answers"):
        Reading.of(tiny, samples[:3])


def test_theorem_2_points(tiny: VLM, samples: list[Sample], points: Any) -> None:
    calibration = Calibration(tiny, samples[:DECODED])
    dense = calibration.answer_loss()
    for point in points["theorem2"][::7]:
        assert 0 < point["ks"] <= 1
        gates = torch.tensor([float(bit) for bit in point["mask"]])
        rise = calibration.answer_loss({(point["block"], "heads"): gates}) - dense
        assert point["model"] == pytest.approx(rise, rel=1e-3, abs=1e-6)
    assert len(points["theorem2"]) == sum(2**block.heads.count - 2 for block in tiny.blocks)


# --- theorem 3 --------------------------------------------------------------------------------------------


def test_eckart_young_is_exact_for_one_whitened_linear(points: Any) -> None:
    own = [p for p in points["theorem3"] if (p["through"], p["whiten"]) == ("linear", 1)]
    assert own
    for point in own:
        assert point["seen"] == pytest.approx(point["predicted"], rel=1e-3, abs=1e-9)
        assert point["unseen"] != point["seen"]
    plain = [p for p in points["theorem3"] if (p["through"], p["whiten"]) == ("linear", 0)]
    assert max(abs(p["seen"] - p["predicted"]) for p in plain) > 1e-3  # weights alone do not know the input
    for worse, better in zip(plain, own, strict=True):
        assert (worse["block"], worse["rank"]) == (better["block"], better["rank"])
        assert better["seen"] <= worse["seen"] + 1e-9


def test_more_rank_is_less_predicted_loss(tiny: VLM, points: Any) -> None:
    for through, whiten in findings.THROUGH:
        for block in tiny.blocks:
            own = [
                p["predicted"]
                for p in points["theorem3"]
                if (p["block"], p["through"], p["whiten"]) == (block.name, through, whiten)
            ]
            assert bool(own) == (not through.startswith("compose") or not block.ffn.gated)
            ordered = own if through != "linear" else own[::-1]
            assert all(before <= after + 1e-9 for before, after in pairwise(ordered))


@pytest.mark.parametrize("place", [0, -1], ids=["plain", "gated"])
def test_an_ffn_is_run_as_the_model_runs_it(tiny: VLM, samples: list[Sample], place: int) -> None:
    block = tiny.blocks[place]
    ffn = Ffn.found(tiny.model, block.ffn)
    first, consumer = ffn.producers[0], ffn.consumer
    module = tiny.model.get_submodule(first.path.rpartition(".")[0])
    rows = matrix(5, first.weight.shape[1])
    with torch.no_grad():
        expected = module(rows.float()).double()
    bias = 0 if consumer.bias is None else consumer.bias.double()
    torch.testing.assert_close(theory.output(ffn, rows, {}) + bias, expected, atol=1e-5, rtol=1e-4)
    # Replacements that change nothing, and one that leaves nothing.
    one = torch.eye(first.weight.shape[1])
    same = {first.path: LowRank(one, first.weight, first.bias), consumer.path: Dense(consumer.weight, consumer.bias)}
    torch.testing.assert_close(theory.output(ffn, rows, same) + bias, expected, atol=1e-5, rtol=1e-4)
    nothing = {consumer.path: Dense(torch.zeros_like(consumer.weight), consumer.bias)}
    assert share(theory.output(ffn, rows, nothing) - theory.output(ffn, rows, {}), theory.output(ffn, rows, {})) == 1
    without = theory.output(ffn, rows, {block.ffn.activation: None})
    assert not torch.allclose(without, expected - bias, atol=1e-3)


# --- in words and on the page -----------------------------------------------------------------------------


def planted(ks_sign: float) -> dict[str, theory.Points]:
    """Points of a layer of 8 heads: theorem 1 true in all, theorem 2 by `ks_sign`, W2 W1 telling of no loss at all."""
    masks = [(i, head_mask) for i, head_mask in enumerate(head_masks(8, 40, 0))]
    where = [
        {"block": "vision.0", "heads": 8, "kept": sum(m), "mask": "".join(map(str, m)), "value": i / 40}
        for i, m in masks
    ]
    first = [
        p | {"noise": noise, "information": p["value"], "erank_amplitude": p["value"] ** 3, "erank_energy": p["value"]}
        for p in where
        for noise in theory.NOISES
    ]
    second = [
        p | {"ks": p["value"], "there": 1.0, "probe": ks_sign * p["value"], "model": ks_sign * p["value"]}
        for p in where
    ]
    third = [
        {"block": "vision.0", "whiten": 1, "through": through, "rank": str(r), "predicted": 0.5**r, "seen": seen,
         "unseen": 1.1 * seen}
        for through in ("linear", "compose-linear")
        for r in range(1, 9)
        for seen in [0.5**r if through == "linear" else 0.9]
    ]  # fmt: skip
    return {"theorem1": first, "theorem2": second, "theorem3": third}


@pytest.mark.parametrize("sign, words", [(1, "**holds**"), (-1, "**is reversed**")])
def test_the_words_follow_the_numbers(sign: float, words: str) -> None:
    points = planted(sign)
    found = findings.summary(points)
    said = findings.findings(found, points)
    assert "Spearman 1.00" in said["theorem1"][0] and "**holds**" in said["theorem1"][0]
    assert all(words in sentence for sentence in said["theorem2"][:2])
    linear, composed = said["theorem3"]
    assert "exact on the rows" in linear and "1.1 times" in linear and "**holds**" in linear
    assert "**does not hold**: where under 1% is predicted, as much as 99% is lost" in composed


def test_a_layer_that_tells_the_probe_nothing_is_left_out_by_name() -> None:
    points = planted(1)
    points["theorem2"] = [p | {"there": 0.0} for p in points["theorem2"]]
    found = findings.summary(points)
    said = " ".join(findings.findings(found, points)["theorem2"])
    assert "less than 0.05 nats from the whole of vision.0" in said
    assert [row["n"] for row in found["theorem2"] if row["reader"] == "probe"] == [0]


def test_the_command_writes_everything_and_remakes_it_from_the_json(
    call: Call, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theory, "MASKS", 4)
    words = ("theory", "--model", tiny_folder, "--samples", 36, "--out", "here")
    done = call(*words, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert set(said["findings"]) == {"theorem1", "theorem2", "theorem3"}
    record = json.loads(Path("here/theory.json").read_text())
    with Path("here/theory.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, record["points"].values()))
    page = Path("here/theory.md").read_text()
    assert page == findings.page(record) and "theory.png" in page
    for sentences in said["findings"].values():
        assert all(sentence in page for sentence in sentences)
    files = {path.name: path.read_bytes() for path in Path("here").iterdir()}
    assert set(files) == {"theory.json", "theory.csv", "theory.md", "theory.png"}

    def never(*args: Any) -> Any:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(theory, "measure", never)
        assert call(*words).code == 0
        assert {path.name: path.read_bytes() for path in Path("here").iterdir()} == files
        with pytest.raises(AssertionError, match="measured again"):
            call("theory", "--model", tiny_folder, "--samples", 37, "--out", "here")


def test_bad_input_is_one_line(call: Call, tiny_folder: Path) -> None:
    Path("here").mkdir()
    refused(call("theory", "--model", "mini-qwen", "--out", "here"), "unknown model", left=Path("here"))
    Path("file").write_text("")
    assert call("theory", "--model", tiny_folder, "--out", "file").code == 2
    Path("here/theory.json").write_text("{")
    done = call("theory", "--model", tiny_folder, "--out", "here")
    assert done.code == 2 and "theory.json: not JSON; delete it" in done.err and "Traceback" not in done.err


# --- the bar of singular values ---------------------------------------------------------------------------


def test_singular_values_are_timed_and_exact() -> None:
    bars = list(decomposed(((24, 40), (40, 24)), repeats=1))
    assert [bar.name for bar in bars] == ["singular values 24x40", "singular values 40x24"]
    for bar in bars:
        assert bar.ratio is not None and bar.ratio > 0 and bar.goal == 8
        assert bar.detail["error"] < 1e-5 and bar.holds == (bar.ratio >= 8)


def test_energy_error_is_the_largest_gap_of_what_the_first_values_hold() -> None:
    exact = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert energy_error(exact, exact) == 0
    assert energy_error(exact, torch.tensor([4.0, 2.0])) == pytest.approx(0.1)
    assert energy_error(exact, torch.tensor([3.0, 4.0, 2.0, 1.0])) == pytest.approx(0.1)
