"""The script of a board's page in a real browser: filters, sorting, the plot, the part about a trial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.records import record
from harness.records.record import Record
from harness.report import details, report
from harness.report.board import Board
from harness.report.looks import looks
from tests.support.browser import Browser, Page, executable
from tests.support.hostile_board import HOSTILE
from tests.support.records import board_record

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


def ids(hostile_board: Board, **wanted: Any) -> list[str]:
    """The trials with these values, dense counting for every scope and seed."""
    return [
        row["trial"]
        for row in hostile_board.frame.to_dict("records")
        if all(row[key] == value or (row["method"] == "none" and key != "method") for key, value in wanted.items())
    ]


@needs_browser
def test_filters_and_search(tab: Page, hostile_board: Board) -> None:
    first = hostile_board.panels[0].groups
    scope = next(iter(first.values()))[0]["scope"]
    assert tab.eval(IDS) == ids(hostile_board, scope=scope), "one scope at a time, the first one first"
    tab.choose("scope", "language")
    assert tab.eval(IDS) == ids(hostile_board, scope="language")
    tab.choose("seed", "1")
    assert tab.eval(IDS) == ids(hostile_board, scope="language", seed=1)
    assert (
        tab.eval("document.getElementById('count').textContent")
        == f"{len(ids(hostile_board, scope='language', seed=1))} of {len(hostile_board.frame)} trials shown."
    )
    tab.choose("scope", "")
    tab.choose("seed", "")
    assert tab.eval(IDS) == ids(hostile_board)
    tab.choose("method", HOSTILE)
    assert tab.eval(IDS) == ids(hostile_board, method=HOSTILE)
    tab.choose("method", "")
    tab.choose("search", "OutOfMemory taylor")
    assert tab.eval(IDS) == ids(hostile_board, method="taylor")


@needs_browser
def test_sorting(tab: Page, hostile_board: Board) -> None:
    tab.choose("scope", "")
    accuracy = {row["trial"]: row["accuracy"] for row in hostile_board.frame.to_dict("records")}
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


def place_of(tab: Page, mark: str) -> list[float]:
    """The middle of a mark of the chart, in the window; `mark` is JavaScript."""
    return tab.eval(
        f"(() => {{ plot.scrollIntoView({{block: 'center'}}); const {{left, top}} = plot.getBoundingClientRect();"
        f"const [x, y] = chart.where({mark}); return [left + x, top + y]; }})()"
    )


@needs_browser
def test_hover_and_click_on_a_point(tab: Page, hostile_board: Board) -> None:
    mark = "chart.scene.marks.find((mark) => mark.title === 'infoprune')"
    trial = tab.eval(f"{mark}.row.trial")
    x, y = place_of(tab, mark)
    assert tab.eval(f"document.elementFromPoint({x}, {y}).closest('#plot') === plot")
    tab.move(5, 5)
    tab.move(x, y)
    tab.wait("!document.getElementById('tip').hidden")
    said = tab.eval("document.getElementById('tip').innerText")
    row = hostile_board.frame.set_index("trial").loc[trial]
    interval = f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_lo']:.1f}, {100 * row['accuracy_hi']:.1f}]"
    speedup = f"{row['latency_speedup']:.2f} [{row['speedup_lo']:.2f}, {row['speedup_hi']:.2f}]"
    names = tab.eval("[...document.querySelectorAll('#legend button')].map((entry) => entry.textContent)")
    assert names[0] == "infoprune" and sorted(names[1:]) == sorted(
        ["random", looks(((HOSTILE, HOSTILE, False),))[HOSTILE].label]
    )
    for part in ("infoprune", f"budget {row['budget']:g}", f"accuracy {interval}", f"speedup {speedup}", "plan"):
        assert part in said, part
    assert interval in tab.eval("document.getElementById('picked').textContent")
    assert tab.eval("document.querySelector('#picked a').hash") == f"#trial={trial}"
    tab.move(5, 5)
    tab.wait("document.getElementById('tip').hidden")
    tab.press(x, y)
    tab.wait("!document.getElementById('trial').hidden")
    assert tab.eval("location.hash") == f"#trial={trial}"


@needs_browser
def test_zoom_move_and_back(tab: Page) -> None:
    """A drag zooms to what it spans and opens no trial, one with shift moves it, and a button shows all again."""
    tab.eval("plot.scrollIntoView({block: 'center'})")
    left, top = tab.eval("[plot.getBoundingClientRect().x, plot.getBoundingClientRect().y]")
    whole = tab.eval("chart.frame")

    def figures(x: float, y: float) -> tuple[float, float]:
        across, below = (x - left - whole["left"]) / whole["width"], (y - top - whole["top"]) / whole["height"]
        (x0, x1), (y0, y1) = whole["x"], whole["y"]
        return x0 + across * (x1 - x0), y1 - below * (y1 - y0)

    start, end = (left + 200, top + 80), (left + 500, top + 240)
    tab.drag(*start, *end)
    tab.wait(f"chart.frame.y[1] !== {whole['y'][1]}")
    zoomed = tab.eval("chart.frame")
    (x0, y1), (x1, y0) = figures(*start), figures(*end)
    assert zoomed["x"] == pytest.approx([x0, x1]) and zoomed["y"] == pytest.approx([y0, y1])
    assert tab.eval("document.getElementById('trial').hidden && !document.querySelector('.tools button').hidden")
    tab.eval("document.querySelector('#legend button').click()")
    assert tab.eval("chart.frame.x") == zoomed["x"], "a name that is pressed does not change the view"
    tab.eval("document.querySelector('#legend button').click()")
    tab.drag(*start, *end, shift=True)
    tab.wait(f"chart.frame.y[1] !== {zoomed['y'][1]}")
    moved = tab.eval("chart.frame")
    for axis in "xy":
        assert moved[axis][1] - moved[axis][0] == pytest.approx(zoomed[axis][1] - zoomed[axis][0])
    tab.drag(left + 200, top + 80, left + 500, top + 84)
    tab.wait(f"chart.frame.x[1] !== {moved['x'][1]}")
    assert tab.eval("chart.frame.y") == moved["y"], "a flat drag zooms along one axis"
    tab.click(".tools button")
    assert tab.eval("chart.frame.x") == whole["x"] and tab.eval("document.querySelector('.tools button').hidden")
    tab.drag(*start, *end)
    tab.choose("scope", "language")
    assert tab.eval("document.querySelector('.tools button').hidden"), "other trials are shown whole"


@needs_browser
def test_the_chart_can_be_saved(tab: Page) -> None:
    tab.eval(
        "window.saved = null;"
        "HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href]; };"
        "[...document.querySelectorAll('.tools button')].at(-1).click()"
    )
    tab.wait("window.saved !== null")
    name, address = tab.eval("window.saved")
    assert name == "made.png" and address.startswith("data:image/png;base64,")
    size = tab.eval(
        "new Promise((done) => { const image = new Image(); image.onload = () => done([image.width, image.height]);"
        "image.src = window.saved[1]; })"
    )
    assert size == tab.eval("[2 * plot.clientWidth, 2 * plot.clientHeight]") and tab.complaints() == []


@needs_browser
@pytest.mark.parametrize(
    ("ends", "most", "texts"),
    [
        ([0, 1], 5, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([1, 0.1], 10, [f"0.{i}" for i in range(1, 10)] + ["1.0"]),
        ([20, 101], 5, ["20", "40", "60", "80", "100"]),
        ([0.98, 1.013], 4, ["0.98", "0.99", "1.00", "1.01"]),
        ([-3000, 9000], 4, ["0", "5000"]),
    ],
)
def test_ticks_are_round_figures(tab: Page, ends: list[float], most: int, texts: list[str]) -> None:
    assert tab.eval(f"ticks({ends}, {most}).map(([, text]) => text)") == texts


@needs_browser
def test_axes(tab: Page, hostile_board: Board) -> None:
    keys = tab.eval("[...document.querySelector('[name=axis]').options].map((option) => option.value)")
    assert keys == ["flops_kept", "params_kept", "latency_speedup", "total_flops_kept", "weights_mb"]
    rows = {row["trial"]: row for row in hostile_board.frame.to_dict("records")}
    points = "chart.scene.marks.map((mark) => [mark.row.trial, mark.x, mark.y])"
    for key in keys:
        tab.choose("axis", key)
        shown = tab.eval(points)
        assert {trial for trial, _, _ in shown} == {
            trial for trial in ids(hostile_board, scope="vision") if rows[trial]["status"] == "ok"
        }
        for trial, x, y in shown:
            assert y == pytest.approx(100 * rows[trial]["accuracy"], rel=1e-4)
            # Four bytes of each of the million parameters that the dense model of the board is given.
            wanted = 4 * rows[trial]["flops_kept"] if key == "weights_mb" else rows[trial][key]
            assert x == pytest.approx(wanted, rel=1e-4)
        cheaper = tab.eval("chart.frame.x")
        assert (cheaper[0] < cheaper[1]) == (key == "latency_speedup"), "cheaper is to the right"
        assert tab.eval("plot.querySelectorAll('.upright').length") == (key in ("flops_kept", "latency_speedup"))


@needs_browser
def test_the_part_about_a_trial(tab: Page, hostile_board: Board, hostile_results: Path) -> None:
    trial = next(
        row["trial"]
        for row in hostile_board.frame.to_dict("records")
        if row["method"] == HOSTILE and row["budget"] == 0.5
    )
    tab.eval(f"location.hash = 'trial={trial}'")
    tab.wait("!document.getElementById('trial').hidden && document.getElementById('board').hidden")
    assert tab.eval("document.activeElement.tagName") == "H1"
    text = tab.eval("document.getElementById('trial').innerText")
    assert (
        HOSTILE in text
        and "4 of 8" in text
        and "rank 12/9" in text
        and f"50 % of the visual tokens go on from layer 2 of the language model on, chosen by {HOSTILE}." in text
        and "2 that the dense model answers right were lost" in text
    )
    heads = (
        "[...document.querySelectorAll('.plan tbody tr')]"
        ".map((row) => [...row.querySelectorAll('i')].map((unit) => +(unit.className === 'kept')).join(''))"
    )
    assert tab.eval(heads) == ["", "11110000", "01000001"]
    removed = "[...document.querySelector('.plan tbody tr').cells].map((cell) => cell.textContent)"
    assert tab.eval(removed) == ["language.0", "", "removed", "removed"], "a layer that goes as a whole"
    assert tab.eval("[...document.images].every((image) => image.src.startsWith('data:image/') && image.alt)")
    tab.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert tab.eval("document.images.length") == 3
    item = record.read(hostile_results / "made" / f"{trial}.json")
    assert tab.eval("document.querySelector('.command code').textContent") == details.repeat(item)
    tab.click(".command button")
    tab.wait("document.querySelector('.command button').textContent !== 'Copy the command'")
    assert tab.eval("String(getSelection())").strip() == details.repeat(item).strip()
    tab.eval("location.hash = 'trial=0000000000000000'")
    tab.wait("document.getElementById('trial').hidden && !document.getElementById('board').hidden")


def figures(kept: float, accuracy: float) -> dict[str, Any]:
    return {"flops": {"kept": kept}, "accuracy": {"mean": accuracy}}


def page_of(browser: Browser, folder: Path, items: list[Record], **how: Any) -> Page:
    for item in items:
        record.write(folder / "in" / "made", item)
    report(folder / "in", folder / "out")
    return browser.open(folder / "out" / "made" / "index.html", **how)


FRONTS = "chart.scene.lines.filter((line) => line.steps).map(({ points }) => points.map(([, y]) => y))"


@needs_browser
def test_a_front_has_one_regime(browser: Browser, tmp_path: Path) -> None:
    """The board opens on the regime of the method under study. With every regime, each has a front of its own."""
    refit: dict[str, Any] = {"recovery": {"method": "refit"}}
    items = [board_record(metrics=figures(1.0, 0.95))]
    for budget, accuracy in ((0.5, 0.9), (0.25, 0.8)):
        items.append(board_record("taylor", "vision", budget, metrics=figures(budget, accuracy - 0.3)))
        items.append(board_record("infoprune", "vision", budget, metrics=figures(budget, accuracy), **refit))
    own = page_of(browser, tmp_path, items)
    assert own.eval("chosen.regime") == "refit" and own.eval(FRONTS) == [pytest.approx([80, 90, 95])]
    own.choose("regime", "none")
    assert own.eval(FRONTS) == [pytest.approx([50, 60, 95])]
    own.choose("regime", "")
    assert len(own.eval(FRONTS)) == 2
    said = "[...document.querySelectorAll('#legend div')].map((entry) => entry.textContent)"
    assert own.eval(said) == ["Pareto front · none", "Pareto front · refit"] and own.complaints() == []


@needs_browser
def test_a_board_without_accuracy_opens_on_its_speed(browser: Browser, tmp_path: Path) -> None:
    items = [board_record("random", scope, budget) for scope in ("vision", "all") for budget in (0.5, 0.25)]
    items = [replace(item, metrics={key: item.metrics[key] for key in ("flops", "latency")}) for item in items]
    own = page_of(browser, tmp_path, items)
    heights = own.eval("chart.scene.marks.map((mark) => mark.y)")
    assert heights == [pytest.approx(item.metrics["latency"]["speedup"], rel=1e-4) for item in items[:2]]
    assert own.eval("document.querySelector('#front h2').textContent") == "Speed against cost"
    assert "Accuracy at equal" not in own.eval("document.body.innerText") and own.complaints() == []


@needs_browser
@pytest.mark.parametrize("width", [390, 1400])
def test_the_plot_has_room_beside_many_methods(width: int, browser: Browser, tmp_path: Path) -> None:
    items = [board_record()]
    for method in [f"{name}{i}" for name in ("a-method-with-a-name", "b") for i in range(12)]:
        items += [board_record(method, "vision", budget) for budget in (0.75, 0.5)]
    own = page_of(browser, tmp_path, items, width=width, height=844)
    tall, title, legend, table, scroll = own.eval(
        "[chart.frame.height, plot.querySelector('.title').getBoundingClientRect().bottom,"
        "document.getElementById('legend').getBoundingClientRect().top,"
        "document.getElementById('trials').scrollWidth, document.getElementById('trials').parentElement.clientWidth]"
    )
    assert tall > 240 and title <= legend
    assert width > 390 or table > scroll, "the table of trials is wider than a phone"
    assert "gradient" in own.eval("getComputedStyle(document.querySelector('.scroll')).backgroundImage")
    pressed = "document.querySelectorAll('#legend [aria-pressed=true]').length"
    before = own.eval(pressed)
    assert own.eval("document.querySelectorAll('#legend button').length") == 24 and 0 < before < 12
    own.click("#legend [aria-pressed=false]")
    assert own.eval(pressed) == before + 1 and own.complaints() == []


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_no_request_no_complaint_no_foreign_script_and_no_sideways_scrolling(
    width: int, dark: bool, browser: Browser, site: Path, hostile_board: Board
) -> None:
    own = browser.open(site / "made" / "index.html", width=width, height=844, dark=dark)
    for target in (
        "",
        *(f"trial={trial}" for trial in ids(hostile_board)[:3]),
        f"trial={ids(hostile_board, method='taylor')[-1]}",
    ):
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
def test_without_javascript_and_the_index(browser: Browser, site: Path, hostile_board: Board) -> None:
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
