"""Two sides compared: what matches, how far it differs, what the interval stands on; nothing in silence, no verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import stats
from harness.cli import screen
from harness.records.store import collect
from harness.types import Trial
from harness.verdicts import compare, matching
from harness.verdicts.compare import Change, Comparison
from tests.support.commands import Call, refused
from tests.support.paths import ROOT
from tests.support.stored import TASKS, flipped, put, scores, trial_of

BEFORE = scores(600)
FEW: dict[str, Any] = {"limit": 30}


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return tmp_path / "a"


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return tmp_path / "b"


def beside(a: Path, b: Path) -> Comparison:
    return compare.compare(str(a), str(b))


def only(a: Path, b: Path, metric: str = "accuracy") -> Change:
    """The change of the one trial that both sides have."""
    (row,) = beside(a, b).rows
    return row.changes[metric]


# --- accuracy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "gained"), [(0.05, 0.02), (0.0, 0.06), (0.02, 0.02)])
def test_a_difference_is_paired_and_never_a_verdict(call: Call, a: Path, b: Path, lost: float, gained: float) -> None:
    put(a, BEFORE)
    put(b, flipped(BEFORE, lost, gained), revision="b")
    done = call("compare", a, b, "--json")
    assert (done.code, done.err) == (0, "")
    accuracy = json.loads(done.out)["trials"][0]["accuracy"]
    assert accuracy["estimate"] == pytest.approx(gained - lost, abs=0.002) and accuracy["how"] == "paired"
    assert accuracy["lo"] < gained - lost < accuracy["hi"]
    assert accuracy["stands"] == (not accuracy["lo"] <= 0 <= accuracy["hi"]) == (abs(gained - lost) > 0.02)
    assert sum(accuracy["tasks"].values()) / len(TASKS) == pytest.approx(accuracy["estimate"])
    expected = stats.difference(stats.pair(*(collect(side)[0].answers() for side in (a, b))))
    assert (accuracy["lo"], accuracy["hi"]) == (expected.lo, expected.hi)


def test_swapped_sides_give_the_opposite(a: Path, b: Path) -> None:
    put(a, BEFORE, speedup=(1.5, 1.4, 1.6))
    put(b, flipped(BEFORE, 0.05, 0.02), speedup=(1.2, 1.1, 1.4))
    there, back = beside(a, b).rows[0].changes, beside(b, a).rows[0].changes
    for name, opposite in (("accuracy", lambda value: -value), ("speedup", lambda value: 1 / value)):
        change, mirrored = there[name], back[name]
        assert change.estimate and mirrored.estimate is not None and mirrored.hi is not None
        assert (change.estimate, change.lo) == pytest.approx((opposite(mirrored.estimate), opposite(mirrored.hi)))


def test_the_same_record_differs_in_nothing(call: Call, a: Path, b: Path) -> None:
    put(a, BEFORE)
    shutil.copytree(a, b)
    change = only(a, b)
    assert (change.estimate, change.lo, change.hi, change.how, change.stands) == (0, 0, 0, compare.SAME, False)
    assert "1 trials are the same record in both" in call("compare", a, b).out


def test_other_questions_of_the_same_tasks_are_compared_unpaired(call: Call, a: Path, b: Path) -> None:
    one, two = scores(600, 0.8), scores(90, 0.6, seed=5)
    put(a, one, data="d", interval=True)
    put(b, two, data="e", interval=True, **FEW)
    change = only(a, b)
    known = [collect(side)[0].record.metrics["accuracy"] for side in (a, b)]
    expected = stats.gap(*((m["mean"], m["lo"], m["hi"]) for m in known))
    assert change.how == "unpaired" and (change.estimate, change.lo, change.hi) == pytest.approx(expected)
    assert "data differ" in change.why and change.stands
    shown = call("compare", a, b)
    assert shown.code == 0 and "other questions of the same tasks" in shown.out and "unpaired" in shown.out


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"tasks": ["mini_gqa"]}, "mini_gqa (validation)"),
        ({"split": "dev"}, "(dev)"),
        ({"tasks": ["things_gqa", "things_vqav2"], "split": "dev"}, "things_gqa, things_vqav2 (dev)"),
    ],
)
def test_other_tasks_are_refused_with_the_reason(
    call: Call, a: Path, b: Path, other: dict[str, Any], says: str
) -> None:
    put(a, BEFORE, interval=True)
    put(b, BEFORE, data="e", interval=True, **other)
    change = only(a, b)
    assert (change.estimate, change.how) == (None, "refused") and says in change.why
    assert (change.first, change.second) == pytest.approx((BEFORE.mean(), BEFORE.mean())), "both figures are shown"
    done = call("compare", a, b)
    assert done.code == 0 and "1 trials not compared: other tasks or another split" in done.out


def test_what_one_side_did_not_measure_is_said(call: Call, a: Path, b: Path) -> None:
    put(a, BEFORE, speedup=None)
    put(b, None)
    row = beside(a, b).rows[0]
    assert {m: row.changes[m].why for m in ("accuracy", "speedup")} == {
        "accuracy": "measured in A only",
        "speedup": "measured in B only",
    }
    put(b, BEFORE, data="e", interval=True)
    assert only(a, b).how == "refused" and "no interval" in only(a, b).why


# --- speed --------------------------------------------------------------------------------------------------


def test_speedups_of_two_machines_are_compared_and_said_to_be_so(call: Call, a: Path, b: Path) -> None:
    times = [{"stages": {"vision": {"8": {"pruned_ms": {"p50": ms}}}}} for ms in (40.0, 10.0)]
    put(a, BEFORE, speedup=(1.5, 1.45, 1.55), more=times[0])
    put(b, BEFORE, speedup=(3.0, 2.9, 3.1), more=times[1], env={"cpu": "Another CPU", "threads": 8})
    speedup, time = only(a, b, "speedup"), only(a, b, "time")
    assert (speedup.estimate, speedup.how, speedup.stands) == (pytest.approx(2), "two machines", True)
    assert (time.first, time.second, time.estimate, time.lo) == (40, 10, 0.25, None)
    done = call("compare", a, b)
    assert "timed on two machines" in done.out and "Another CPU" in done.out and "0.25" in done.out
    put(b, BEFORE, speedup=(3.0, 2.9, 3.1))
    assert only(a, b, "speedup").how == "one machine"


@pytest.mark.parametrize(
    "other",
    [{"latency": {"batches": [1, 4], "repeats": 20}}, {"reference_input": {"image": [448, 448], "text": "?"}}],
)
def test_speeds_of_other_inputs_are_refused(a: Path, b: Path, other: dict[str, Any]) -> None:
    put(a, BEFORE)
    put(b, BEFORE, **other)
    change = only(a, b, "speedup")
    assert change.estimate is None and "other inputs were timed" in change.why
    assert only(a, b).how == "paired"


# --- what matches -------------------------------------------------------------------------------------------


def test_two_models_are_matched_by_what_was_done_to_them(a: Path, b: Path) -> None:
    changes: dict[str, Any] = {"board": "other", "model": "another", "dtype": "bfloat16", "env": {"cpu": "x"}}
    for budget in (0.75, 0.5):
        for seed in (0, 1):
            put(a, BEFORE, budget=budget, seed=seed)
            put(b, flipped(BEFORE, 0.1), budget=budget, seed=seed, **changes)
    put(a, BEFORE, method="flap")
    put(b, BEFORE, scope="all", **changes)
    both = beside(a, b)
    assert len(both.rows) == 4 and both.keys == matching.KEYS
    assert [len(names) for names in both.only] == [1, 1] and "flap" in both.only[0][0]
    differing = {fact.name: (fact.first, fact.second, fact.differing) for fact in both.facts if fact.differing}
    assert set(differing) == {"board", "model", "precision", "machine"}
    assert differing["model"] == ("reference", "another", 4)
    assert all(row.changes["accuracy"].estimate == pytest.approx(-0.1, abs=0.01) for row in both.rows)


@pytest.mark.parametrize("key", ["options", "units", "seed", "tuning", "budget"])
def test_another_treatment_is_no_match(call: Call, a: Path, b: Path, key: str) -> None:
    others = {"options": {"form": "absolute"}, "units": "ffn", "seed": 3, "tuning": "refit", "budget": 0.4}
    put(a, BEFORE)
    put(b, BEFORE, **{key: others[key]})
    refused(call("compare", a, b), "no trial in common", "method, options, scope")


def test_trials_that_agree_are_told_apart_by_their_circumstances(a: Path, b: Path) -> None:
    """Two calibrations on a board, then a second board whose trials are the same: each has its own counterpart."""
    for side, change in ((a, 0.0), (b, 0.125)):
        for samples in (32, 128):
            drawn = {"samples": samples, "tasks": list(TASKS), "split": "calibration"}
            put(side, flipped(BEFORE, change * samples / 160), calibration=drawn)
    both = beside(a, b)
    assert both.keys == (*matching.KEYS, "calibration") and len(both.rows) == 2
    assert {row.label: round(row.changes["accuracy"].estimate or 0, 3) for row in both.rows} == {
        f"taylor samples={n} split=calibration tasks={'+'.join(TASKS)}": loss for n, loss in ((32, -0.025), (128, -0.1))
    }
    for side in (a, b):
        put(side, BEFORE, board="second")
    both = beside(a, b)
    assert set(both.keys) == {*matching.KEYS, "calibration", "board"} and len(both.rows) == 3
    assert sorted(panel.name for panel in both.panels) == [
        "made, scope vision, regime none",
        "second, scope vision, regime none",
    ]


trials = st.builds(
    lambda **content: trial_of(**content)[0],
    method=st.sampled_from(["taylor", "flap"]),
    budget=st.sampled_from([0.5, 0.25]),
    board=st.sampled_from(["made", "second"]),
    model=st.sampled_from(["one", "two"]),
    limit=st.sampled_from([None, 30]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)


@given(st.lists(trials, max_size=12), st.lists(trials, max_size=12))
def test_a_key_names_one_trial_of_a_side(first: list[Trial], second: list[Trial]) -> None:
    sides = [list({trial.id: trial for trial in side}.values()) for side in (first, second)]
    keys = matching.matched_on(*sides)
    for side in sides:
        assert len({matching._key(trial, keys) for trial in side}) == len(side)
    assert keys[: len(matching.KEYS)] == matching.KEYS
    if all(len({matching._key(trial, matching.KEYS) for trial in side}) == len(side) for side in sides):
        assert keys == matching.KEYS, "a circumstance is matched on only where it must be"


def test_failed_trials_are_matched_and_named_with_their_side(call: Call, a: Path, b: Path) -> None:
    for budget, errors in ((0.9, ("", "")), (0.5, ("no room", "")), (0.4, ("", "no room")), (0.3, ("no", "room"))):
        for side, error in zip((a, b), errors, strict=True):
            put(side, BEFORE, budget=budget, error=error)
    both = beside(a, b)
    assert len(both.rows) == 1
    assert both.failed == (
        "taylor vision 0.5: failed in A: MemoryError: no room",
        "taylor vision 0.4: failed in B: MemoryError: no room",
        "taylor vision 0.3: failed in A: MemoryError: no; failed in B: MemoryError: room",
    )
    done = call("compare", a, b)
    assert done.code == 0 and "4 trials matched" in done.out and all(line in done.out for line in both.failed)


# --- means --------------------------------------------------------------------------------------------------


def test_a_small_difference_everywhere_stands_in_the_mean(a: Path, b: Path) -> None:
    for seed in range(8):
        put(a, BEFORE, seed=seed, speedup=(1.5, 1.4, 1.6))
        put(b, flipped(BEFORE, 0.025, 0.01, seed=seed), seed=seed, speedup=(1.6, 1.5, 1.7))
    (panel,) = beside(a, b).panels
    assert not any(row.changes[m].stands for row in panel.rows for m in ("accuracy", "speedup"))
    accuracy, speedup = panel.changes["accuracy"], panel.changes["speedup"]
    assert accuracy.stands and accuracy.estimate == pytest.approx(-0.015, abs=0.002)
    assert speedup.stands and speedup.estimate == pytest.approx(1.6 / 1.5)
    assert (speedup.lo or 0) > max(row.changes["speedup"].lo or 0 for row in panel.rows)


def test_a_mean_over_other_questions_has_no_interval(a: Path, b: Path) -> None:
    for limit, number in ((None, 600), (30, 90)):
        put(a, scores(number), limit=limit, data=f"d{number}")
        put(b, flipped(scores(number), 0.1), limit=limit, data=f"d{number}")
    both = beside(a, b)
    assert len(both.panels) == 2, "questions were matched on, so they have panels of their own"
    for seed in range(2):
        put(a, BEFORE, seed=seed, board="c", interval=True)
        put(b, scores(90, 0.5), seed=seed, board="c", data="e", interval=True, **FEW)
    (panel,) = beside(a / "c", b / "c").panels
    assert panel.changes["accuracy"].lo is None and panel.changes["accuracy"].estimate is not None


# --- order, sources, refusals -------------------------------------------------------------------------------


def test_questions_of_other_tasks_are_not_taken_for_the_same(a: Path, b: Path) -> None:
    """Two data sets may name their questions alike."""
    for side, answers in ((a, BEFORE), (b, flipped(BEFORE, 0.05))):
        put(side, answers)
        put(side, answers, method="wanda", tasks=["gqa", "textvqa_val", "vqav2_val"], data="e")
    assert len(beside(a, b).rows) == 2


def test_the_largest_difference_is_first_and_marked(
    call: Call, a: Path, b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen.out, "_width", 300)  # so that no line wraps
    for budget, lost in ((0.9, 0.0), (0.75, 0.1), (0.5, 0.03), (0.25, 0.2)):
        put(a, BEFORE, budget=budget)
        put(b, flipped(BEFORE, lost, 0.001), budget=budget)
    assert [row.first.trial.budget for row in beside(a, b).rows] == [0.25, 0.75, 0.5, 0.9]
    lines = [line for line in call("compare", a, b).out.splitlines() if " taylor vision" in line]
    assert [line.split()[2] for line in lines] == ["0.25", "0.75", "0.5", "0.9"]
    assert [" *" in line for line in lines] == [True, True, True, False]


def test_a_side_may_be_a_board_a_file_or_a_revision(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(Path("results"), BEFORE)
    put(Path("results"), flipped(BEFORE, 0.1), budget=0.25)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", *words], check=True)
    put(Path("results"), flipped(BEFORE, 0.1), revision="b")
    (Path("results") / "empty").mkdir()
    for source, matched in (("made", 2), (path, 1), ("results/made", 2), ("HEAD", 2), ("HEAD:results/made", 2)):
        done = call("compare", source, "made", "--json")
        assert done.code == 0 and json.loads(done.out)["matched"] == matched, source
    assert json.loads(call("compare", "HEAD", "made", "--json").out)["trials"][0]["accuracy"]["stands"]
    words = ("neither", "nor a board of results (empty, made)")
    for source, says in {
        "maed": words,
        "HEAD~9": words,
        "empty": ("no records there",),
        "$(touch evil)": words,
    }.items():
        done = call("compare", "made", source)
        assert done.code == 2 and all(word in done.err for word in says) and done.err.count("\n") == 1, source
    assert call("compare", "made", "made", "--results", "nowhere").code == 2
    assert not Path("evil").exists()


def test_unusable_records_are_refused_by_name(call: Call, a: Path, b: Path, tmp_path: Path) -> None:
    path, other = put(a, BEFORE), put(b, flipped(BEFORE, 0.1))
    table, right = other.with_suffix(".parquet"), other.with_suffix(".parquet").read_bytes()
    table.unlink()
    refused(call("compare", a, b), str(table), "samples missing")
    table.write_bytes(path.with_suffix(".parquet").read_bytes())
    refused(call("compare", b, a), str(table), "hash differs")
    table.write_bytes(right)
    put(b, BEFORE[:90])
    refused(call("compare", a, b), "questions are in one set of answers only")
    taken = tmp_path / "taken"
    taken.write_text("a file")
    refused(call("compare", a, a, "--out", taken / "page"), f"--out {taken}/page: not writable")


def test_json_has_no_infinity(call: Call, a: Path, b: Path) -> None:
    """One image a task: nobody knows the spread."""
    put(a, scores(9))
    put(b, 1 - scores(9))

    def never(text: str) -> None:
        raise AssertionError(text)

    found = json.loads(call("compare", a, b, "--json").out, parse_constant=never)["trials"][0]["accuracy"]
    assert (found["lo"], found["hi"], found["stands"]) == (None, None, False)


def test_a_comparison_starts_without_torch(a: Path, b: Path) -> None:
    put(a, BEFORE)
    put(b, flipped(BEFORE, 0.1))
    code = (
        "import sys; from harness import cli\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, "compare", a, b], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 trials matched" in done.stdout, done
