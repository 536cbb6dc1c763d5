"""The bar holds where it should, budget by budget, like against like, and says what it had nothing to compare with."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.types import Choice, Plan
from harness.verdicts.standing import ALPHA, ONE_SEED, Against, AtBudget, Verdict, verdict
from tests.support.commands import Call, refused
from tests.support.stored import TASKS, flipped, put, scores

DENSE = scores(450, 0.95)
BUDGETS = (0.9, 0.75, 0.5, 0.3125, 0.2, 0.1)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def run(results: Path, method: str, losses: list[float] | float, seed: int = 0, **trial: Any) -> None:
    """A method's record at every budget, each with its loss."""
    each = losses if isinstance(losses, list) else [losses] * len(BUDGETS)
    for place, (budget, loss) in enumerate(zip(BUDGETS, each, strict=True)):
        made = flipped(DENSE, loss, 0.01, seed=100 * seed + place)
        put(results, made, method=method, budget=budget, seed=seed, **trial)


def floor(results: Path, loss: float = 0.3, seeds: int = 3, **trial: Any) -> None:
    for seed in range(seeds):
        run(results, "random", loss, seed=seed, **trial)


def only(results: Path) -> Verdict:
    (bar,) = verdict(results / "made")
    return bar


def test_a_method_that_is_best_everywhere_holds(call: Call, results: Path) -> None:
    put(results, DENSE, method="none", scope="all", budget=1.0)
    floor(results)
    run(results, "mine", 0.05)
    run(results, "taylor", 0.15)
    run(results, "magnitude", [0.1, 0.2, 0.2, 0.2, 0.2, 0.2])
    done = call("verdict", results / "made", "--json")
    found = json.loads(done.out)
    assert (done.code, done.err, found["holds"]) == (0, "", True)
    (bar,) = found["bars"]
    assert (bar["held"], bar["goal"], bar["highest"]) == (6, 4, True)
    assert bar["notes"] == [f"{ONE_SEED} (mine, magnitude, taylor)"]
    assert [at["budget"] for at in bar["budgets"]] == list(BUDGETS)
    # The rival of a budget is the one that is best there, and the figures are those of the answers.
    assert [at["rival"]["name"] for at in bar["budgets"]] == ["magnitude", *["taylor"] * 5]
    assert bar["budgets"][0]["rival"]["estimate"] == pytest.approx(0.05, abs=0.005)
    assert bar["budgets"][0]["floor"]["estimate"] == pytest.approx(0.25, abs=0.005)
    assert bar["mean"] == pytest.approx(DENSE.mean() + 0.01 - 0.05, abs=0.002)
    assert {rival["name"] for rival in bar["rivals"]} == {"taylor", "magnitude", "random"}
    assert "holds: 6 of 6 budgets hold, 4 needed; its mean is the highest" in call("verdict", results / "made").out
    assert json.loads(call("verdict", "made", "--results", results, "--json").out) == json.loads(done.out)


def test_a_loss_of_a_point_is_ruled_out_down_to_a_budget(call: Call, results: Path) -> None:
    """The larger budgets come first: a smaller one that loses nothing says nothing while a larger one loses."""
    put(results, DENSE, method="none", scope="all", budget=1.0)
    floor(results)
    for place, (budget, lost) in enumerate(zip(BUDGETS, [0.0, 0.0, 0.1, 0.0, 0.1, 0.1], strict=True)):
        put(results, flipped(DENSE, lost, 0.0, seed=place), method="mine", budget=budget)
    done = call("verdict", results / "made", "--json")
    (bar,) = json.loads(done.out)["bars"]
    losses = [at["loss"] for at in bar["budgets"]]
    assert [loss["estimate"] for loss in losses] == pytest.approx([0, 0, 0.1, 0, 0.1, 0.1], abs=0.003)
    assert [loss["bound"] < 0.01 for loss in losses] == [True, True, False, True, False, False]
    assert bar["harmless"] == 0.75
    assert "a loss of a point is ruled out down to 0.75" in call("verdict", results / "made").out


def test_without_the_dense_models_answers_no_loss_is_known_and_the_rest_is_judged(call: Call, results: Path) -> None:
    put(results, DENSE, method="none", scope="all", budget=1.0)
    floor(results)
    run(results, "mine", 0.05)
    run(results, "taylor", 0.15)
    (dense,) = (
        path for path in (results / "made").glob("*.json") if json.loads(path.read_text())["trial"]["method"] == "none"
    )
    dense.with_suffix(".parquet").unlink()
    bar = only(results)
    assert bar.holds and all(at.loss is None for at in bar.budgets)
    assert any(note.startswith("losses are not known: ") and "samples" in note for note in bar.notes)


def test_equal_answers_lose_nothing(call: Call, results: Path) -> None:
    put(results, DENSE, method="none", scope="all", budget=1.0)
    floor(results)
    put(results, DENSE, method="mine", budget=0.9)
    assert "0.0 (0." in (out := call("verdict", results / "made").out) and "-0.0" not in out


def test_without_a_dense_model_no_loss_is_known(call: Call, results: Path) -> None:
    floor(results)
    run(results, "mine", 0.0)
    bar = only(results)
    assert bar.harmless is None and all(at.loss is None for at in bar.budgets)
    assert "no dense model with an accuracy: losses are not known" in bar.notes
    assert "ruled out" not in call("verdict", results / "made").out


@pytest.mark.parametrize(("behind", "holds"), [(2, True), (3, False)])
def test_two_thirds_of_the_budgets_have_to_hold(call: Call, results: Path, behind: int, holds: bool) -> None:
    floor(results)
    run(results, "mine", 0.05)
    run(results, "taylor", [0.0] * behind + [0.2] * (6 - behind))
    bar = only(results)
    assert [at.holds for at in bar.budgets] == [False] * behind + [True] * (6 - behind)
    assert (bar.holds, bar.highest) == (holds, True)
    assert call("verdict", results / "made").code == (0 if holds else 1)


def test_the_mean_has_to_be_the_highest(results: Path) -> None:
    """Level with the rival everywhere but once, and there far behind."""
    floor(results)
    run(results, "mine", [0.05, 0.05, 0.05, 0.05, 0.05, 0.25])
    run(results, "taylor", 0.05)
    bar = only(results)
    assert sum(at.holds for at in bar.budgets) == 5 and not bar.highest and not bar.holds


def test_a_sequential_form_is_a_contestant_of_its_own(results: Path) -> None:
    """Better than the plain form: it is the rival, and not a seed of the plain one."""
    floor(results)
    run(results, "mine", 0.1)
    run(results, "wanda", 0.3)
    run(results, "wanda", 0.05, sequential=True, variant="sequential")
    run(results, "taylor", 0.0, calibration={"samples": 512, "tasks": list(TASKS), "split": "calibration"})
    bar = only(results)
    assert {at.rival.name for at in bar.budgets if at.rival} == {"wanda sequential"} and bar.standing == "behind"
    assert [rival.name for rival in bar.rivals] == ["wanda", "wanda sequential", "random"], "taylor saw more samples"


@pytest.mark.parametrize(("loss", "standing"), [(0.05, "ahead"), (0.15, "level"), (0.25, "behind")])
def test_where_it_stands_over_all_budgets(call: Call, results: Path, loss: float, standing: str) -> None:
    """Against the rival with the best mean, here taylor, though magnitude is better at the first budget."""
    floor(results)
    run(results, "mine", loss)
    run(results, "taylor", 0.15)
    run(results, "magnitude", [0.1, 0.2, 0.2, 0.2, 0.2, 0.2])
    bar = only(results)
    assert bar.standing == standing and bar.overall and bar.overall.name == "taylor"
    assert bar.overall.estimate == pytest.approx(0.15 - loss, abs=0.005)
    assert bar.overall.lo < bar.overall.estimate < bar.overall.hi
    assert f"{standing}: " in call("verdict", results / "made").out


def test_above_random_has_to_be_seen(results: Path) -> None:
    floor(results, loss=0.05)
    run(results, "mine", 0.05)
    run(results, "taylor", 0.2)
    bar = only(results)
    assert not any(at.holds for at in bar.budgets)
    assert all(at.floor and at.floor.p > ALPHA for at in bar.budgets)


def test_p_values_are_those_of_holm_over_the_budgets(results: Path) -> None:
    """The same difference is seen alone and not among six."""
    small = scores(300, 0.95)
    for budget in (0.5, 0.25):
        for seed, loss in ((0, 0.1), (1, 0.1)):
            put(results, flipped(small, loss, 0.01, seed=seed), method="random", budget=budget, seed=seed)
        put(results, flipped(small, 0.1, 0.01, seed=7 if budget == 0.25 else 3), method="taylor", budget=budget)
        put(results, flipped(small, 0.1 if budget == 0.25 else 0.055, 0.01, seed=9), method="mine", budget=budget)
    two = only(results)
    for path in results.glob("*/*.json"):
        if json.loads(path.read_text())["trial"]["budget"] == 0.25:
            path.unlink()
    alone = only(results).budgets[0].rival
    assert two.budgets[0].rival and alone
    assert two.budgets[0].rival.p == pytest.approx(2 * alone.p)
    assert two.budgets[0].rival.estimate == alone.estimate


def test_like_is_compared_with_like(results: Path) -> None:
    """Better rivals of another regime or scope have no say."""
    for scope in ("vision", "all"):
        floor(results, scope=scope)
        run(results, "mine", 0.05, scope=scope)
        run(results, "taylor", 0.1, scope=scope)
    run(results, "refitted", 0.0, tuning="refit")
    run(results, "tuned", 0.0, tuning="full-kl-300")
    bars = verdict(results / "made")
    assert [(bar.scope, bar.holds) for bar in bars] == [("all", True), ("vision", True)]
    assert all({rival.name for rival in bar.rivals} == {"taylor", "random"} for bar in bars)


def test_a_trial_that_was_measured_anew_is_no_second_seed_and_another_input_another_contest(results: Path) -> None:
    floor(results)
    run(results, "mine", 0.1)
    run(results, "taylor", 0.15)
    before = verdict(results / "made")
    run(results, "taylor", 0.02, metrics=["accuracy"], kept=None, speedup=None)  # measured less
    run(results, "taylor", 0.02, reference_input={"image": [224, 224], "text": "?"})
    assert verdict(results / "made") == before  # a loss of 0.02 would be the hardest rival's


def test_a_control_with_the_same_tuning_is_a_rival(results: Path) -> None:
    how: dict[str, Any] = {"tuning": "full-kl-300"}
    floor(results, **how)
    run(results, "mine", 0.1, **how)
    run(results, "mine", 0.2, control="random-units", variant="control=random-units", role="reference", **how)
    run(results, "taylor", 0.05, **how)
    assert all(at.rival and at.rival.name == "taylor" for at in only(results).budgets)


def test_budgets_of_other_terms_are_no_seeds(results: Path) -> None:
    """Half of the parameters, or widths of another multiple, are another board than half of the FLOPs."""
    put(results, DENSE, method="none", scope="all", budget=1.0)
    several: dict[float, dict[str, Any]] = {0.05: {}, 0.25: {"currency": "params"}, 0.3: {"align": 8}}
    for loss, terms in several.items():
        floor(results, loss + 0.2, **terms)
        run(results, "mine", loss, **terms)
        run(results, "taylor", loss + 0.1, **terms)
    bars = verdict(results / "made")
    assert len(bars) == 3 and all(bar.holds and bar.rivals[0].budgets == len(BUDGETS) for bar in bars)
    means = [DENSE.mean() + 0.01 - loss for loss in reversed(several)]
    assert sorted(bar.mean or 0 for bar in bars) == pytest.approx(means, abs=0.002)
    said = {bar.notes for bar in bars}
    other = ("budgets of currency params, align None", "budgets of currency flops, align 8")
    one_seed = f"{ONE_SEED} (mine, taylor)"
    assert said == {(one_seed,), *((words, one_seed) for words in other)}


def test_without_a_rival_it_is_compared_with_none_and_says_so(call: Call, results: Path) -> None:
    put(results, DENSE, method="none", scope="all", budget=1.0)
    floor(results)
    run(results, "taylor", 0.2)
    run(results, "mine", 0.05, regime="trained")
    bar = only(results)
    assert not bar.holds and all(at.rival is None and at.floor for at in bar.budgets)
    assert (bar.standing, bar.overall) == ("alone", None)
    assert bar.notes == (
        f"{ONE_SEED} (mine)",
        "no rival of regime trained: compared with none",
        "random is of regime none",
    )
    done = call("verdict", results / "made")
    assert done.code == 1 and "compared with none" in done.out


def test_a_budget_of_one_rival_alone_is_not_judged(results: Path) -> None:
    floor(results)
    run(results, "mine", 0.05)
    run(results, "taylor", 0.2)
    put(results, DENSE, method="taylor", budget=1.0)
    bar = only(results)
    assert bar.holds and [at.budget for at in bar.budgets] == list(BUDGETS)


def test_a_budget_that_the_studied_method_left_out_counts_against_it(results: Path) -> None:
    floor(results)
    run(results, "taylor", 0.2)
    for budget in BUDGETS[:3]:
        put(results, flipped(DENSE, 0.05, 0.01), method="mine", budget=budget)
    bar = only(results)
    assert not bar.holds and [at.budget for at in bar.budgets] == list(BUDGETS)
    assert "not run at 0.3125, 0.2, 0.1, where others were" in bar.notes


def test_random_choices_of_any_kind_are_the_floor(results: Path) -> None:
    """The best of them, where there are several."""
    for name, loss in (("random_layers", 0.3), ("random_tokens", 0.2)):
        run(results, name, loss, role="floor")
    run(results, "mine", 0.05)
    run(results, "taylor", 0.1)
    assert {at.floor.name for at in only(results).budgets if at.floor} == {"random_tokens"}


def test_variants_and_controls_stand_on_their_own(results: Path) -> None:
    """The same method with its units drawn at random is what it has to beat, not a variant of it."""
    floor(results)
    run(results, "taylor", 0.2)
    run(results, "mine", 0.05)
    run(results, "mine", 0.25, options={"k": 2}, variant="k=2")
    run(results, "mine", 0.1, control="random-units", variant="control=random-units", role="reference")
    bars = {bar.name: bar for bar in verdict(results / "made")}
    assert set(bars) == {"mine", "mine k=2"}
    assert bars["mine"].holds and not bars["mine k=2"].holds
    assert all(at.rival and at.rival.name == "mine control=random-units" for at in bars["mine"].budgets)


def test_seeds_are_averaged_and_failures_named(results: Path) -> None:
    floor(results)
    run(results, "taylor", 0.2)
    for seed, loss in enumerate((0.04, 0.05, 0.06)):
        run(results, "mine", loss, seed=seed)
    whole = only(results)
    assert whole.holds and whole.mean == pytest.approx(DENSE.mean() + 0.01 - 0.05, abs=0.002)
    for seed in range(3):
        put(results, None, method="mine", budget=0.1, seed=seed, error="out of memory")
    bar = only(results)
    assert [at.holds for at in bar.budgets] == [True] * 5 + [False]
    assert bar.mean is None and not bar.highest and not bar.holds, "a mean without its hardest budget is no mean"
    assert "mine at 0.1, seed 0: MemoryError: out of memory" in bar.notes
    assert {rival.budgets for rival in bar.rivals} == {5}
    put(results, None, method="taylor", budget=0.1, error="out of memory")
    notes = only(results).notes
    assert "mine, taylor at 0.1, seed 0: MemoryError: out of memory" in notes, "who fails alike shares a note"
    assert "mine at 0.1, seed 1: MemoryError: out of memory" in notes


def test_draws_that_differ_make_a_verdict_unsure(results: Path) -> None:
    """Four points ahead on average is ahead where each draw is, and level where the draws lie ten points apart."""
    floor(results)
    for seed, rival in enumerate((0.13, 0.14, 0.15)):
        run(results, "taylor", rival, seed=seed)
        run(results, "mine", 0.1, seed=seed)
    steady = only(results)
    assert steady.standing == "ahead" and ONE_SEED not in " ".join(steady.notes)
    for seed, loss in enumerate((0.0, 0.1, 0.2)):
        run(results, "mine", loss, seed=seed)
    scattered = only(results)
    assert steady.overall and scattered.overall
    assert scattered.overall.estimate == pytest.approx(steady.overall.estimate, abs=0.002)
    assert scattered.standing == "level" and scattered.overall.lo < -0.1


def test_draws_that_both_share_do_not_blur_their_difference(results: Path) -> None:
    """A draw that is bad for both tells nothing about which of them is better."""
    floor(results)
    for seed, loss in enumerate((0.0, 0.1, 0.2)):
        run(results, "mine", loss, seed=seed)
        run(results, "taylor", loss + 0.04, seed=seed)
    bar = only(results)
    assert bar.standing == "ahead" and bar.overall and bar.overall.hi - bar.overall.lo < 0.05


def test_who_has_one_seed_at_all_budgets_is_named(results: Path) -> None:
    """Also where a seed failed at one budget, and so left the mean over the budgets with one."""
    floor(results, seeds=1)
    for seed in range(3):
        run(results, "mine", 0.05, seed=seed)
    for seed in range(2):
        run(results, "taylor", 0.1, seed=seed)
    put(results, None, method="taylor", budget=0.1, seed=1, error="out of memory")
    assert f"{ONE_SEED} (taylor, random)" in only(results).notes


def test_new_factors_against_weights_as_they_were_are_named(results: Path) -> None:
    """Without a recovery a factor is fitted to data and a weight that stays is not; after a refit both are."""
    factors = Plan({("vision.0", "ffn"): Choice(1, "rank 3/2")}, 0.5, 0.5)
    recoveries: list[dict[str, Any]] = [{}, {"tuning": "refit"}]
    for how in recoveries:
        floor(results, **how)
        run(results, "mine", 0.05, plan=factors, **how)
        run(results, "taylor", 0.1, **how)
        run(results, "svd", 0.2, plan=factors, **how)
    said = {bar.regime: [note for note in bar.notes if "factors" in note] for bar in verdict(results / "made")}
    assert said == {"none": ["its factors are new weights; the weights that taylor left are the old ones"], "refit": []}


def test_what_cannot_be_judged_is_refused(call: Call, results: Path) -> None:
    refused(call("verdict", results), "neither a results folder")
    floor(results, seeds=1)
    refused(call("verdict", results / "made"), "no trial of a method under study")
    run(results, "mine", 0.05)
    run(results, "taylor", 0.1)
    assert call("verdict", results).code == 0, "a results folder of one board is that board"
    put(results, np.ones(300), method="mine", budget=0.9, data="e")
    refused(call("verdict", results / "made"), "data differ")
    put(results, np.ones(300), method="mine", budget=0.9)
    refused(call("verdict", results / "made"), "150 of 450 questions")
    path = put(results, DENSE, method="mine", budget=0.9)
    path.with_suffix(".parquet").unlink()
    refused(call("verdict", results / "made"), "samples missing", path.stem)
    path.write_text("{")
    refused(call("verdict", results / "made"), str(path), "not a record")
    path.unlink()
    put(results, DENSE, board="other")
    refused(call("verdict", results), "records of 2 boards (made, other)")


def test_an_interval_below_zero_never_holds(call: Call, results: Path) -> None:
    """Though Holm over six budgets excuses the difference of each; nor is it called level."""
    floor(results)
    run(results, "mine", 0.05)
    run(results, "taylor", [0.019, 0.05, 0.05, 0.05, 0.05, 0.05])
    bar = only(results)
    (at, *others) = bar.budgets
    assert at.rival and at.rival.hi < 0 and at.rival.p > ALPHA and not at.holds and all(o.holds for o in others)
    for against in (Against("x", -0.05, -0.1, -0.001, 0.2), Against("x", -0.05, -0.1, 0.001, 0.04)):
        assert against.below and not AtBudget(0.5, 0.8, against, Against("y", 0.2, 0.1, 0.3, 0.001)).holds
        assert dataclasses.replace(bar, overall=against).standing == "behind"
    level = Against("x", -0.05, -0.1, 0.001, 0.2)
    assert not level.below and dataclasses.replace(bar, overall=level).standing == "level"
    rows = [line for line in call("verdict", results / "made").out.splitlines() if line.endswith((" yes", " no"))]
    assert all(line.endswith(" no") for line in rows if re.search(r"\[-\d+\.\d, -\d+\.\d\]", line.split("taylor")[0]))
