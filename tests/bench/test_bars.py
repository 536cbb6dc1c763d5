"""Bars: what holds, what is refused, and that each ratio is of what its name says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import families, registry, tasks
from harness.bench import compression, estimates, performance
from harness.bench.bar import Bar
from harness.records.record import Cost, Record
from harness.types import VLM, Budget
from tests.support.commands import Call, refused
from tests.support.question_files import asked
from tests.support.records import board_record


def test_a_bar_holds_by_its_ratio_its_direction_and_its_soundness() -> None:
    assert Bar("fast", 3, 3.0).holds and not Bar("fast", 3, 2.9).holds
    assert Bar("cheap", 1.2, 1.2, at_most=True).holds and not Bar("cheap", 1.2, 1.3, at_most=True).holds
    assert Bar("other answers", 3, 9.0, sound=False).holds is False
    missing = Bar("on a GPU", 8, command="infoprune bench --device cuda").to_json()
    assert (missing["holds"], missing["measured"], missing["ratio"]) == (None, False, None)


def test_rounds_give_a_bar_its_interval() -> None:
    bar = Bar.of("fast", 3, [3.5, 2.5, 3.0], detail={"rounds": 3})
    assert (bar.ratio, bar.lo, bar.hi, bar.holds, bar.detail["rounds"]) == (3.0, 2.5, 3.5, True, 3)
    assert Bar.of("fast", 3, [4.0]) == Bar("fast", 3, 4.0)


def some(*bars: Bar) -> Any:
    def made(*, quick: bool, device: str, progress: Any, only: Any = ()) -> Iterator[Bar]:
        progress("some [bar]")
        yield from bars

    return made


def test_the_command_says_what_holds(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, none = Bar("a", 3, 4.0, 3.5, 4.5), Bar("b", 1.2, 1.5, at_most=True), Bar("c", 8, command="run this")
    monkeypatch.setattr(performance, "bars", some(good, none))
    done = call("bench", "--json", "--out", "bars.json")
    assert done.code == 0
    found = json.loads(done.out)
    assert [(bar["name"], bar["measured"], bar["holds"]) for bar in found["bars"]] == [
        ("a", True, True),
        ("c", False, None),
    ]
    assert json.loads(Path("bars.json").read_text()) == found and found["env"]["threads"] and found["code"]
    monkeypatch.setattr(performance, "bars", some(good, bad, none))
    done = call("bench")
    assert done.code == 1 and "3.5 to 4.5" in done.out and "<= 1.2" in done.out and "run this" in done.out


def test_an_earlier_run_is_held_against(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Bar("a", 3, 4.0, 3.9, 4.1), Bar("b", 1.2, 1.0, at_most=True), Bar("new", 1)]
    monkeypatch.setattr(performance, "bars", some(*before))
    assert call("bench", "--out", "bars.json").code == 0
    assert call("bench", "--against", "bars.json").code == 0
    for worse in (Bar("a", 3, 3.5, 3.4, 3.6), Bar("b", 1.2, 1.11, at_most=True)):
        monkeypatch.setattr(performance, "bars", some(worse))
        done = call("bench", "--against", "bars.json")
        assert done.code == 1 and f"worse: {worse.name}: " in done.err
    for same in (Bar("a", 3, 3.8, 3.6, 4.0), Bar("b", 1.2, 1.05, at_most=True), Bar("b", 1.2, 0.5, at_most=True)):
        monkeypatch.setattr(performance, "bars", some(same))
        assert call("bench", "--against", "bars.json").code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made["env"].update(cpu="another"), ["bars.json: env.cpu: ", "another", "cannot be compared"]),
        (lambda made: made.update(quick=True), ["bars.json: quick"]),
        (lambda made: made.pop("bars"), ["bars.json: not a file that"]),
        (lambda made: made.update(bars=3), ["bars.json: not a file that"]),
        (lambda made: made.update(bars=[{"name": "a"}]), ["bars.json: not a file that"]),
        (lambda made: made["bars"][0].update(ratio="fast"), ["bars.json: not a file that"]),
        (lambda made: made["bars"][0].update(ratio=10**400), ["bars.json: not a file that"]),
        (lambda made: made["bars"][0].update(lo=0.5), ["bars.json: not a file that"]),
    ],
)
def test_what_is_no_evidence_is_refused(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Any, words: list[str]
) -> None:
    def never(**given: Any) -> Iterator[Bar]:
        raise AssertionError("measured before the refusal")

    made = json.loads(json.dumps(performance.report([Bar("a", 1, 1.0)], "cpu", quick=False)))
    change(made)
    file = tmp_path / "bars.json"
    file.write_text(json.dumps(made))
    monkeypatch.setattr(performance, "bars", never)
    refused(call("bench", "--against", file), *words)
    refused(call("bench", "--against", tmp_path / "none.json"), "none.json: cannot be read")


def trial(method: str, **own: float) -> Record:
    return replace(board_record(method, metrics={}), cost=Cost(phases_s=own))


def test_amortisation_counts_one_scoring_and_everything_that_each_budget_adds() -> None:
    dense = trial("none", calibration=2, generate=50)
    first = trial("m", ranking=8, solve=0.5, surgery=0.5, generate=50)
    later = trial("m", solve=0.25, surgery=0.75)
    assert performance.amortised([dense, first]) == pytest.approx(1.1)
    assert performance.amortised([dense, first, later, later]) == pytest.approx(1.3)
    assert performance.amortised([dense, first, trial("m", ranking=8)]) == pytest.approx(
        1.9
    )  # a ranking that is not reused


def test_both_ways_of_asking_give_the_same_answers() -> None:
    """And the stock loop is lmms-eval's own code, which is what makes the comparison one."""
    from lmms_eval.models.chat.internvl_hf import InternVLHf

    from harness.tasks.stock import Stock

    assert Stock.generate_until is InternVLHf.generate_until
    vlm = families.load(registry.model("mini-qwen2-vl"))
    seconds, answers = tasks.time_against_stock(vlm, asked(["mini_gqa"], "validation", 6), rounds=2)
    assert seconds.shape == (2, 2) and (seconds > 0).all()
    assert len(answers) == 6 and all(one == other != "" for one, other in answers)


def test_what_is_timed_is_smaller(tiny: VLM) -> None:
    pruned, context = performance.cut(tiny, "vision", 0.5, 64)
    assert pruned.blocks[0].ffn.count == tiny.blocks[0].ffn.count // 2
    assert pruned.blocks[-1].ffn.count == tiny.blocks[-1].ffn.count
    aligned, _ = performance.cut(tiny, "language", 0.5, 64, 4)
    assert all(block.ffn.count % 4 == 0 for block in aligned.blocks) and aligned.blocks[0] == tiny.blocks[0]
    assert aligned.blocks[-1].ffn.count < tiny.blocks[-1].ffn.count
    stages = context.stages(pruned, 2)
    assert set(stages) == {"vision", "language", "all", "decode"}


def test_contestants_add_bars_of_their_own() -> None:
    own = registry.benches()
    assert {"svd", "compression"} <= set(own) and all(callable(made) for made in own.values())


def test_one_part_runs_alone(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "parts", lambda: {"a": some(Bar("a", 1, 2.0)), "b": some(Bar("b", 1, 2.0))})
    done = call("bench", "--only", "b", "--json")
    assert [bar["name"] for bar in json.loads(done.out)["bars"]] == ["b"]
    refused(call("bench", "--only", "c"), "unknown part of bench 'c'", "a, b")


def test_an_estimate_is_held_against_the_time_that_it_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, board: dict[str, Any]
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(board))
    monkeypatch.setattr(estimates, "BOARDS", {str(file): {}})
    (bar,) = estimates.bars()
    longer, shorter = sorted((bar.detail["estimate_s"], bar.detail["seconds"]), reverse=True)
    assert bar.ratio == pytest.approx(longer / shorter) and bar.at_most


@pytest.mark.parametrize("method", ["infoprune_free", "svd_llm"])
def test_compression_is_measured_on_the_ordinary_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    small = {"hidden_size": 128, "intermediate_size": 256}
    monkeypatch.setattr(compression, "TEXT", compression.TEXT | small)
    monkeypatch.setattr(compression, "VISION", compression.VISION | {"embed_dim": 64, "hidden_size": 128})
    monkeypatch.setattr(compression, "SECTION", [2, 3, 3])
    monkeypatch.setattr(compression, "SAMPLES", {"cpu": 2})
    # The resident memory of a test process says nothing: earlier tests left free pages in it.
    monkeypatch.setattr(compression, "resident", lambda: 10**9)
    monkeypatch.setattr(compression.memory, "peak", lambda device: 10**9)
    if method != "infoprune_free":  # its attention products keep their cost, so a joint budget of 0.3125 cannot be met
        monkeypatch.setattr(compression, "Budget", lambda scope, keep, extents: Budget(scope, 0.5, "ffn", extents))
    spent = compression.compress(compression.reduced(tmp_path), method, {}, "float32", "cpu")
    assert spent.flops_kept == pytest.approx(0.3125 if method == "infoprune_free" else 0.5, rel=0.01)
    assert spent.passes > 1
    assert spent.peak_over_weights == 1  # the peak is no more than the weights and what was there before
    assert min(spent.statistics, spent.ranking, spent.solve, spent.surgery, spent.svd) > 0


def test_what_a_gpu_has_to_show_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = compression.Spent(1.0, 5.0, 2.0, 0.5, 0.5, 30.0, 9, 1.4, 0.3125)

    class Pool:
        def __init__(self, *_: Any, **more: Any) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None: ...
        def apply(self, *_: Any) -> compression.Spent:
            return spent

    monkeypatch.setattr(compression.multiprocessing.get_context("spawn").__class__, "Pool", Pool)
    monkeypatch.setattr(compression, "compress", lambda *_: spent)
    speed, *unseen = compression.bars("random", {})
    assert speed.ratio == 10 and speed.holds and speed.detail["peak_over_weights"] == 1.4
    assert [(bar.goal, bar.at_most, bar.holds, bar.command) for bar in unseen] == [
        (1.3, True, None, compression.COMMAND),
        (60, True, None, compression.COMMAND),
    ]
    speed, memory, seconds = compression.bars("random", {}, device="cuda")
    assert (speed.holds, memory.ratio, memory.holds, seconds.ratio, seconds.holds) == (True, 1.4, False, 9, True)
