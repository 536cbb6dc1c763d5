"""The report must say what the records say: one row per trial, failures as failures, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.records import record
from harness.records.record import Code, Record
from harness.report import FILES, INDEX, report
from harness.report.board import Board
from harness.report.frame import board_frame, declared
from harness.report.tables import escape
from harness.types import InputError
from tests.support.records import LOSSES, TASKS, board_record, failed_record

BUDGETS = (0.9, 0.75, 0.5, 0.3125, 0.2, 0.1)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Dense, 5 methods x 6 budgets x 3 scopes, 5 seeds for random; one of them failed."""
    made_records = [board_record()]
    for scope in ("vision", "language", "all"):
        for method in LOSSES:
            for budget in BUDGETS:
                for seed in range(5 if method == "random" else 1):
                    make = failed_record if (scope, method, budget) == ("all", "taylor", 0.1) else board_record
                    made_records.append(make(method, scope, budget, seed))
    return made_records


@pytest.fixture(scope="module")
def results(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for item in records:
        record.write(folder / "made", item)
    return folder


def measured(record: Record, share: float) -> Record:
    """The record, had it asked for memory and roofline as well, on a GPU."""

    def sizes(share: float) -> dict[str, Any]:
        return {"weight_bytes": 2e9 * share, "kv_bytes": 3e7 * share, "peak_bytes": {"vision": 4e9 * share, "all": 1.0}}

    def stages(share: float) -> dict[str, Any]:
        own = {"flops": 1.0, "bytes": 1.0, "intensity": 80 * share, "matmul_share": share / 2, "copy_share": 0.25}
        return {"vision": own, "all": own | {"intensity": 7.0}}

    kept = {"weight_bytes_kept": share, "kv_bytes_kept": share, "joules_per_question_kept": share}
    pruned = sizes(share) | {"joules_per_question": 5.5}
    metrics = {
        "memory": {"dense": sizes(1), "pruned": pruned, "batch": 8, **kept},
        "roofline": {
            "balance": 150.0,
            "batches": {
                batch: {"dense": stages(1), "pruned": stages(share / int(batch))} for batch in ("10", "1", "8")
            },
        },
    }
    return replace(record, metrics={**record.metrics, **metrics})


RESOURCES = [name for name, (metric, _) in declared().items() if metric in ("memory", "roofline")]


def test_memory_and_roofline_have_columns_where_a_board_measured_them(tmp_path: Path) -> None:
    without = [board_record(), board_record("random", "vision", 0.5), failed_record("taylor", "vision", 0.5)]
    assert not set(RESOURCES) & set(board_frame(without).columns)
    for item in (*without[:1], measured(without[1], 0.5), *without[2:]):
        record.write(tmp_path / "results" / "made", item)
    report(tmp_path / "results", tmp_path / "out")
    rows = {row["method"]: row for row in json.loads((tmp_path / "out/made/board.json").read_text())["trials"]}
    assert {key: rows["random"][key] for key in RESOURCES} == {
        "weight_bytes": 1e9, "weight_bytes_kept": 0.5, "kv_bytes": 1.5e7, "kv_bytes_kept": 0.5,
        "peak_bytes": 2e9, "peak_bytes_kept": 0.5, "joules_per_question": 5.5, "joules_per_question_kept": 0.5,
        "intensity": 4.0, "balance": 150.0, "matmul_share": 0.025, "copy_share": 0.25,
    }  # fmt: skip
    assert {rows[method][key] for method in ("none", "taylor") for key in RESOURCES} == {None}
    csv = pd.read_csv(tmp_path / "out/made/board.csv").set_index("method")
    assert csv.loc["random", "peak_bytes"] == 2e9 and csv.loc["random", "intensity"] == 4
    text, page = ((tmp_path / "out/made" / name).read_text() for name in ("README.md", "index.html"))
    for head, figure in (
        ("weights MB", "1,000.0"), ("KV cache MB", "15.000"), ("peak MB", "2,000.0"), ("J a question", "5.5"),
        ("FLOPs a byte", "4"), ("balance", "150"), ("of matrix rate", "0.025"), ("of copy rate", "0.250"),
    ):  # fmt: skip
        assert f" {head} |" in text and f" {figure} |" in text
        assert f">{head}<" in page and f">{figure}<" in page
    legends = [legend for key in RESOURCES if (legend := declared()[key][1].legend)]
    assert len(legends) == 3 and all(legend in text for legend in legends)


def test_what_is_not_as_the_metrics_write_it_is_no_figure() -> None:
    for odd in (
        None,
        [],
        "x",
        {"pruned": [1]},
        {"pruned": {"weight_bytes": True, "peak_bytes": 3}},
        {"batches": {"x": 1}},
        {"weight_bytes_kept": "half", "balance": [1]},
        {"weight_bytes_kept": 10**400, "balance": -(10**400)},
        {"dense": {"peak_bytes": {"vision": 1}}, "pruned": {"peak_bytes": {"vision": True}}},
    ):
        item = board_record("random", "vision", 0.5)
        metrics: dict[str, Any] = {**item.metrics, "memory": odd, "roofline": odd}
        assert not set(RESOURCES) & set(board_frame([replace(item, metrics=metrics)]).columns)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cells(line: str) -> list[str]:
    """The cells of a Markdown table's line; an escaped bar does not end a cell."""
    return [cell.strip() for cell in line.replace("\\|", "\0").strip().strip("|").split("|")]


# --- the files ----------------------------------------------------------------------------------------------


def test_the_same_bytes_each_time_and_in_any_process(results: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    files = report(results, tmp_path / "a")
    assert time.perf_counter() - started < 20
    written = [path.relative_to(tmp_path / "a").as_posix() for path in files]
    assert written == [*(f"made/{name}" for name in FILES), INDEX]
    first = digests(tmp_path / "a")
    assert set(first) == {INDEX, *(f"made/{name}" for name in FILES)}, "nothing else is left behind"
    report(results, tmp_path / "a")
    assert digests(tmp_path / "a") == first
    script = "import sys; from pathlib import Path; from harness.report import report; report(*map(Path, sys.argv[1:]))"
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(results), str(tmp_path / "b")],
        env={**os.environ, "PYTHONHASHSEED": "7", "MPLBACKEND": "svg", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        check=True,
    )
    assert digests(tmp_path / "b") == first


def test_no_path_of_this_machine_is_in_a_report(results: Path, tmp_path: Path) -> None:
    for path in report(results, tmp_path):
        assert str(results).encode() not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()


def test_csv_and_json_have_one_row_per_trial(results: Path, records: list[Record], tmp_path: Path) -> None:
    report(results, tmp_path)
    table = pd.read_csv(tmp_path / "made" / "board.csv", keep_default_na=False)
    assert sorted(table["trial"]) == sorted(item.id for item in records)
    required = (
        "board model method variant role regime units scope budget seed flops_kept flops_reduction params_kept "
        "latency_speedup speedup_lo speedup_hi accuracy accuracy_lo accuracy_hi total_flops_kept ranking_s "
        "blank_accuracy trial status"
    )
    assert set(required.split()) | set(TASKS) <= set(table.columns)
    text = (tmp_path / "made" / "board.json").read_text(encoding="utf-8")
    data = json.loads(text)
    rows = (json.dumps(row, separators=(",", ":")) for row in data["trials"])
    lines = ",\n  ".join(rows)  # a line a trial, so that a diff shows which changed
    head = json.dumps(data | {"trials": []}, indent=1)
    assert text == head.replace('"trials": []', f'"trials": [\n  {lines}\n ]') + "\n"
    assert [row["trial"] for row in data["trials"]] == list(table["trial"])
    by_id = {item.id: item for item in records}
    for row, shown in zip(data["trials"], table.to_dict("records"), strict=True):
        item = by_id[row["trial"]]
        if item.status == "ok":
            assert row["accuracy"] == pytest.approx(item.metrics["accuracy"]["mean"], rel=1e-5)
            assert float(shown["latency_speedup"]) == row["latency_speedup"]
        else:
            assert row["accuracy"] is None and row["flops_kept"] is None and shown["accuracy"] == ""
            assert row["status"] == shown["status"] == "failed: OutOfMemory: no room for | this"


def test_the_order_of_records_does_not_matter(records: list[Record]) -> None:
    shuffled = random.Random(0).sample(records, len(records))
    pd.testing.assert_frame_equal(board_frame(records), board_frame(shuffled))


def test_boards_are_apart_and_other_files_stay(results: Path, tmp_path: Path) -> None:
    record.write(tmp_path / "in" / "one", board_record())
    record.write(tmp_path / "in" / "two", board_record("random", budget=0.5))
    (tmp_path / "out" / "one").mkdir(parents=True)
    (tmp_path / "out" / "one" / "notes.md").write_text("kept", encoding="utf-8")
    report(tmp_path / "in", tmp_path / "out")
    made_files = {f"{board}/{name}" for board in ("one", "two") for name in FILES}
    assert set(digests(tmp_path / "out")) == made_files | {INDEX, "one/notes.md"}


def test_an_unreadable_record_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record.write(tmp_path / "in" / "made", board_record())
    (tmp_path / "in" / "made" / "broken.json").write_text("{", encoding="utf-8")
    report(tmp_path / "in", tmp_path / "out")
    assert "broken.json: not a record" in caplog.text
    page = (tmp_path / "out" / "made" / "README.md").read_text(encoding="utf-8")
    assert "1 file beside them could not be read" in page


def test_nothing_to_report_and_nowhere_to_write_are_bad_input(results: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of the records"):
        report(results, results)
    with pytest.raises(InputError, match="no board there"):
        report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written: File exists"):
        report(results, tmp_path / "file")


def test_a_file_that_cannot_be_read_is_blamed_itself(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.report.details.data", lambda *_: (tmp_path / "missing").read_text())
    with pytest.raises(InputError, match=r"out: cannot be made: .*/missing: No such file or directory"):
        report(results, tmp_path / "out")
    monkeypatch.setattr("harness.report.details.data", lambda *_: (tmp_path / "out" / "a" / "b").write_text(""))
    with pytest.raises(InputError, match="out: cannot be written: No such file or directory"):
        report(results, tmp_path / "out")


def test_a_board_of_failures_alone_is_reported(tmp_path: Path) -> None:
    record.write(tmp_path / "in" / "made", failed_record())
    record.write(tmp_path / "in" / "made", failed_record("random", budget=0.5))
    report(tmp_path / "in", tmp_path / "out")
    page = (tmp_path / "out" / "made" / "README.md").read_text(encoding="utf-8")
    assert "2 trials, 2 failed" in page and "Dense: not measured" in page


def test_neither_report_nor_record_needs_torch() -> None:
    script = "import harness.report, harness.records.record, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


# --- what the page says -------------------------------------------------------------------------------------


def test_what_a_budget_is_a_share_of_is_said(tmp_path: Path) -> None:
    for found in [board_record(), board_record("random", "vision", 0.5, currency="params")]:
        record.write(tmp_path / "results" / "made", found)
    report(tmp_path / "results", tmp_path)
    for name in ("README.md", "index.html"):
        text = (tmp_path / "made" / name).read_text(encoding="utf-8")
        assert "Accuracy at equal parameters" in text and "share of the scope's parameters" in text


@pytest.mark.parametrize(("speedup", "busy"), [(1.0, False), (1.04, False), (0.86, True), (1.43, True)])
def test_a_busy_machine_is_named_by_the_dense_models_own_speedup(speedup: float, busy: bool) -> None:
    dense = board_record(metrics={"latency": {"speedup": speedup}})
    notes = Board.of("made", [dense, board_record("taylor", "vision", 0.5)]).notes
    assert ("The machine was busy" in notes) == busy and (f"measured {speedup:.2f} times" in notes) == busy


def test_a_reconstruction_is_named_one(results: Path, tmp_path: Path) -> None:
    report(results, tmp_path)
    page = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert "InfoPrune (reconstructed)" in page and "not its authors' work" in page
    assert "163 trials, 1 failed" in page and "Example CPU" in page
    assert "infoprune sweep made.yaml  # the file of the board" in page
    assert "mini_gqa (600 questions, 300 images)" in page


HOSTILE = "a|b</td><script>alert(1)</script> `x` **y** $z$ [l](http://h)\n# \x1b[31m 日本 __m__ " + "w" * 200


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "made"
    for item in (
        board_record(title=HOSTILE, model=HOSTILE),
        board_record(HOSTILE, "vision", 0.5, title=HOSTILE, variant=HOSTILE, model=HOSTILE, tasks=[HOSTILE]),
        replace(board_record(HOSTILE, "vision", 0.25), env={"cpu": HOSTILE}, code=Code(HOSTILE, HOSTILE)),
        failed_record("=cmd()", "vision", 0.5, regime=HOSTILE),
    ):
        record.write(folder, item)
    report(tmp_path / "in", tmp_path / "out")
    page = (tmp_path / "out" / "made" / "README.md").read_text(encoding="utf-8")
    assert "<" not in page and "\x1b" not in page and "\n# " not in page[1:]
    width = 0
    for line in page.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        assert width in (0, len(cells(line))), "every row of a table has the cells of its head"
        width = len(cells(line))
    assert len((tmp_path / "out" / "made" / "board.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_escape_leaves_plain_names_alone_and_disarms_the_rest() -> None:
    assert escape("mini_vqav2 l1-norm (x2), 3.2") == "mini_vqav2 l1-norm (x2), 3.2"
    assert escape("a|b\n<i>&_c_*`[") == r"a\|b &lt;i&gt;&amp;\_c\_\*\`\["


def test_a_board_without_accuracy_shows_how_fast_it_is(tmp_path: Path) -> None:
    drawn = []
    for factor in (1.0, 2.0):
        results, out = tmp_path / f"results{factor}", tmp_path / f"out{factor}"
        for trial in [board_record(), *(board_record("random", "vision", budget) for budget in BUDGETS)]:
            latency = trial.metrics["latency"]
            metrics = {
                "flops": trial.metrics["flops"],
                "latency": {**latency, "speedup": latency["speedup"] * factor},
            }
            record.write(results / "made", replace(trial, metrics=metrics))
        report(results, out)
        text = (out / "made" / "README.md").read_text()
        assert "## Speed at equal FLOPs" in text and "Accuracy at equal FLOPs" not in text
        drawn.append((out / "made" / "pareto.svg").read_bytes())
    assert drawn[0] != drawn[1]
