"""A gate's verdict for people and for build servers: Markdown for a pull request, JUnit XML.

print(markdown(gate.compare("main", "results", gate.Limits())))
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from harness.costs import Finding
from harness.gate import METRICS, Gate
from harness.report.tables import NOTHING, escape
from harness.report.tables import markdown as table
from harness.text import plain, some
from harness.types import InputError

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "refused": NOTHING}


def heads(gate: Gate) -> dict[str, str]:
    """What each metric's column holds, with its limit."""
    limits = gate.limits
    return {
        "accuracy": f"points lost (< {100 * limits.margin:g})",
        "latency": f"time (< {limits.latency:g}x)",
        "flops": f"FLOPs (<= {limits.flops:g}x)",
    }


def cell(metric: str, finding: Finding | None) -> str:
    """A finding as a mark, its estimate and its bounds: points of accuracy, or multiples of the baseline."""
    if finding is None:
        return NOTHING
    if finding.cost is None:
        return f"{MARKS[finding.outcome]} {finding.outcome}"
    scale, form = {"accuracy": (100, "{:z.1f}"), "latency": (1, "{:.2f}"), "flops": (1, "{:.4f}")}[metric]
    middle, lo, hi = (form.format(scale * x) for x in (finding.cost.estimate, finding.cost.lo, finding.cost.hi))
    return f"{MARKS[finding.outcome]} {middle}" + ("" if lo == hi else f" [{lo}, {hi}]")


def remarks(gate: Gate) -> list[str]:
    """What the table does not say: what would settle the open metrics, what was refused and why, what is not there."""
    lines = []
    for metric, outcome in gate.metrics.items():
        rows = [row for row in (*gate.pooled, *gate.trials) if metric in row.findings]
        found = [(row.name, row.findings[metric]) for row in rows]
        line = f"{metric}: {outcome}"
        if outcome == "fail":
            line += f": {some([name for name, one in found if one.outcome == 'fail'])}"
        elif outcome == "inconclusive":
            open_ = [one for _, one in found if one.decides and one.outcome == "inconclusive" and one.cost]
            needed = [one.cost.needed if one.cost else None for one in open_]
            unit = "questions" if metric == "accuracy" else "timed rounds a trial"
            known = None if None in needed else max(filter(None, needed), default=None)
            line += (
                f"; about {known:,} {unit} would settle it" if known else f"; no number of {unit} known to settle it"
            )
        lines.append(line)
        whys = dict.fromkeys(one.why for _, one in found if one.outcome == "refused")
        for why in whys:
            names = [name for name, one in found if one.why == why]
            lines.append(f"{metric} not compared for {some(names)}: {why}")
    lines += [f"broken: {one}" for one in gate.broken]
    if gate.missing:
        lines.append(f"missing from the candidate: {some(gate.missing)}")
    return [*lines, *gate.notes]


def markdown(gate: Gate) -> str:
    """The verdict as a pull request's comment: the whole, a line per metric, every trial folded away."""
    head = heads(gate)
    shown = [metric for metric in METRICS if metric in gate.metrics]
    rows = [
        [escape(row.name), *(escape(cell(metric, row.findings.get(metric))) for metric in shown)]
        for row in (*gate.pooled, *gate.trials)
    ]
    lines = [f"### Gate: {gate.verdict}", "", *(f"- {escape(line)}" for line in remarks(gate)), ""]
    if rows:
        lines += [f"<details{' open' if len(rows) <= 20 else ''}><summary>{len(gate.trials)} trials</summary>", ""]
        lines += [table(["trial", *(escape(head[metric]) for metric in shown)], rows), "", "</details>", ""]
    return "\n".join(lines)


def junit(gate: Gate) -> str:
    """The verdict as JUnit XML: a suite per metric, a case per trial; what is open or refused counts as skipped."""
    cases: dict[str, list[tuple[str, str, str]]] = {metric: [] for metric in gate.metrics}
    for row in (*gate.pooled, *gate.trials):
        for metric, finding in row.findings.items():
            said = finding.why or f"{heads(gate)[metric]}: {cell(metric, finding)}"
            cases[metric].append((row.name, finding.outcome, said))
    cases["run"] = [(one.partition(": ")[0], "fail", one) for one in gate.broken]
    cases["run"] += [(name, "inconclusive", "missing from the candidate") for name in gate.missing]
    root = ElementTree.Element("testsuites", name="infoprune gate")
    for metric, found in cases.items():
        if not found:
            continue
        outcomes = [outcome for _, outcome, _ in found]
        failures = outcomes.count("fail")
        skipped = len(outcomes) - failures - outcomes.count("pass")
        counts = {"tests": len(found), "failures": failures, "errors": 0, "skipped": skipped}
        facts = {"name": metric, **{key: str(count) for key, count in counts.items()}}
        suite = ElementTree.SubElement(root, "testsuite", facts)
        for name, outcome, said in found:
            case = ElementTree.SubElement(suite, "testcase", classname=metric, name=plain(name))
            if outcome != "pass":
                kind = "failure" if outcome == "fail" else "skipped"
                ElementTree.SubElement(case, kind, message=plain(f"{outcome}: {said}"))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def save(path: Path, text: str) -> None:
    """Write a file of the verdict; raises InputError if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
