"""The command `infoprune`: flags in, calls out, tables and exit codes back. No logic of its own.

infoprune demo
infoprune sweep my-board.yaml --results results --device cuda
"""

from __future__ import annotations

import errno
import logging
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape

from harness import progress, registry
from harness.cli import bench, catalogue, checkpoints, quality, recommend, reference, results, sweep, verdicts
from harness.cli.screen import MARKUP, UNWRITABLE, err, streams
from harness.cli.shared import Interrupted, homes_expanded
from harness.text import plain, reason
from harness.types import InputError

log = logging.getLogger(__name__)

LINE = 1500  # characters of an error
# What no check before the work can know of, such as a disk that becomes full.
UNWRITABLE_FILE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _group(about: str, completion: bool = False, **commands: object) -> typer.Typer:
    # In Markdown, brackets in a help text are brackets; in rich's own markup they are tags, which may not even close.
    how: dict[str, Any] = {
        "rich_markup_mode": MARKUP,
        "pretty_exceptions_enable": False,
        "context_settings": {"help_option_names": ["-h", "--help"]},
    }
    group = typer.Typer(help=about, no_args_is_help=True, add_completion=completion, **how)
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            command.rich_markup_mode = MARKUP
            group.add_typer(command, name=name)
        else:
            group.command(name=name)(command)  # type: ignore[type-var]
    return group


def _usable(name: str, command: Any) -> Any:
    """The command; one that could not be imported says so when it is called, and ends no other."""
    if not isinstance(command, str):
        return command

    def refuse(words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        raise InputError(f"command {name}: {command}")

    refuse.__doc__ = f"It {command}"
    return refuse


app = _group(
    "Compare ways to prune vision-language models at equal FLOPs.",
    completion=True,
    demo=sweep.demo,
    sweep=sweep.sweep,
    report=sweep.report,
    prune=checkpoints.prune,
    export=checkpoints.export,
    load=checkpoints.load,
    gate=verdicts.gate,
    verdict=verdicts.verdict,
    compare=verdicts.compare,
    recommend=recommend.recommend,
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
    reference=_group(
        "The embedded models: build, retrain, fine-tune, verify.",
        build=reference.build,
        train=reference.train,
        check=reference.check,
    ),
    **{name: _usable(name, command) for name, command in registry.commands().items()},
)
homes_expanded(app)


def _version(asked: bool) -> None:
    if not asked:
        return
    code = registry.code()
    changed = " with uncommitted changes" if code["dirty"] else ""
    revision = f", revision {code['revision']}{changed}" if code["revision"] else ""
    print(f"infoprune-bench {code['version']}{revision}")
    raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and git revision.")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, show_default=False, help="Log what is done to stderr; -vv also every detail."
        ),
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no hints.")] = False,
) -> None:
    progress.quiet = quiet
    logging.getLogger().setLevel(logging.DEBUG if verbose > 1 else logging.WARNING)
    for ours in ("harness", registry.BUILT_IN):
        logging.getLogger(ours).setLevel(logging.INFO if verbose == 1 else logging.NOTSET)


def main() -> None:
    """The console script: bad input, and what the system refuses, is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    with streams():
        _run()


def _run() -> None:
    try:
        app()
    except InputError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        log.debug("what the system refused:", exc_info=True)
        unwritable = error.errno in UNWRITABLE_FILE
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{'cannot be written: ' if unwritable else ''}{reason(error)}")
        sys.exit(UNWRITABLE if unwritable else 2)
    except Interrupted:
        err.print("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(130)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # what typer makes of an interrupt
            raise
        err.print("interrupted")
        sys.exit(130)


def _say(message: str) -> None:
    """An error in one line."""
    text = plain(message)
    if len(text) > LINE:  # what is named in it may be of any length
        text = f"{text[: LINE - 300]} ... {text[-300:]}"
    err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)
