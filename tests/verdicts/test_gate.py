"""The gate says fail, pass or inconclusive for what costs something, nothing, or cannot be told; nothing in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.records.store import collect
from harness.trials import sweep
from harness.types import CalibrationSpec, InputError, Questions, ReferenceInput, Trial
from harness.verdicts import gate, regressions
from harness.verdicts.regressions import Cost, Limits
from tests.support.commands import Call, refused
from tests.support.stored import OK, TASKS, flipped, put, scores

BEFORE = scores(1800)
EVIL = "<img src=x onerror=alert(1)> | ]]> & \x1b[31m [bold]b[/]"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return tmp_path / "old"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def judged(old: Path, new: Path, **limits: Any) -> gate.Gate:
    return gate.compare(str(old), str(new), Limits(**limits))


# --- accuracy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "gained", "says", "code"),
    [(0.05, 0.02, "fail", 1), (0.01, 0.01, "pass", 0), (0.02, 0.016, "inconclusive", 3)],
)
def test_what_a_change_costs_decides(
    call: Call, old: Path, new: Path, lost: float, gained: float, says: str, code: int
) -> None:
    put(old, BEFORE)
    put(new, flipped(BEFORE, lost, gained), revision="b")
    done = call("gate", old, new, "--json")
    found = json.loads(done.out)
    assert (done.code, done.err, found["verdict"], found["metrics"]["accuracy"]) == (code, "", says, says)
    accuracy = found["trials"][0]["accuracy"]
    assert (
        accuracy["estimate"] == pytest.approx(lost - gained, abs=0.001)
        and accuracy["lo"] < lost - gained < accuracy["hi"]
    )
    assert (accuracy["hi"] < 0.01) == (says == "pass") and (accuracy["lo"] > 0) == (says == "fail")
    assert accuracy["needed"] is None if says != "inconclusive" else accuracy["needed"] > 1800
    assert f"gate: {says}" in call("gate", old, new).out


def test_few_questions_settle_nothing_and_the_gate_says_how_many_would(call: Call, old: Path, new: Path) -> None:
    few = scores(42)
    put(old, few)
    put(new, flipped(few, 1 / 42))
    done = call("gate", old, new)
    assert done.code == 3 and "questions would settle it" in done.out
    needed = judged(old, new).trials[0].findings["accuracy"].cost
    assert needed and needed.needed and 42 < needed.needed < 10_000


def test_one_trial_that_got_worse_is_not_hidden_by_others_that_were_not_run_again(old: Path, new: Path) -> None:
    for budget in (0.9, 0.75, 0.5, 0.3, 0.2, 0.1):
        put(old, BEFORE, budget=budget)
    shutil.copytree(old, new)
    put(new, flipped(BEFORE, 0.05, 0.02), budget=0.5)
    found = judged(old, new)
    assert found.verdict == "fail" and not found.pooled
    assert [row.name for row in found.trials if row.findings["accuracy"].outcome == "fail"] == ["taylor vision 0.5"]


def test_trials_that_are_open_alone_pass_together(old: Path, new: Path) -> None:
    few = scores(600)
    for seed in range(8):
        put(old, few, seed=seed)
        put(new, flipped(few, 0.01, 0.01, seed=seed), seed=seed)
    found = judged(old, new)
    assert [row.findings["accuracy"].outcome for row in found.trials] == ["inconclusive"] * 8
    assert [row.findings["accuracy"].outcome for row in found.pooled] == ["pass"]
    assert (found.verdict, found.metrics["accuracy"]) == ("pass", "pass")


def test_a_small_loss_everywhere_is_seen_together(old: Path, new: Path) -> None:
    few = scores(600)
    for seed in range(8):
        put(old, few, seed=seed)
        put(new, flipped(few, 0.035, 0.02, seed=seed), seed=seed)
    found = judged(old, new)
    assert "fail" not in {row.findings["accuracy"].outcome for row in found.trials}
    assert found.pooled[0].findings["accuracy"].outcome == "fail" and found.verdict == "fail"


def test_sets_of_questions_are_pooled_apart_and_each_has_to_pass(old: Path, new: Path) -> None:
    few = scores(240)
    for seed in range(2):
        put(old, BEFORE, seed=seed)
        put(new, flipped(BEFORE, 0.01, 0.01, seed=seed), seed=seed)
        put(old, few, seed=seed, limit=80)
        put(new, flipped(few, 0.02, 0.02, seed=seed), seed=seed, limit=80)
    found = judged(old, new)
    assert sorted(row.findings["accuracy"].outcome for row in found.pooled if "accuracy" in row.findings) == [
        "inconclusive",
        "pass",
    ]
    assert found.metrics["accuracy"] == "inconclusive"


def test_a_cost_is_no_failure_once_holm_has_looked_at_all_trials() -> None:
    lucky, sure = Cost(0.02, 0.005, 0.04, False, 0.02), Cost(0.03, 0.02, 0.04, False, 0.0001)
    fine = {f"trial {i}": Cost(0.0, -0.02, 0.02, False, 0.5) for i in range(9)}

    def outcomes(*tested: Cost) -> list[str]:
        named = {f"extra {i}": cost for i, cost in enumerate(tested)}
        return [regressions._settle({**named, **fine}, {}, Limits())[name].outcome for name in named]

    assert outcomes(lucky) == ["inconclusive"] and outcomes(sure, lucky) == ["fail", "inconclusive"]
    assert regressions._settle({"alone": lucky}, {}, Limits())["alone"].outcome == "fail"


# --- latency and FLOPs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speedup", "says"),
    [
        ((1.25, 1.2, 1.3), "fail"),
        ((1.5, 1.49, 1.51), "pass"),
        ((1.6, 1.55, 1.65), "pass"),
        ((1.47, 1.3, 1.7), "inconclusive"),
    ],
)
def test_latency_is_what_the_speedups_over_dense_say(
    call: Call, old: Path, new: Path, speedup: tuple[float, float, float], says: str
) -> None:
    put(old, BEFORE, speedup=(1.5, 1.49, 1.51))
    put(new, BEFORE, speedup=speedup)
    found = judged(old, new)
    cost = found.trials[0].findings["latency"].cost
    assert found.metrics == {"accuracy": "pass", "latency": says, "flops": "pass"} and found.verdict == says
    assert cost and cost.estimate == pytest.approx(1.5 / speedup[0])
    if says == "inconclusive":
        assert cost.needed and cost.needed > 20
        assert f"about {cost.needed:,} timed rounds a trial would settle it" in call("gate", old, new).out


def test_times_of_other_machines_are_refused_and_said_but_the_rest_is_judged(call: Call, old: Path, new: Path) -> None:
    put(old, BEFORE)
    put(new, BEFORE, env={"cpu": "Another CPU", "threads": 2})
    done = call("gate", old, new)
    assert done.code == 0 and "latency: refused" in done.out
    assert "machines differ: cpu Example CPU and Another CPU" in done.out.replace("\n", "")
    put(old, None, kept=None)
    put(new, None, kept=None, env={"cpu": "Another CPU", "threads": 2})
    assert call("gate", old, new).code == 2


def test_identical_bytes_pass_whatever_they_hold(call: Call, old: Path, new: Path) -> None:
    put(old, scores(6), speedup=(1.0, 0.1, 10.0))
    shutil.copytree(old, new)
    done = call("gate", old, new, "--json")
    assert done.code == 0 and set(json.loads(done.out)["metrics"].values()) == {"pass"}
    put(new, scores(6), speedup=(1.0, 0.1, 10.0), revision="b")
    assert call("gate", old, new).code == 3


def test_flops_are_exact(call: Call, old: Path, new: Path) -> None:
    put(old, BEFORE, kept=0.5)
    put(new, BEFORE, kept=0.5005)
    assert call("gate", old, new).code == 1 and judged(old, new).metrics["flops"] == "fail"
    assert call("gate", old, new, "--flops", "1.01").code == 0
    put(new, BEFORE, kept=0.4)
    assert judged(old, new).metrics["flops"] == "pass"


# --- which trials -------------------------------------------------------------------------------------------


def test_trials_are_joined_by_everything_but_the_code(call: Call, old: Path, new: Path) -> None:
    put(old, BEFORE, revision="a")
    put(new, BEFORE, revision="b", title="renamed", role="studied", regime="refit")
    assert len(judged(old, new).trials) == 1
    others: list[dict[str, Any]] = [{"seed": 1}, {"limit": 300}, {"board": "other"}, {"options": {"k": 2}}]
    for changes in others:
        shutil.rmtree(new)
        put(new, BEFORE, **changes)
        refused(call("gate", old, new), "no trial is in both", "made")


def test_a_trial_that_broke_fails_and_one_that_is_missing_leaves_it_open(call: Call, old: Path, new: Path) -> None:
    for budget in (0.75, 0.5):
        put(old, BEFORE, budget=budget)
    shutil.copytree(old, new)
    broken = put(new, None, budget=0.5, error="out of memory")
    done = call("gate", old, new)
    assert done.code == 1 and "broken: taylor vision 0.5: failed: MemoryError: out of memory" in done.out
    broken.unlink()
    done = call("gate", old, new)
    assert done.code == 3 and "missing from the candidate: taylor vision 0.5" in done.out
    alone = next(new.glob("*/*.json"))
    assert call("gate", old, alone).code == 0, "of a record file, only its own trial is asked"


def test_what_failed_before_too_is_named_and_not_compared(call: Call, old: Path, new: Path) -> None:
    for folder in (old, new):
        put(folder, BEFORE, budget=0.75)
        put(folder, None, budget=0.5, error="out of memory")
    put(new, BEFORE, seed=7)
    done = call("gate", old, new)
    assert done.code == 0 and "taylor vision 0.5: failed before and after: not compared" in done.out
    assert "1 trials of the candidate have no baseline" in done.out


def test_other_boards_of_the_baseline_are_not_missing(old: Path, new: Path) -> None:
    put(old, BEFORE)
    put(old, BEFORE, board="another")
    put(new, BEFORE)
    assert judged(old, new).verdict == "pass"


def test_a_sweep_against_a_baseline_runs_the_trials_that_have_a_good_record(old: Path) -> None:
    def trial(budget: float) -> Trial:
        return Trial(
            "made", "reference", "taylor", {}, "vision", "both", budget, 0, Questions(TASKS, limit=600),
            ("flops", "latency", "accuracy"), CalibrationSpec(128, TASKS),
            reference_input=ReferenceInput((96, 96), "?"),
        )  # fmt: skip

    put(old, BEFORE, budget=0.75)
    put(old, None, budget=0.5, error="out of memory")
    board = [trial(budget) for budget in (0.75, 0.5, 0.25)]
    assert sweep.against(board, collect(old)) == board[:1]
    with pytest.raises(InputError, match="no good record of this board's trials"):
        sweep.against(board[1:], collect(old))


# --- where records come from --------------------------------------------------------------------------------


def test_git_revisions(call: Call) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], check=True, capture_output=True)

    results = Path("results")
    git("init", "--quiet")
    put(results, BEFORE)
    git("add", "results")
    git("commit", "--quiet", "-m", "first")
    put(results, flipped(BEFORE, 0.05, 0.02))
    git("add", "results")
    git("commit", "--quiet", "-m", "second")
    git("tag", "v1")
    assert call("gate", "HEAD~1", "HEAD").code == 1
    assert call("gate", "HEAD~1", "results").code == 1
    assert call("gate", "v1", "results").code == 0
    assert call("gate", "HEAD~1:results/made", "results/made").code == 1
    for words, says in {
        ("HEAD~9", "results"): "HEAD~9: neither a results folder, a record file nor a git revision",
        ("HEAD:nowhere", "results"): "no folder nowhere",
        ("results", "$(touch evil)"): "neither",
    }.items():
        done = call("gate", *words)
        assert done.code == 2 and says in done.err and done.err.count("\n") == 1
    assert not Path("evil").exists()


def test_bad_records_are_refused_by_name(call: Call, old: Path, new: Path) -> None:
    path, good = put(old, BEFORE), put(new, flipped(BEFORE, 0.01))
    table, text = path.with_suffix(".parquet"), path.read_bytes()
    right = table.read_bytes()
    newer = json.dumps({**json.loads(text), "schema": 99}).encode()
    for content, says in (
        (text[:-40], "not valid JSON"),
        (b'{"name": "package"}', "schema"),
        (newer, "newer version"),
        (text.replace(b'"kept": 0.5', b'"kept": 0.6'), "changed after it was written"),
    ):
        path.write_bytes(content)
        refused(call("gate", old, new), str(path), says)
        refused(call("gate", new, old), str(path), says)
    path.write_bytes(text)
    table.unlink()
    refused(call("gate", old, new), str(table), "samples missing")
    table.write_bytes(good.with_suffix(".parquet").read_bytes())
    refused(call("gate", old, new), str(table), "hash differs")
    table.write_bytes(right)
    assert call("gate", old, new).code in (0, 1, 3)
    shutil.copytree(old / "made", old / "copy")
    assert call("gate", old, new).code in (0, 1, 3), "the same twice is the same"
    put(old, BEFORE, revision="z")
    refused(call("gate", old, new), "contradicts", str(path))


def test_other_questions_are_refused(call: Call, old: Path, new: Path) -> None:
    put(old, BEFORE)
    put(new, BEFORE, data="e")
    done = call("gate", old, new)
    assert done.code == 2 and "accuracy: refused" in done.out and "data differ (hash d and e)" in done.out
    put(new, BEFORE[:900])
    refused(call("gate", old, new), "900 of 1800 questions are in one set of answers only")


def test_empty_folders_and_bad_limits(call: Call, old: Path, new: Path) -> None:
    for folder in (old, new):
        folder.mkdir()
    refused(call("gate", old, new), str(new), "no records there")
    refused(call("gate", old, Path("nowhere")), "nowhere: neither")
    for flag, value in (("--margin", 0), ("--margin", 2), ("--latency", 0.9), ("--flops", 0.5), ("--alpha", 0.7)):
        refused(call("gate", old, new, flag, value), flag, "must be")


# --- output -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "says"), [(False, "pass"), (True, "inconclusive")])
def test_a_metric_that_some_trials_lost_does_not_pass(old: Path, new: Path, lost: bool, says: str) -> None:
    """One that they gained says nothing of the change."""
    for number, method in enumerate(("taylor", "wanda", "flap")):
        sides = (old, new) if lost else (new, old)
        for side, speedup in zip(sides, (OK["speedup"], None if number else OK["speedup"]), strict=True):
            put(side, BEFORE, method=method, speedup=speedup, revision=side.name)
    found = judged(old, new)
    assert (found.metrics["latency"], found.verdict) == (says, says)


def test_markdown_and_junit_hold_every_outcome_and_escape_what_records_say(call: Call, old: Path, new: Path) -> None:
    put(old, BEFORE, method=EVIL)
    put(new, flipped(BEFORE, 0.05, 0.02), method=EVIL, env={"cpu": EVIL, "threads": 2})
    put(old, None, method="fragile")
    put(new, None, method="fragile", error=EVIL)
    done = call("gate", old, new, "--junit", "out/gate.xml", "--markdown", "out/gate.md")
    assert done.code == 1 and "\x1b" not in done.out and "<img" in done.out.replace("\n", "")
    text = Path("out/gate.md").read_text(encoding="utf-8")
    assert "<img" not in text and "\x1b" not in text and text.startswith("### Gate: fail")
    root = ElementTree.parse("out/gate.xml").getroot()
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"accuracy", "latency", "flops", "run"}
    assert "fragile" in (suites["run"][0].get("name") or "") and "failed" not in (suites["run"][0].get("name") or "")
    assert [suites["accuracy"].get(key) for key in ("tests", "failures", "skipped")] == ["1", "1", "0"]
    assert [suites["latency"].get(key) for key in ("tests", "failures", "skipped")] == ["1", "0", "1"]
    case = suites["accuracy"][0]
    assert "<img src=x onerror=alert(1)>" in (case.get("name") or "") and case[0].tag == "failure"
    assert "out of memory" not in text and "fragile" in text
    refused_ = call("gate", old, new, "--junit", "/proc/none/gate.xml")
    assert refused_.code == 2 and "--junit /proc/none: not writable" in refused_.err


def test_json_has_no_infinity(call: Call, old: Path, new: Path) -> None:
    """One image a task: nobody knows the spread."""
    put(old, scores(9))
    put(new, 1 - scores(9))
    done = call("gate", old, new, "--json")

    def never(text: str) -> None:
        raise AssertionError(text)

    found = json.loads(done.out, parse_constant=never)["trials"][0]["accuracy"]
    assert (found["outcome"], found["lo"], found["hi"], found["needed"]) == ("inconclusive", None, None, None)
    assert "no number of questions known" in call("gate", old, new).out
