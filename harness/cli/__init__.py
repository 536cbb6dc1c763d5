"""The command `infoprune`: flags in, calls out, tables and exit codes back. No logic of its own.

infoprune demo
infoprune sweep my-board.yaml --results results --device cuda
"""

from __future__ import annotations

import logging
import sys

import typer
from rich.markup import escape

from harness import registry
from harness.cli import bench, catalogue, checkpoints, quality, reference, results, sweep, verdicts
from harness.cli.shared import err
from harness.types import InputError

LINE = 1500  # characters of an error


def _group(about: str, **commands: object) -> typer.Typer:
    group = typer.Typer(help=about, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            group.add_typer(command, name=name)
        else:
            group.command(name=name)(command)  # type: ignore[type-var]
    return group


app = _group(
    "Compare ways to prune vision-language models at equal FLOPs.",
    demo=sweep.demo,
    sweep=sweep.sweep,
    report=sweep.report,
    prune=checkpoints.prune,
    export=checkpoints.export,
    load=checkpoints.load,
    gate=verdicts.gate,
    verdict=verdicts.verdict,
    bench=bench.bench,
    results=_group(
        "The evidence: look at it, bring it together, check it.",
        ls=results.ls,
        show=results.show,
        merge=results.merge,
        mirror=results.mirror,
        verify=results.verify,
    ),
    status=results.status,
    list=catalogue.list_,
    doctor=catalogue.doctor,
    **{"check-method": catalogue.check_method},
    quality=quality.quality,
    data=_group("Question sets of your own.", check=catalogue.data_check),
    reference=_group("The embedded model: retrain, fine-tune, verify.", train=reference.train, check=reference.check),
    **registry.commands(),
)


def main() -> None:
    """The console script: bad input is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except InputError as error:
        from harness.text import plain

        text = plain(str(error))
        if len(text) > LINE:  # what is named in it may be of any length
            text = f"{text[: LINE - 300]} ... {text[-300:]}"
        err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # what typer makes of an interrupt
            raise
        err.print("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(130)
