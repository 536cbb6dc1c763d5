"""The page of a board: what it says without a script, and that its script works in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from browser import Browser, Page, executable
from test_report import failed, made

from harness import record, tasks
from harness.report import details, examples, page, report
from harness.report.board import Board
from harness.report.samples import Samples
from harness.tasks import data as sets

# A name that would be an image, end a script, be a template's slot and a shell's command.
HOSTILE = '<b>&lt;</b><img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>{{data}}\' $(id)'
BUDGETS = (0.75, 0.5, 0.3125)
TASK, LIMIT = "mini_gqa", 12


def plan(budget: float) -> dict[str, Any]:
    """A plan that keeps the first heads of the first block, ranks in the second."""
    first = {"heads": list(range(int(8 * budget))), "ffn": list(range(int(96 * budget)))}
    return {"blocks": {"vision.0": first, "vision.1": {"heads": [1, 7], "ffn": {"option": 3, "label": "rank 12/9"}}}}


def answers(right: list[bool]) -> pa.Table:
    source = sets.source(TASK, sets.REFERENCE / TASK, "validation", LIMIT)
    said = ["yes" if own else HOSTILE for own in right]
    ids = {"task": [TASK] * LIMIT, "question_id": source.question_ids, "image_id": source.image_ids}
    return pa.table({**ids, "answer": said, "score": [float(own) for own in right]})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense, three methods (one with a hostile name) in two scopes, two seeds of random, one failure; with samples."""
    folder = tmp_path_factory.mktemp("results") / "made"
    digest = tasks.data_hash([TASK], "validation", LIMIT)[:16]
    about = {"tasks": [TASK], "limit": LIMIT}
    right = [i % 4 > 0 for i in range(LIMIT)]

    def put(item: dict[str, Any], right: list[bool]) -> None:
        item["hashes"] = {"data": digest, "weights": "0" * 16}
        item["plan"] = plan(item["trial"]["budget"]) if item["trial"]["method"] != "none" else {"blocks": {}}
        item["metrics"]["flops"]["params"]["pruned"] = 1_000_000 * item["metrics"]["flops"]["kept"]
        record.write(folder, item, answers(right))

    put(made(**about), right)
    for scope in ("vision", "language"):
        for method in ("infoprune", "random", HOSTILE):
            for budget in BUDGETS:
                for seed in range(2 if method == "random" else 1):
                    item = made(method, scope, budget, seed, **about)
                    put(item, [(own and i % 5 > 0) or i == 0 for i, own in enumerate(right)])
    record.write(folder, failed("taylor", "vision", 0.5, **about))
    return folder.parent


@pytest.fixture(scope="module")
def board(results: Path) -> Board:
    return Board.of("made", record.load(results / "made")[0])


@pytest.fixture(scope="module")
def site(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    report(results, out)
    return out


# --- without a browser --------------------------------------------------------------------------------------


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


def test_the_table_is_there_without_a_script(site: Path, board: Board) -> None:
    tags = Tags((site / "made" / "index.html").read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in tags.found if tag == "a"]
    assert [f"#trial={trial}" for trial in board.frame["trial"]] == [link for link in links if link and "=" in link]
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
        assert len(scripts) == (4 if path.parent.name == "made" else 0) and not any("src" in own for own in scripts)
        addresses = [own[key] or "" for _, own in tags.found for key in ("href", "src") if key in own]
        assert all(re.match(r"#|data:|\.\./index\.html$|pareto\.svg$|made/index\.html$", own) for own in addresses)


def test_the_data_is_what_the_frame_says(site: Path, board: Board) -> None:
    text = (site / "made" / "index.html").read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data = json.loads(found[0])
    rows = board.frame.to_dict("records")
    assert data["rows"]["trial"] == [row["trial"] for row in rows]
    for shown, row in zip(data["rows"]["accuracy"], rows, strict=True):
        assert shown == (pytest.approx(row["accuracy"], rel=1e-5) if row["status"] == "ok" else None)
    assert HOSTILE in data["rows"]["method"] and data["blocks"] == ["vision.0", "vision.1"]
    # One more than the highest unit that any plan keeps.
    assert data["sizes"] == {"vision": [8, 72]}
    own = data["trials"][data["rows"]["method"].index("infoprune")]["plan"]
    assert own == [[[6, 5, "3f"], [72, 71]], [[2, 7, "82"], "rank 12/9"]]


def test_a_page_of_a_thousand_trials_stays_under_10_mb() -> None:
    items = [made("random", "vision", 0.5, seed) | {"plan": plan(0.5)} for seed in range(1000)]
    stages = {name: {b: {"ratio": 1.23456, "lo": 1.1, "hi": 1.3} for b in "18"} for name in ("all", "vision", "decode")}
    for item in items:
        item["metrics"]["latency"]["stages"] = stages
    shown = Board.of("made", items)
    assert len(page.board(shown, details.data(shown, items, examples.Examples())).encode()) < 8_000_000


def test_a_board_without_a_readable_record_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "in" / "made").mkdir(parents=True)
    (tmp_path / "in" / "made" / "x.json").write_text("{", encoding="utf-8")
    report(tmp_path / "in", tmp_path / "out")
    assert "0 trials" in (tmp_path / "out" / "made" / "index.html").read_text(encoding="utf-8")


# --- examples -----------------------------------------------------------------------------------------------


def test_flips_are_counted_and_shown_with_their_images(results: Path) -> None:
    items = record.load(results / "made")[0]
    found = examples.find(Samples(results / "made"), items)
    assert len(found.flips) == len(items) - 2, "all but dense and the failure"
    # Right at first: all but 0, 4, 8. Right after: of those all but 5 and 10, and 0 besides.
    for flips in found.flips.values():
        assert (flips.questions, flips.lost, flips.gained) == (LIMIT, 2, 1)
        assert [lost for _, lost, _, _ in flips.shown] == [True, True, False]
        place, _, before, after = flips.shown[0]
        assert (before, after) == ("yes", HOSTILE)
        rows = sets.source(TASK, sets.REFERENCE / TASK, "validation", LIMIT).read().to_pylist()
        asked = {row["question_id"]: row for row in rows}[found.questions[place]["id"]]
        assert found.questions[place]["text"] == asked["question"]
        assert found.questions[place]["truth"] == [asked["answer"]]
        assert found.images[found.questions[place]["image"]].startswith("data:image/")
    assert {flips.shown[2][0] for flips in found.flips.values()} == {
        place
        for place, question in enumerate(found.questions)
        if question["id"] == answers([True] * LIMIT)["question_id"][0].as_py()
    }


def test_questions_are_named_only_where_the_data_is_another(results: Path) -> None:
    items = record.load(results / "made")[0]
    for item in items:
        item["hashes"]["data"] = "f" * 16
    found = examples.find(Samples(results / "made"), items)
    assert found.questions and not found.images and all(set(own) == {"task", "id"} for own in found.questions)


@pytest.mark.parametrize("how", ["gone", "cut", "other bytes", "no table", "other questions"])
def test_damaged_samples_give_no_flips_and_are_named(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, about = tmp_path / "made", {"tasks": [TASK], "limit": LIMIT}
    record.write(folder, made(**about), answers([True] * LIMIT))
    table = answers([False] * LIMIT)
    if how == "no table":
        table = pa.table({"answer": ["x"], "score": ["y"]})
    if how == "other questions":
        table = table.set_column(1, "question_id", pa.array(["other"] * LIMIT))
    item = made("random", "vision", 0.5, **about)
    path = record.write(folder, item, table).with_suffix(".parquet")
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "other bytes":
        path.write_bytes((folder / f"{made(**about)['id']}.parquet").read_bytes())
    assert not examples.find(Samples(folder), record.load(folder)[0]).flips
    assert f"{item['id']}.parquet" in caplog.text


# --- LaTeX --------------------------------------------------------------------------------------------------


def test_latex_has_a_table_for_every_panel_and_the_reported_figures(site: Path) -> None:
    text = (site / "made" / "board.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == 5 == text.count(r"\end{tabular}")
    assert text.count("mean rank") == 2 and text.count("Each curve as a whole.") == 2
    assert r"method & 0.75 (1.33\ensuremath{\times})" in text and r"\ensuremath{\diamond} infoprune & " in text
    assert "Reported by papers, not measured here." in text and r"3.2\ensuremath{\times}" in text
    for table in text.split(r"\begin{tabular}")[1:]:
        cells = {line.count(" & ") for line in table.splitlines() if line.endswith(r"\\")}
        assert len(cells) == 1 and min(cells) > 1, table


# --- in a browser -------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(executable() is None, reason="no chromium or chrome on the path (or in CHROMIUM)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as own:
        yield own


@pytest.fixture(scope="module")
def shared(browser: Browser, site: Path) -> Page:
    return browser.open(site / "made" / "index.html")


@pytest.fixture
def tab(shared: Page) -> Page:
    """The page as it is when it has just been opened."""
    shared.eval(
        "location.hash = ''; body.append(...lines.map(({ line }) => line));"
        "document.querySelectorAll('[aria-sort]').forEach((head) => head.removeAttribute('aria-sort'))"
    )
    for name in ("axis", "method", "seed"):
        shared.choose(name, "flops_kept" if name == "axis" else "")
    shared.choose("scope", "vision")
    shared.choose("search", "")
    return shared


VISIBLE = "[...document.querySelectorAll('#trials tbody tr')].filter((row) => !row.hidden)"
IDS = f"{VISIBLE}.map((row) => row.querySelector('a')?.textContent).filter(Boolean)"


def ids(board: Board, **wanted: Any) -> list[str]:
    """The trials with these values, dense counting for every scope and seed."""
    return [
        row["trial"]
        for row in board.frame.to_dict("records")
        if all(row[key] == value or (row["method"] == "none" and key != "method") for key, value in wanted.items())
    ]


@needs_browser
def test_filters_and_search(tab: Page, board: Board) -> None:
    first = board.panels[0].groups
    scope = next(iter(first.values()))[0]["scope"]
    assert tab.eval(IDS) == ids(board, scope=scope), "one scope at a time, the first one first"
    tab.choose("scope", "language")
    assert tab.eval(IDS) == ids(board, scope="language")
    tab.choose("seed", "1")
    assert tab.eval(IDS) == ids(board, scope="language", seed=1)
    assert (
        tab.eval("document.getElementById('count').textContent")
        == f"{len(ids(board, scope='language', seed=1))} of {len(board.frame)} trials shown."
    )
    tab.choose("scope", "")
    tab.choose("seed", "")
    assert tab.eval(IDS) == ids(board)
    tab.choose("method", HOSTILE)
    assert tab.eval(IDS) == ids(board, method=HOSTILE)
    tab.choose("method", "")
    tab.choose("search", "OutOfMemory taylor")
    assert tab.eval(IDS) == ids(board, method="taylor")


@needs_browser
def test_sorting(tab: Page, board: Board) -> None:
    tab.choose("scope", "")
    accuracy = {row["trial"]: row["accuracy"] for row in board.frame.to_dict("records")}
    button = "#trials th[data-key=accuracy] button"
    for state, sign in (("descending", -1), ("ascending", 1)):
        tab.click(button)
        shown = tab.eval(IDS)
        figures = [accuracy[trial] for trial in shown]
        assert sorted(shown) == sorted(accuracy) and figures[-1] != figures[-1], "what failed stands last either way"
        assert figures[:-1] == sorted(figures[:-1], key=lambda value: sign * value)
        assert tab.eval("document.querySelector('[data-key=accuracy]').ariaSort") == state
    tab.click("#trials th[data-key=method] button")
    names = tab.eval(f"{VISIBLE}.map((row) => rows[places.get(row.querySelector('a')?.textContent)]?.method ?? null)")
    assert names[:-1] == sorted(names[:-1]) and names[-1] is None, "reported figures have no trial"
    assert tab.eval("document.querySelectorAll('[aria-sort]').length") == 1


@needs_browser
def test_hover_and_click_on_a_point(tab: Page, board: Board) -> None:
    place = tab.eval(
        "(() => { plot.scrollIntoView({block: 'center'});"
        "const at = plot.data.findIndex((trace) => trace.name === 'infoprune');"
        "const point = plot.querySelectorAll('.scatterlayer .trace')[at].querySelector('.points path');"
        "const box = point.getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2, plot.data[at].customdata[0]]; })()"
    )
    tab.move(5, 5)
    tab.move(place[0], place[1])
    tab.wait("document.querySelector('.hoverlayer .hovertext') !== null")
    said = tab.eval("document.querySelector('.hoverlayer .hovertext').textContent")
    row = board.frame.set_index("trial").loc[place[2]]
    interval = f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_lo']:.1f}, {100 * row['accuracy_hi']:.1f}]"
    speedup = f"{row['latency_speedup']:.2f} [{row['speedup_lo']:.2f}, {row['speedup_hi']:.2f}]"
    names = tab.eval("[...document.querySelectorAll('.legendtext')].map((entry) => entry.textContent)")
    assert sorted(names) == sorted(["Pareto front", "dense", "infoprune", "random", f"{HOSTILE[:31]}…"])
    for part in ("infoprune", f"budget {row['budget']:g}", f"accuracy {interval}", f"speedup {speedup}", "plan"):
        assert part in said, part
    assert interval in tab.eval("document.getElementById('picked').textContent")
    assert tab.eval("document.querySelector('#picked a').hash") == f"#trial={place[2]}"
    tab.press(place[0], place[1])
    tab.wait("!document.getElementById('trial').hidden")
    assert tab.eval("location.hash") == f"#trial={place[2]}"


@needs_browser
def test_axes(tab: Page, board: Board) -> None:
    keys = tab.eval("[...document.querySelector('[name=axis]').options].map((option) => option.value)")
    assert keys == ["flops_kept", "total_flops_kept", "latency_speedup", "params_kept", "weights_mb"]
    rows = {row["trial"]: row for row in board.frame.to_dict("records")}
    points = (
        "plot.data.filter((trace) => trace.customdata)"
        ".flatMap((trace) => trace.customdata.map((id, i) => [id, trace.x[i], trace.y[i]]))"
    )
    for key in keys:
        tab.choose("axis", key)
        shown = tab.eval(points)
        assert {trial for trial, _, _ in shown} == {
            trial for trial in ids(board, scope="vision") if rows[trial]["status"] == "ok"
        }
        for trial, x, y in shown:
            assert y == pytest.approx(100 * rows[trial]["accuracy"], rel=1e-4)
            # Four bytes of each of the million parameters that the dense model is given above.
            wanted = 4 * rows[trial]["flops_kept"] if key == "weights_mb" else rows[trial][key]
            assert x == pytest.approx(wanted, rel=1e-4)
        cheaper = tab.eval("plot._fullLayout.xaxis.range")
        assert (cheaper[0] < cheaper[1]) == (key == "latency_speedup"), "cheaper is to the right"
        assert len(tab.eval("plot.layout.shapes.filter((shape) => shape.line.dash === 'dashdot')")) == (
            1 if key in ("flops_kept", "latency_speedup") else 0
        )


@needs_browser
def test_the_part_about_a_trial(tab: Page, board: Board, results: Path) -> None:
    trial = next(
        row["trial"] for row in board.frame.to_dict("records") if row["method"] == HOSTILE and row["budget"] == 0.5
    )
    tab.eval(f"location.hash = 'trial={trial}'")
    tab.wait("!document.getElementById('trial').hidden && document.getElementById('board').hidden")
    assert tab.eval("document.activeElement.tagName") == "H1"
    text = tab.eval("document.getElementById('trial').innerText")
    assert HOSTILE in text and "4 of 8" in text and "rank 12/9" in text and "2 that dense has right were lost" in text
    heads = (
        "[...document.querySelectorAll('.plan tbody tr')]"
        ".map((row) => [...row.querySelectorAll('i')].map((unit) => +(unit.className === 'kept')).join(''))"
    )
    assert tab.eval(heads) == ["11110000", "01000001"]
    assert tab.eval("[...document.images].every((image) => image.src.startsWith('data:image/') && image.alt)")
    tab.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert tab.eval("document.images.length") == 3
    item = record.read(results / "made" / f"{trial}.json")
    assert tab.eval("document.querySelector('.command code').textContent") == details.repeat(item)
    tab.click(".command button")
    tab.wait("document.querySelector('.command button').textContent !== 'Copy the command'")
    assert tab.eval("String(getSelection())").strip() == details.repeat(item).strip()
    tab.eval("location.hash = 'trial=0000000000000000'")
    tab.wait("document.getElementById('trial').hidden && !document.getElementById('board').hidden")


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_no_request_no_complaint_no_foreign_script_and_no_sideways_scrolling(
    width: int, dark: bool, browser: Browser, site: Path, board: Board
) -> None:
    own = browser.open(site / "made" / "index.html", width=width, height=844, dark=dark)
    for target in ("", *(f"trial={trial}" for trial in ids(board)[:3]), f"trial={ids(board, method='taylor')[-1]}"):
        own.eval(f"location.hash = '{target}'")
        own.wait(f"document.getElementById('trial').hidden === {'false' if target else 'true'}")
        assert own.eval("document.documentElement.scrollWidth <= innerWidth"), target
    own.eval("location.hash = ''")
    own.choose("scope", "")
    assert own.eval("window.hacked") is None
    assert own.eval("document.querySelectorAll('img[src=x]').length") == 0
    assert own.complaints() == []
    assert own.requests() == [(site / "made" / "index.html").as_uri()]


@needs_browser
def test_without_javascript_and_the_index(browser: Browser, site: Path, board: Board) -> None:
    own = browser.open(site / "made" / "index.html", script=False)
    root = own.send("DOM.getDocument", depth=0)["root"]["nodeId"]
    form = own.send("DOM.querySelector", nodeId=root, selector="#filters")["nodeId"]
    row = own.send("DOM.querySelector", nodeId=root, selector="#trials tbody tr:nth-last-child(2)")["nodeId"]
    with pytest.raises(AssertionError, match="box model"):
        own.send("DOM.getBoxModel", nodeId=form)
    assert own.send("DOM.getBoxModel", nodeId=row)["model"]["height"] > 10, "the last trial is shown"
    assert own.complaints() == []
    top = browser.open(site / "index.html")
    assert top.eval("document.querySelector('.card a').textContent") == "made"
    assert top.eval("document.querySelector('.card a').href") == (site / "made" / "index.html").as_uri()
    assert top.complaints() == [] and top.requests() == [(site / "index.html").as_uri()]
