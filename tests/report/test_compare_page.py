"""The page and the Markdown of a comparison: whole, sorted, escaped, the same each time, and with room on a phone."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from harness.report import compare as report
from harness.verdicts.compare import Comparison, compare
from tests.support.browser import Browser, executable
from tests.support.hostile_board import HOSTILE
from tests.support.stored import flipped, put, scores

BEFORE = scores(300)
BUDGETS = (0.75, 0.5, 0.25)
needs_browser = pytest.mark.skipif(executable() is None, reason="no chromium or chrome on the path (or in CHROMIUM)")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two scopes, two seeds, a dense model that differs, hostile names, and trials of one side only."""
    a, b = (tmp_path_factory.mktemp("sides") / name for name in ("a", "b"))
    env = {"cpu": HOSTILE, "threads": 2}
    put(a, BEFORE, method="none", scope="all", budget=1.0)
    put(b, flipped(BEFORE, 0.1), method="none", scope="all", budget=1.0, env=env)
    for scope in ("vision", "language"):
        for place, (method, budget) in enumerate((m, at) for m in ("taylor", "mine", HOSTILE) for at in BUDGETS):
            for seed in (0, 1) if method == "taylor" else (0,):
                put(a, BEFORE, method=method, budget=budget, scope=scope, seed=seed)
                after = flipped(BEFORE, 0.02 * place, 0.05, seed=seed)
                put(b, after, method=method, budget=budget, scope=scope, seed=seed, env=env, speedup=(1.6, 1.4, 1.8))
    put(a, BEFORE, method=f"only {HOSTILE}")
    put(b, BEFORE, method="broken")
    put(a, None, method="broken", error=HOSTILE)
    return compare(str(a), str(b))


def test_the_page_has_everything_and_no_script(compared: Comparison) -> None:
    text = report.page(compared)
    assert len(compared.rows) == 25 and text.count("<circle") == 2 * 24, "dense has no plot of its own"
    assert text.count('class="forest"') == 4 and len(re.findall(r"<th scope=row>◆ mine", text)) == 4
    assert text.count("class=dense") == 2 * 9, "where the dense model differs, each cell of accuracy says how much"
    tables = re.findall(r'<table class="figures">.*?</table>', text)
    assert [table.count("<tr>") - 1 for table in tables] == [2, report.SHOWN, 25 - report.SHOWN]
    assert "1 only in A" in text and "failed in A: MemoryError" in text and "<script" not in text
    marked = sum(row.changes[metric].stands for row in compared.rows for metric in ("accuracy", "speedup"))
    means = sum(change.stands for panel in compared.panels for change in panel.changes.values())
    assert text.count(" *</strong>") == marked + means > 0


def test_bars_lie_where_their_figures_say(compared: Comparison) -> None:
    """The largest end of an interval is within the axis, and zero is in the middle."""
    text = report.page(compared)
    for kind in ("up", "down", "open"):
        for x1, x2, cx in re.findall(rf'<g class={kind}><line x1="(.*?)%" x2="(.*?)%".*?cx="(.*?)%"', text):
            lo, hi, middle = float(x1), float(x2), float(cx)
            assert 0 <= lo <= middle <= hi <= 100
            assert {"up": lo >= 50, "down": hi <= 50, "open": lo <= 50 <= hi}[kind]


def test_what_records_say_is_text(compared: Comparison) -> None:
    assert "<" in HOSTILE
    for text in (report.page(compared), report.readme(compared)):
        assert HOSTILE not in text and "<img" not in text and "\x1b" not in text
    rows = [line for line in report.readme(compared).splitlines() if line.startswith("|")]
    tables = "\n".join(rows).split("|:")
    for table in tables[1:]:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()[1:-1]}) <= 1


def test_equal_comparisons_give_equal_bytes(compared: Comparison, tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in report.write(compared, tmp_path)}
    again = compare(*compared.sides)
    assert list(first) == ["index.html", "README.md"]
    assert {path.name: path.read_bytes() for path in report.write(again, tmp_path)} == first


@pytest.mark.parametrize(("metric", "far"), [("accuracy", 0.0), ("accuracy", 0.234), ("speedup", math.log(3.01))])
def test_axes_end_at_a_round_figure(metric: str, far: float) -> None:
    from harness.verdicts.compare import Change

    value = math.exp(far) if metric == "speedup" else far
    end = report._end(metric, [Change(metric, 1.0, 1.0, value, value, math.inf)])
    assert end >= far and end > 0 and report._tick(metric, end) == {0.0: "+1", 0.234: "+24"}.get(far, "3.05×")


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1400, False)])
def test_the_page_in_a_browser(width: int, dark: bool, compared: Comparison, tmp_path: Path) -> None:
    page, _ = report.write(compared, tmp_path)
    with Browser() as browser:
        tab = browser.open(page, width=width, height=844, dark=dark)
        assert tab.eval("document.documentElement.scrollWidth <= innerWidth")
        assert tab.complaints() == [] and tab.requests() == [page.as_uri()]
        cell = tab.eval("document.querySelector('.forest td svg').getBoundingClientRect().width")
        assert cell > 100, "a bar has room"
        told = tab.eval("document.querySelector('.forest td svg title').textContent")
        assert "paired" in told and "[" in told
        tab.eval("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert tab.eval("document.documentElement.scrollWidth <= innerWidth")
