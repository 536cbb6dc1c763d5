"""The page of a board and its LaTeX, without a browser: what they say without a script."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.report import details, examples, page, report
from harness.report.board import Board
from tests.support.hostile_board import HOSTILE, plan_of
from tests.support.records import board_record


class Tags(HTMLParser):
    """The elements of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] not in ("script", "style"):
            self.texts.append(data)


def test_the_table_is_there_without_a_script(site: Path, hostile_board: Board) -> None:
    tags = Tags((site / "made" / "index.html").read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in tags.found if tag == "a"]
    assert [f"#trial={trial}" for trial in hostile_board.frame["trial"]] == [
        link for link in links if link and "=" in link
    ]
    text = " ".join(tags.texts)
    assert "failed: OutOfMemory" in text and "reported, not measured" in text and "InfoPrune (reconstructed)" in text
    assert text.count("reported, not measured") == 1, "one marked row, of the method that is on the board"


def test_every_text_of_a_record_is_text(site: Path) -> None:
    for path in (site / "made" / "index.html", site / "index.html"):
        tags = Tags(path.read_text(encoding="utf-8"))
        assert not [
            tag for tag, attributes in tags.found if tag == "img" or any(key.startswith("on") for key in attributes)
        ]
        scripts = [attributes for tag, attributes in tags.found if tag == "script"]
        assert len(scripts) == (6 if path.parent.name == "made" else 0) and not any("src" in own for own in scripts)
        addresses = [own[key] or "" for _, own in tags.found for key in ("href", "src") if key in own]
        assert all(re.match(r"#|data:|\.\./index\.html$|pareto\.svg$|made/index\.html$", own) for own in addresses)


def test_the_data_is_what_the_frame_says(site: Path, hostile_board: Board) -> None:
    text = (site / "made" / "index.html").read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data = json.loads(found[0])
    rows = hostile_board.frame.to_dict("records")
    assert data["rows"]["trial"] == [row["trial"] for row in rows]
    for shown, row in zip(data["rows"]["accuracy"], rows, strict=True):
        assert shown == (pytest.approx(row["accuracy"], rel=1e-5) if row["status"] == "ok" else None)
    assert HOSTILE in data["rows"]["method"]
    (text,) = re.findall(r'<script type="application/gzip" id="details">(.*?)</script>', text)
    unpacked = json.loads(gzip.decompress(base64.b64decode(text)))
    assert unpacked["blocks"] == ["language.0", "vision.0", "vision.1"]
    # One more than the highest unit that any plan keeps.
    assert unpacked["sizes"] == {"vision": [8, 72], "language": [0, 0]}
    own = unpacked["trials"][data["rows"]["method"].index("infoprune")]["plan"]
    assert own == [["removed", "removed"], [[6, 5, "3f"], [72, 71]], [[2, 7, "82"], "rank 12/9"]]


def test_a_page_of_a_thousand_trials_stays_under_3_mb() -> None:
    """With as many pictures as a page may hold, and of photos, which pack worse than those of the sets here."""
    items = [replace(board_record("random", "vision", 0.5, seed), plan=plan_of(0.5)) for seed in range(1000)]
    stages = {name: {b: {"ratio": 1.23456, "lo": 1.1, "hi": 1.3} for b in "18"} for name in ("all", "vision", "decode")}
    items = [
        replace(item, metrics={**item.metrics, "latency": {**item.metrics["latency"], "stages": stages}})
        for item in items
    ]
    shown, parts, noise = Board.of("made", items), details.Parts(), random.Random(0)
    for item in items:
        parts.keep(item.to_json())
    found = examples.Examples(images=[base64.b64encode(noise.randbytes(6 << 10)).decode() for _ in range(183)])
    assert sum(map(len, found.images)) > 0.99 * examples.IMAGES
    trials = details.trials(shown, items, parts, found)
    assert len(page.board(shown, details.data(shown, items), trials).encode()) < 3_000_000


def test_a_board_without_a_readable_record_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "in" / "made").mkdir(parents=True)
    (tmp_path / "in" / "made" / "x.json").write_text("{", encoding="utf-8")
    report(tmp_path / "in", tmp_path / "out")
    assert "0 trials" in (tmp_path / "out" / "made" / "index.html").read_text(encoding="utf-8")


def test_latex_has_a_table_for_every_panel_and_the_reported_figures(site: Path) -> None:
    text = (site / "made" / "board.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == 5 == text.count(r"\end{tabular}")
    assert text.count("mean rank") == 2 and text.count("Each curve as a whole.") == 2
    assert r"method & 0.75 (1.33\ensuremath{\times})" in text and r"\ensuremath{\diamond} infoprune & " in text
    assert "Reported by papers, not measured here." in text and r"3.2\ensuremath{\times}" in text
    for table in text.split(r"\begin{tabular}")[1:]:
        cells = {line.count(" & ") for line in table.splitlines() if line.endswith(r"\\")}
        assert len(cells) == 1 and min(cells) > 1, table
