"""Score quality: tau as scipy has it, damages as the smaller model has them, and every method named."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from harness import families, registry, tasks
from harness.checks import score_quality
from harness.pruning import surgery
from harness.report.quality import FILES, standing, write
from harness.statistics.calibration import Calibration
from harness.types import VLM, Additive, InputError, Keep, Options, Ordinal, Plan, Ranking
from tests.support.commands import Call, refused
from tests.support.question_files import asked

NAMES = ("random", "taylor", "michel", "svd")


def track(items: Sequence[Any], text: str) -> Iterable[Any]:
    return items


@pytest.fixture(scope="module")
def measured(tiny: VLM) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_quality, "CALIBRATION", 6)
        return score_quality.measure(tiny, NAMES, score_quality.damage_settings(tiny, 6, 5), track)


# --- tau --------------------------------------------------------------------------------------------------


def test_tau_is_scipys() -> None:
    random = np.random.default_rng(0)
    for digits in (0, 1, 6):  # many ties, some, none
        x, y = random.normal(size=(2, 40)).round(digits)
        assert score_quality.kendall(x, y).tau == pytest.approx(kendalltau(x, y)[0])


def test_pairs_of_other_groups_do_not_count() -> None:
    random = np.random.default_rng(1)
    x, y = random.integers(0, 6, size=(2, 30)).astype(float)
    groups = random.integers(0, 4, size=30)
    agree = one = other = pairs = 0
    for i in range(30):
        for j in range(i):
            if groups[i] == groups[j]:
                a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
                agree, one, other, pairs = agree + a * b, one + abs(a), other + abs(b), pairs + 1
    found = score_quality.kendall(x, y, groups.tolist())
    assert found.tau == pytest.approx(agree / np.sqrt(one * other)) and found.pairs == pairs
    shifted = score_quality.kendall(x + 100 * groups, y, groups.tolist())  # each group in a currency of its own
    assert shifted == found


def test_the_interval_covers_and_narrows() -> None:
    """Of normals with correlation r, tau is 2 / pi asin(r)."""
    truth, inside, widths = 2 / np.pi * np.arcsin(0.6), 0, {}
    for number in (40, 160):
        for seed in range(60):
            x, noise = np.random.default_rng(seed).normal(size=(2, number))
            found = score_quality.kendall(x, 0.6 * x + 0.8 * noise, resamples=300)
            assert found.tau is not None and found.lo is not None and found.hi is not None
            widths.setdefault(number, []).append(found.hi - found.lo)
            inside += found.lo <= truth <= found.hi
    assert 105 <= inside <= 119  # 95 % of 120, give or take
    assert np.mean(widths[160]) < 0.6 * np.mean(widths[40])


def test_what_does_not_vary_has_no_tau() -> None:
    assert score_quality.kendall([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).tau is None
    assert score_quality.kendall([1.0], [2.0]) == score_quality.Tau(None, None, None, 1, 0)
    assert score_quality.kendall([1.0, 2.0], [2.0, 1.0], ["a", "b"]).tau is None


# --- units and damages ------------------------------------------------------------------------------------


def test_all_heads_and_a_seeded_draw_of_channels(tiny: VLM) -> None:
    found = score_quality.draw(tiny, 20)
    heads = [unit for unit in found if unit.kind == "heads"]
    assert len(heads) == sum(block.heads.count for block in tiny.blocks) and len(found) == len(heads) + 20
    assert len(set(found)) == len(found) and found == score_quality.draw(tiny, 20) != score_quality.draw(
        tiny, 20, seed=1
    )
    assert len(score_quality.draw(tiny, 10**6)) == sum(b.heads.count + b.ffn.count for b in tiny.blocks)


def test_the_damage_is_what_the_model_without_the_unit_loses(tiny: VLM, measured: dict[str, Any]) -> None:
    questions = tasks.samples(asked(tasks.names(), "dev"), 6, 0)
    dense = Calibration(tiny, questions).answer_loss()
    assert measured["truth"]["dense_loss"] == pytest.approx(dense, abs=1e-5)
    for row in (measured["truth"]["units"][0], measured["truth"]["units"][-1]):
        units = tiny.block(row["block"]).units(row["kind"])
        kept = Keep(tuple(i for i in range(units.count) if i != row["index"]))
        plan = Plan({(row["block"], row["kind"]): kept}, 1.0, 1.0)
        smaller = surgery.apply(tiny, plan, Ranking({}))
        rise = Calibration(smaller, questions).answer_loss() - dense
        assert row["damage"] == pytest.approx(rise, abs=2e-5)
        assert min(row["halves"]) <= row["damage"] <= max(row["halves"])


def test_every_method_is_compared_or_named_with_the_reason(measured: dict[str, Any]) -> None:
    found = measured["methods"]
    assert list(found) == list(NAMES)
    assert found["random"]["heads"]["across"] is None and found["random"]["heads"]["within"]["tau"] is not None
    assert found["taylor"]["ffn"]["across"]["units"] == 5 and found["taylor"]["heads"]["across"]["units"] == 12
    assert found["michel"]["ffn"] == {"reason": "not scored"}
    assert found["svd"]["heads"] == found["svd"]["ffn"] == {"reason": "options of its Linears, no score a unit"}
    assert "svd" not in standing(measured) and set(standing(measured)) == {*NAMES} - {"svd"}


def test_a_score_that_is_the_damage_agrees_wholly(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    units = score_quality.draw(tiny, 5)
    truth = {unit: float(place) for place, unit in enumerate(units)}
    shapes: dict[type, Any] = {Additive: {"tau": 1.0}, Ordinal: None}
    for shape, across in shapes.items():
        scores: dict[Any, Any] = {
            (block.name, kind): shape(
                tuple(truth.get(score_quality.Unit(block.name, kind, i), 0.0) for i in range(block.units(kind).count))
            )
            for block, kind in tiny.select("all")
        }
        found = score_quality._agreement(Ranking(scores), units, list(truth.values()), "heads")
        assert found["within"]["tau"] == 1.0 and (found["across"] or {}).get("tau") == (across or {}).get("tau")
    assert score_quality.values(Ranking({}), units, "heads") == "not scored"
    assert isinstance(score_quality.values(Ranking(dict.fromkeys(scores, Options(()))), units, "ffn"), str)


def test_damages_are_measured_once_and_a_failure_is_named(
    tiny: VLM, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_quality, "CALIBRATION", 6)
    monkeypatch.setattr(registry, "methods", lambda: ["random"])
    loops: list[str] = []

    def counted(items: Sequence[Any], text: str) -> Iterable[Any]:
        loops.append(text)
        return items

    def broken(*args: Any, **options: Any) -> Ranking:
        raise RuntimeError("no such layer")

    wanted = score_quality.damage_settings(tiny, 6, 5)
    stored = json.loads(json.dumps(measured))
    monkeypatch.setattr(registry.method("random").module, "rank", broken)
    again = score_quality.measure(tiny, ["random"], wanted, counted, stored)
    assert loops == ["methods"] and again["truth"] == stored["truth"]
    assert again["methods"] == {"random": {"error": "RuntimeError: no such layer"}}
    score_quality.measure(tiny, [], {**wanted, "channels": 1}, counted, stored)
    assert loops[1:] == ["units left out one by one", "methods"]


def test_a_ranking_that_breaks_the_contract_is_named(
    tiny: VLM, measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all that was measured is written: NaN, too few scores, no ranking, an exit, an option that JSON lacks."""
    monkeypatch.setattr(score_quality, "CALIBRATION", 6)
    wanted = score_quality.damage_settings(tiny, 6, 5)
    stored = json.loads(json.dumps(measured))
    head = "from harness.types import Ordinal, Ranking\n"
    each = "return Ranking({(b.name, k): Ordinal((%s,) * %s) for b, k in vlm.select('all')})"
    bodies = {
        "nan": (each % ("float('nan')", "b.units(k).count"), "ValueError: vision.0 heads: score 0 is nan"),
        "few": (each % (1.0, 1), "ValueError: vision.0 heads: 1 scores for"),
        "none": ("return None", "ValueError: `rank` returned NoneType"),
        "leaves": ("exit(0)", "RuntimeError: the method exits: 0"),
        "odd": (each % (1.0, "b.units(k).count"), "TypeError: Object of type object"),
    }
    files = []
    for name, (body, _) in bodies.items():
        files.append(tmp_path / f"{name}_.py")
        option = ", option: object = object()" if name == "odd" else ""
        files[-1].write_text(f"{head}def rank(vlm, calibration, *, seed{option}):\n    {body}\n")
    found = score_quality.measure(tiny, [*map(str, files), "random"], wanted, track, stored)
    for name, (_, words) in bodies.items():
        assert found["methods"][f"{name}_"]["error"].startswith(words), found["methods"][f"{name}_"]
    assert found["methods"]["random"]["heads"]["scores"]
    assert all(path.is_file() for path in write(found, tmp_path))


@pytest.mark.parametrize("spoil", ["null", "list", "lost", "nan", "text", "other units"])
def test_damages_that_are_not_whole_are_measured_anew(tiny: VLM, measured: dict[str, Any], spoil: str) -> None:
    wanted, units = score_quality.damage_settings(tiny, 6, 5), score_quality.draw(tiny, 5)
    truth = json.loads(json.dumps(measured["truth"]))
    assert score_quality._usable(truth, wanted, units)
    if spoil in ("null", "list"):
        truth = None if spoil == "null" else []
    elif spoil == "lost":
        del truth["dense_loss"]
    elif spoil == "other units":
        truth["units"].pop()
    else:
        truth["units"][3]["damage"] = float("nan") if spoil == "nan" else "0.5"
    assert not score_quality._usable(truth, wanted, units)


def test_a_model_without_a_finite_loss_is_refused_first(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = families.load(tiny_folder, name="broken")
    broken.model.get_parameter("lm_head.weight").data.fill_(float("nan"))
    with pytest.raises(InputError, match="model broken: its answer loss is nan"):
        score_quality.measure(broken, [], score_quality.damage_settings(broken, 4, 1), track)


# --- the outcome ------------------------------------------------------------------------------------------


def test_the_outcome_is_the_same_bytes_each_time(measured: dict[str, Any], tmp_path: Path) -> None:
    failed = {**measured, "methods": {**measured["methods"], "broken": {"error": "ValueError: a | b"}}}
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written.append([path.read_bytes() for path in write(failed, tmp_path / name, frozenset({"taylor"}))])
    assert written[0] == written[1]
    page, table, data, _ = (tmp_path / "a" / name for name in FILES)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(NAMES) + 1  # heads, methods without svd, the one that failed, the two halves
    assert "No score for single heads or channels: svd." in page.read_text()
    assert any("failed: ValueError: a \\| b" in row for row in rows)
    tau = measured["methods"]["taylor"]["heads"]["within"]
    assert f"{tau['tau']:.2f} ({tau['lo']:.2f} to {tau['hi']:.2f})" in page.read_text()
    lines = table.read_text().splitlines()
    assert lines[0] == "block,kind,unit,damage,random,taylor,michel,svd,broken" and len(lines) == 1 + 12 + 5
    assert json.loads(data.read_text())["truth"] == measured["truth"]
    with Image.open(tmp_path / "a" / "quality.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_the_command(call: Call, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_quality, "CALIBRATION", 6)
    flags = ("--model", tiny_folder, "--questions", 4, "--channels", 2, "--out", tmp_path / "out")
    named, page = ("--method", "random", "--method", "magnitude"), tmp_path / "out" / "README.md"
    done = call("quality", *flags, *named)
    assert done.code == 0 and done.out.splitlines() == [str(tmp_path / "out" / name) for name in FILES]
    assert f"infoprune {shlex.join(['quality', *map(str, flags[:-2]), *named])}\n" in page.read_text()
    page.with_name("quality.json").write_text('{"truth": null}')
    done = call("quality", *flags, "--method", "random", "--json")
    assert list(json.loads(done.out)["methods"]) == ["random"]


def test_what_the_command_refuses(call: Call, tmp_path: Path) -> None:
    refused(call("quality", "--method", "randum"), "did you mean 'random'?")
    refused(call("quality", "--model", "nothing"), "unknown model")
    (tmp_path / "quality.json").write_text("{")
    refused(call("quality", "--out", tmp_path), "quality.json: not JSON; delete it")
