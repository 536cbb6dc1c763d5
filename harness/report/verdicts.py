"""A gate's verdict as Markdown for pull requests and as JUnit XML for build servers.

print(markdown(gate.compare("main", "results", gate.Limits())))
"""

from __future__ import annotations

import math
from xml.etree import ElementTree

from harness.report.panels import NOTHING
from harness.report.tables import escape
from harness.report.tables import markdown as table
from harness.text import TOO_FEW, plain, some
from harness.verdicts.gate import METRICS, Gate
from harness.verdicts.regressions import Finding

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "refused": NOTHING}


def heads(gate: Gate) -> dict[str, str]:
    """The head of each metric's column, with its limit."""
    limits = gate.limits
    return {
        "accuracy": f"points lost (< {100 * limits.margin:g})",
        "latency": f"time (< {limits.latency:g}x)",
        "flops": f"FLOPs (<= {limits.flops:g}x)",
    }


def cell(metric: str, finding: Finding | None) -> str:
    """A finding as mark, estimate and bounds, in points of accuracy or multiples of the baseline."""
    if finding is None:
        return NOTHING
    if finding.cost is None:
        return f"{MARKS[finding.outcome]} {finding.outcome}"
    scale, form = {"accuracy": (100, "{:z.1f}"), "latency": (1, "{:.2f}"), "flops": (1, "{:.4f}")}[metric]
    if not math.isfinite(finding.cost.lo + finding.cost.hi):
        return f"{MARKS[finding.outcome]} {form.format(scale * finding.cost.estimate)} ({TOO_FEW})"
    middle, lo, hi = (form.format(scale * x) for x in (finding.cost.estimate, finding.cost.lo, finding.cost.hi))
    return f"{MARKS[finding.outcome]} {middle}" + ("" if lo == hi else f" [{lo}, {hi}]")


def remarks(gate: Gate) -> list[str]:
    """Lines for the reader: outcomes, what would settle open metrics, reasons of refusals, missing trials."""
    lines = []
    for metric, outcome in gate.metrics.items():
        rows = [row for row in (*gate.pooled, *gate.trials) if metric in row.findings]
        findings = [(row.name, row.findings[metric]) for row in rows]
        line = f"{metric}: {outcome}"
        if outcome == "fail":
            line += f": {some([name for name, finding in findings if finding.outcome == 'fail'])}"
        elif outcome == "inconclusive":
            open_ = [
                finding
                for _, finding in findings
                if finding.decides and finding.outcome == "inconclusive" and finding.cost
            ]
            needed = [finding.cost.needed if finding.cost else None for finding in open_]
            unit = "questions" if metric == "accuracy" else "timed rounds a trial"
            known = None if None in needed else max(filter(None, needed), default=None)
            line += (
                f"; about {known:,} {unit} would settle it" if known else f"; no number of {unit} known to settle it"
            )
        lines.append(line)
        whys = dict.fromkeys(finding.why for _, finding in findings if finding.outcome == "refused")
        for why in whys:
            names = [name for name, finding in findings if finding.why == why]
            lines.append(f"{metric} not compared for {some(names)}: {why}")
    lines += [f"broken: {trial}" for trial in gate.broken]
    if gate.missing:
        lines.append(f"missing from the candidate: {some(gate.missing)}")
    return [*lines, *gate.notes]


def markdown(gate: Gate) -> str:
    """The verdict as a comment on a pull request: the outcome, a line per metric, and a folded table of trials."""
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
    """The verdict as JUnit XML: a suite per metric, a case per trial. Open and refused cases count as skipped."""
    cases: dict[str, list[tuple[str, str, str]]] = {metric: [] for metric in gate.metrics}
    for row in (*gate.pooled, *gate.trials):
        for metric, finding in row.findings.items():
            message = finding.why or f"{heads(gate)[metric]}: {cell(metric, finding)}"
            cases[metric].append((row.name, finding.outcome, message))
    cases["run"] = [(line.partition(": failed: ")[0], "fail", line) for line in gate.broken]
    cases["run"] += [(name, "inconclusive", "missing from the candidate") for name in gate.missing]
    root = ElementTree.Element("testsuites", name="infoprune gate")
    for metric, metric_cases in cases.items():
        if not metric_cases:
            continue
        outcomes = [outcome for _, outcome, _ in metric_cases]
        failures = outcomes.count("fail")
        skipped = len(outcomes) - failures - outcomes.count("pass")
        counts = {"tests": len(metric_cases), "failures": failures, "errors": 0, "skipped": skipped}
        facts = {"name": metric, **{key: str(count) for key, count in counts.items()}}
        suite = ElementTree.SubElement(root, "testsuite", facts)
        for name, outcome, message in metric_cases:
            case = ElementTree.SubElement(suite, "testcase", classname=metric, name=plain(name))
            if outcome != "pass":
                kind = "failure" if outcome == "fail" else "skipped"
                ElementTree.SubElement(case, kind, message=plain(f"{outcome}: {message}"))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
