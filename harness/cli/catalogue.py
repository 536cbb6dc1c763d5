"""`infoprune list`, `doctor`, `check-method` and `data check`: what is there, and is it sound?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from harness import registry
from harness.cli.shared import Json, err, out

Thing = Literal["methods", "models", "tasks", "metrics", "boards"]


def list_(thing: Thing, json_: Json = False) -> None:
    """Methods, models, tasks, metrics or boards, each with a line on what it is."""
    from harness import families

    rows: list[dict[str, Any]]
    if thing == "methods":
        found = [registry.method(name) for name in registry.methods()]
        rows = [
            {
                "name": m.name,
                "title": m.title,
                "role": m.role,
                "regime": m.regime({}),
                "units": m.units,
                "options": {key: {"default": value, "note": m.notes[key]} for key, value in m.options.items()},
            }
            for m in found
        ]
    elif thing == "models":
        rows = [{"name": name, "title": "shipped, trained, loads offline"} for name in registry.MODELS]
        rows += [
            {"name": name, "title": "published sizes without weights, loads offline; timed with random ones"}
            for name in registry.geometries()
        ]
        rows += [
            {"name": f"<{name}>", "title": "any checkpoint folder or hub id of this type"} for name in families.names()
        ]
    elif thing == "tasks":
        from harness import tasks

        rows = [{"name": name, "title": title} for name, title in tasks.describe().items()]
    elif thing == "metrics":
        titles = {name: sys.modules[registry.metric(name).__module__].__doc__ or "" for name in registry.metrics()}
        rows = [{"name": name, "title": title.strip().splitlines()[0]} for name, title in titles.items()]
    else:
        rows = [
            {"name": name, "title": registry.board(name).read_text().splitlines()[0].lstrip("# ")}
            for name in registry.boards()
        ]
    if json_:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        name, title, *rest = row
        out.print(f"[bold]{escape(row[name])}[/bold]  {escape(row[title])}")
        options = row.get("options", {})
        if details := ", ".join(str(row[key]) for key in rest if key != "options"):
            out.print(f"    [dim]{escape(details)}[/dim]")
        for option, said in options.items():
            out.print(f"    {escape(option)} = {escape(str(said['default']))}  [dim]{escape(said['note'])}[/dim]")


def doctor(json_: Json = False) -> None:
    """Check the installation: versions that must match, the embedded model, a forward pass, the devices."""
    from harness.doctor import examine

    findings = examine()
    if json_:
        print(json.dumps([{"check": f.check, "ok": f.ok, "detail": f.detail} for f in findings], indent=1))
    else:
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else "[red]no[/red]"
            out.print(f"{mark}  {finding.check}: {escape(finding.detail)}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def check_method(
    method: Annotated[str, typer.Argument(help="A Python file, or a name that `infoprune list methods` shows.")],
    json_: Json = False,
) -> None:
    """Try a method on a tiny model: signature, scores, seed, budgets, and that it leaves the model as found."""
    from harness import contract

    name, module = contract.load(method)
    with err.status(f"trying {escape(name)}"), TemporaryDirectory() as folder:
        found = contract.findings(name, module, contract.tiny(Path(folder)))
    if json_:
        findings = [{"check": finding.check, "text": finding.text} for finding in found]
        print(json.dumps({"method": name, "sound": not found, "findings": findings}, indent=1))
    else:
        for finding in found:
            out.print(f"[red]no[/red]  {finding.check}: {escape(finding.text)}", soft_wrap=True)
        if not found:
            out.print(f"[green]ok[/green]  {escape(name)}: {', '.join(contract.CHECKS)}", soft_wrap=True)
    if found:
        raise typer.Exit(1)


def data_check(
    path: Annotated[str, typer.Argument(help="A parquet file or folder, or TASK@FOLDER of an official set.")],
    json_: Json = False,
) -> None:
    """Validate question sets in the official columns; counts, and what one constant answer would score."""
    from harness.tasks import check, majority, summary

    found = check(path)
    if "rows" in found:  # of one set
        found["majority"] = round(summary(majority([path], "validation", None))["mean"], 4)
    if json_:
        print(json.dumps(found, indent=1, default=str))
    else:
        out.print(", ".join(f"{key}={value}" for key, value in found.items()), soft_wrap=True)
