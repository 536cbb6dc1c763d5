"""`infoprune list`, `doctor`, `check-method` and `data check`: what is there, and is it sound?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, get_args

import typer
from rich.markup import escape

from harness import registry
from harness.cli.screen import out, status
from harness.cli.shared import Json, method_names
from harness.text import TOO_FEW, plain
from harness.types import InputError

Thing = Literal["methods", "models", "families", "tasks", "metrics", "boards"]


def list_(thing: Annotated[Thing | None, typer.Argument(help="Without it, all.")] = None, json_: Json = False) -> None:
    """Methods, models, families, tasks, metrics or boards, each with a line on what it is."""
    listed = {kind: _rows(kind) for kind in ((thing,) if thing else get_args(Thing))}
    if json_:
        print(json.dumps(listed[thing] if thing else listed, indent=1))
        return
    for kind, rows in listed.items():
        if thing is None:
            out.print(f"[underline]{kind}[/underline]")
        _show(rows)


def _rows(thing: Thing) -> list[dict[str, Any]]:
    """What is there of a kind: names and titles, of methods their options too."""
    from harness import families

    if thing == "methods":
        return [_method(name, method) for name, method in registry.every_method().items()]
    if thing == "models":
        rows = [{"name": name, "title": "shipped, trained, loads offline"} for name in registry.MODELS]
        rows += [{"name": name, "title": _built(name)} for name in registry.BUILT]
        rows += [
            {"name": name, "title": "published sizes without weights, loads offline; timed with random ones"}
            for name in registry.geometries()
        ]
        rows += [
            {"name": f"<{name}>", "title": "any checkpoint folder or hub id of this type"} for name in families.names()
        ]
        return rows
    if thing == "families":
        titles = {name: families.family(name).__doc__ or "" for name in families.names()}
    elif thing == "tasks":
        from harness import tasks

        titles = tasks.describe()
    elif thing == "metrics":
        titles = {name: sys.modules[registry.metric(name).__module__].__doc__ or "" for name in registry.metrics()}
    else:
        titles = {name: registry.board(name).read_text().lstrip("# ") for name in registry.boards()}
    return [{"name": name, "title": title.strip().splitlines()[0]} for name, title in titles.items()]


def _method(name: str, method: registry.Method | str) -> dict[str, Any]:
    if isinstance(method, str):
        return {"name": name, "title": method}
    return {
        "name": name,
        "title": method.title,
        "role": method.role,
        "regime": method.regime({}),
        "units": method.units,
        "options": {key: {"default": value, "note": method.notes[key]} for key, value in method.options.items()},
    }


def _show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        name, title, *rest = row
        out.print(f"[bold]{escape(row[name])}[/bold]  {escape(row[title])}")
        options = row.get("options", {})
        if details := ", ".join(str(row[key]) for key in rest if key != "options"):
            out.print(f"    [dim]{escape(details)}[/dim]")
        for option, said in options.items():
            out.print(f"    {escape(option)} = {escape(str(said['default']))}  [dim]{escape(said['note'])}[/dim]")


def _built(name: str) -> str:
    """What a model of pretrained parts is, and where it lies or how to get it."""
    title = "pretrained parts from two PyPI wheels"
    try:
        return f"{title}; built, in {registry.model(name)}"
    except InputError as error:
        return f"{title}; {str(error).partition(': ')[2]}"


def doctor(json_: Json = False) -> None:
    """Check the installation: versions that must match, devices, what other packages add, the embedded models."""
    from harness.checks.doctor import examine

    results = examine()
    if json_:
        print(
            json.dumps(
                [{"check": result.check, "ok": result.ok, "detail": result.detail} for result in results], indent=1
            )
        )
    else:
        for result in results:
            mark = "[green]ok[/green]" if result.ok else "[red]no[/red]"
            out.print(f"{mark}  {escape(result.check)}: {escape(result.detail)}", soft_wrap=True)
    if wrong := [result.code for result in results if not result.ok]:
        raise typer.Exit(max(wrong))


def check_method(
    method: Annotated[
        str,
        typer.Argument(
            help="A Python file, or a name that `infoprune list methods` shows.", autocompletion=method_names
        ),
    ],
    json_: Json = False,
) -> None:
    """Try a method on a tiny model: signature, scores, seed, budgets, a model pruned before; none is changed by it."""
    from harness.checks import method_contract

    name, module = method_contract.load(method)
    with status(f"trying {escape(name)}"), TemporaryDirectory() as folder:
        breaches = method_contract.breaches(name, module, method_contract.tiny(Path(folder)))
    if json_:
        findings = [{"check": finding.check, "text": finding.text} for finding in breaches]
        print(json.dumps({"method": name, "sound": not breaches, "findings": findings}, indent=1))
    else:
        for finding in breaches:
            out.print(f"[red]no[/red]  {finding.check}: {escape(finding.text)}", soft_wrap=True)
        if not breaches:
            out.print(f"[green]ok[/green]  {escape(name)}: {', '.join(method_contract.CHECKS)}", soft_wrap=True)
    if breaches:
        raise typer.Exit(1)


def data_check(
    path: Annotated[str, typer.Argument(help="A parquet file or folder, or TASK@FOLDER of an official set.")],
    json_: Json = False,
) -> None:
    """Validate question sets in the official columns; counts, what one constant answer would score, and doubts."""
    from harness.tasks import check, majority, sizes, summary
    from harness.types import Questions

    facts = check(path)
    if "rows" in facts:  # one set, and not a folder of several
        facts["splits"] = sizes(path)
        floor = summary(majority(Questions((path,)), images=False))
        facts["majority"] = round(floor["mean"], 4)
        if "lo" not in floor:
            facts["warnings"] = [*facts["warnings"], f"{path}: split 'validation': {TOO_FEW} for an interval; add some"]
    if json_:
        print(json.dumps(facts, indent=1, default=str))
        return
    for part in facts.get("files", [facts]):
        splits, warnings = part.pop("splits", {}), part.pop("warnings")
        line = ", ".join(f"{key}={value}" for key, value in {**part, **splits}.items())
        out.print(line, soft_wrap=True, markup=False)
        for warning in warnings:
            out.print(f"[yellow]warning:[/yellow] {escape(plain(warning))}", soft_wrap=True)
