"""Budgets of parameters and of time, and widths in multiples: what lands where, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.pruning import latency_rates, solver, surgery
from harness.pruning.solver import solve
from harness.records import record
from harness.report import report
from harness.report.frame import board_frame
from harness.report.panels import panels
from harness.trials import pruner
from harness.trials.pruner import Pruner
from harness.trials.worker import Worker
from harness.types import (
    VLM,
    Block,
    Budget,
    CalibrationSpec,
    Choice,
    Extent,
    InputError,
    Keep,
    Option,
    Options,
    Plan,
    Questions,
    Ranking,
)
from tests.support.layouts import extents_of, ranking_of
from tests.support.records import accuracy_of, board_record
from tests.support.trials import latency_trial

LINEARS = ("qkv", "proj", "fc1", "fc2", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("shape", ["ordinal", "additive"])
@pytest.mark.parametrize("scope", ["vision", "language", "all"])
def test_aligned_widths_are_multiples_and_land(tiny: VLM, shape: str, scope: Any) -> None:
    for keep in (0.75, 0.5):
        plan = solve(tiny, ranking_of(tiny, shape), Budget(scope, keep, extents=extents_of(tiny), align=4))
        assert plan.align == 4 and abs(plan.achieved / keep - 1) <= 0.01
        pruned = surgery.apply(tiny, plan, ranking_of(tiny, shape))
        for name, kind in plan.parts:
            before, after = (vlm.block(name).units(kind) for vlm in (tiny, pruned))
            assert after.count == before.count or after.count * after.width % 4 == 0


def test_a_multiple_that_does_not_fit_is_refused(tiny: VLM) -> None:
    asked = Budget("vision", 0.5, extents=extents_of(tiny), align=512)
    with pytest.raises(InputError, match=r"0.5 of the FLOPs of both in scope vision with widths in multiples of 512: "):
        solve(tiny, ranking_of(tiny, "ordinal"), asked)


def test_alignment_of_one_changes_nothing(tiny: VLM) -> None:
    asked = Budget("all", 0.4, extents=extents_of(tiny))
    for shape in ("ordinal", "additive", "options"):
        plan = solve(tiny, ranking_of(tiny, shape), asked)
        assert plan == solve(tiny, ranking_of(tiny, shape), replace(asked, align=1))
        assert "align" not in plan.to_json()  # as in the records of before


def weights(vlm: VLM, scope: str) -> int:
    """Of the scope's Linear layers."""
    blocks = [block for block in vlm.blocks if scope in ("all", block.component)]
    named = [vlm.model.get_submodule(block.path).named_parameters() for block in blocks]
    return sum(w.numel() for name, w in itertools.chain(*named) if name.split(".")[-2] in LINEARS and w.ndim == 2)


@pytest.mark.parametrize("scope", ["vision", "language", "all"])
def test_a_budget_of_parameters_is_exact(tiny: VLM, scope: Any) -> None:
    asked = Budget(scope, 0.5, extents=dict.fromkeys(("vision", "language"), Extent(1, 0)))
    for shape in ("ordinal", "additive"):
        plan = solve(tiny, ranking_of(tiny, shape), asked)
        pruned = surgery.apply(tiny, plan, ranking_of(tiny, shape))
        assert weights(pruned, scope) / weights(tiny, scope) == pytest.approx(plan.achieved, abs=1e-12)
        assert abs(plan.achieved / 0.5 - 1) <= 0.01


def test_a_budget_of_time_counts_what_no_cut_saves(tiny: VLM) -> None:
    extents = extents_of(tiny)
    rates: Any = {("vision", "heads"): 3e-9, ("vision", "ffn"): 1e-9}
    own = {
        (block.name, kind): block.units(kind).macs(extents["vision"]) * rates["vision", kind]
        for block, kind in tiny.select("vision")
    }
    total = sum(own[block.name, kind] * block.units(kind).count for block, kind in tiny.select("vision"))
    fixed = 0.25 * total
    plan = solve(tiny, ranking_of(tiny, "additive"), Budget("vision", 0.6, extents=extents, rates=rates, fixed=fixed))
    kept = sum(own[key] * len(part.indices) for key, part in plan.parts.items() if isinstance(part, Keep))
    assert (kept + fixed) / (total + fixed) == pytest.approx(plan.achieved)
    assert abs(plan.achieved / 0.6 - 1) <= 0.01
    with pytest.raises(
        InputError, match=r"0.2 of the seconds of both in scope vision: the smallest reachable is 0\.\d+"
    ):
        solve(tiny, ranking_of(tiny, "additive"), Budget("vision", 0.2, extents=extents, rates=rates, fixed=fixed))


def test_prices_are_the_time_that_half_of_a_kind_saves(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made clock: 1 s that is fixed, 2 ns a multiply-add of heads, 5 ns of FFNs."""
    extents = extents_of(tiny)
    truth = {"heads": 2e-9, "ffn": 5e-9}

    def takes(vlm: VLM) -> float:
        pairs = vlm.select("vision")
        return 1.0 + sum(b.units(k).count * b.units(k).macs(extents["vision"]) * truth[k] for b, k in pairs)

    def timed(first: Any, second: Any, repeats: int, wait: Any) -> Any:
        import numpy as np

        return np.array([[first(), second()]] * repeats)

    monkeypatch.setattr(latency_rates, "interleave", timed)
    asked = Budget("vision", 0.5, extents=extents)
    rates, fixed = latency_rates.seconds(tiny, asked, lambda vlm: lambda: takes(vlm), 3)
    assert rates["vision", "heads"] == pytest.approx(2e-9) and rates["vision", "ffn"] == pytest.approx(5e-9)
    assert fixed == pytest.approx(1.0)
    with pytest.raises(InputError, match="removing half of the heads of vision saves no time here"):
        latency_rates.seconds(tiny, asked, lambda vlm: lambda: 1.0, 3)


def test_trials_of_before_keep_their_ids_and_new_ones_read_back() -> None:
    old, new = latency_trial(), replace(latency_trial(), currency="latency", align=8)
    assert not {"align", "currency"} & set(old.content())
    assert {key: new.content()[key] for key in ("align", "currency")} == {"align": 8, "currency": "latency"}
    assert old.id != new.id
    assert new.of(new.content()) == new


def test_what_a_trial_asks_for_is_what_is_solved(tiny: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Budget("vision", 0.5, extents=extents_of(tiny))
    aligned: list[int] = []  # what the solver was asked for

    def solved(vlm: VLM, ranking: Any, wanted: Budget) -> Plan:
        aligned.append(wanted.align)
        if wanted.align > 1:
            raise InputError("no")
        return Plan({}, 0.5, 0.5)

    monkeypatch.setattr(solver, "solve", solved)
    monkeypatch.setattr(pruner, "step", lambda device, dtype: 32)
    ranking = registry.method("random").rank(tiny, None, seed=0)  # type: ignore[arg-type]
    Pruner("cpu")._solve(tiny, ranking, asked, latency_trial())
    assert aligned == [1]
    aligned.clear()
    Pruner("cuda")._solve(tiny, ranking, asked, latency_trial())  # a GPU's multiple is tried, and not insisted on
    assert aligned == [32, 1]
    for align, tried in (("auto", 32), (8, 8)):
        aligned.clear()
        with pytest.raises(InputError):
            Pruner("cpu")._solve(tiny, ranking, asked, replace(latency_trial(), align=align))
        assert aligned == [tried]


def test_a_trial_chooses_among_options_that_fit(tiny: VLM) -> None:
    def options(block: Block, label: str) -> Options:
        dense = block.ffn.count * block.ffn.token_macs
        return Options((Option("dense", dense, 0.0), Option(label, dense // 2, 1.0)))

    def scored(label: str, fitting: bool) -> Ranking:
        own: Any = {
            (b.name, "ffn"): (options(b, label), lambda step, b=b: options(b, f"in {step}s")) for b in tiny.blocks
        }
        return Ranking({key: replace(fine, aligned=other if fitting else None) for key, (fine, other) in own.items()})

    asked = Budget("vision", 0.5, "ffn", extents=dict.fromkeys(("vision", "language"), Extent(1, 0)))
    for align, fitting, label in ((None, True, "fine"), (2, True, "in 2s"), (2, False, "fine")):
        plan, own = Pruner("cpu")._solve(tiny, scored("fine", fitting), asked, replace(latency_trial(), align=align))
        for key, part in plan.parts.items():
            assert isinstance(part, Choice) and part.label == label
            score = own.scores[key]  # the ranking that surgery is given holds what was chosen
            assert isinstance(score, Options) and score.points[part.position].label == label


def test_a_sweep_in_time_records_what_became_of_it(
    tiny_folder: Any, tiny: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: Any = {("vision", "heads"): 1e-9, ("vision", "ffn"): 1e-9}
    monkeypatch.setattr(latency_rates, "seconds", lambda vlm, asked, call, repeats: (rates, 0.0))
    trial = replace(
        latency_trial(),
        model=str(tiny_folder),
        method="random",
        budget=0.5,
        currency="latency",
        metrics=("latency",),
        questions=Questions(("mini_gqa",)),
        calibration=CalibrationSpec(1, ("mini_gqa",)),
    )
    made, _ = Worker("cpu").run(trial)
    assert made.status == "ok", made.error
    kept = made.metrics["latency"]["kept"]
    assert kept["requested"] == 0.5 and kept["predicted"] == pytest.approx(0.5, rel=0.01)
    assert kept["measured"] == 1 / made.metrics["latency"]["speedup"]
    assert made.plan is not None and made.plan.currency == "latency"
    assert made.cost.phases_s is not None and "prices" in made.cost.phases_s
    record.write(tmp_path, made)
    assert record.read(tmp_path / f"{made.id}.json").trial.id == made.id == trial.id


def test_budgets_of_other_terms_are_no_seeds_and_share_the_dense_model(tmp_path: Path) -> None:
    """A board swept again under another `currency` or `align` has both sets in its folder."""
    several: list[dict[str, Any]] = [{}, {"currency": "params"}, {"align": 8}]
    items = [board_record(metrics=accuracy_of(0.9))]
    items += [
        board_record("random", "vision", 0.5, metrics=accuracy_of(0.3 + 0.2 * i), **own)
        for i, own in enumerate(several)
    ]
    frame = board_frame(items)
    found = panels(frame)
    assert [panel.level("accuracy") for panel in found] == [0.9] * 3
    assert [rows[0]["accuracy"] for panel in found for rows in panel.groups.values()] == [0.7, 0.3, 0.5]
    assert all(len(rows) == 1 for panel in found for rows in panel.groups.values())
    assert len({panel.title for panel in found}) == len({row["curve"] for row in frame.to_dict("records")}) - 1 == 3
    for item in items:
        record.write(tmp_path / "results" / "made", item)
    report(tmp_path / "results", tmp_path)
    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert "align=8 currency=flops" in text and "align=null currency=params" in text
    alone = board_frame(items[:1] + items[2:3])
    assert "budget_terms" not in alone.columns and list(alone["curve"]) == ["none", "random"]
