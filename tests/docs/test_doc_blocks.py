"""Every console, YAML, TOML and Python block of the documentation is run, or checked as far as this machine can.

The author of a page marks a block by comments on the lines above it; readers do not see them.

    <!-- file: power.py -->                           the block is a file, laid out for the blocks below it
    <!-- file: mine.yaml; in tests: {limit: 4} -->    a board; the tests run it with these keys instead
    <!-- lay out: results/demo as candidate/demo -->  a copy of a file or folder of the repository
    <!-- test: slow -->                               takes more than some seconds
    <!-- test: exit 0 or 3 -->                        the exit codes that are right, 0 if nothing is said
    <!-- test: with --limit 2 -->                     options that the tests add to each command of the block
    <!-- test: parse only, needs a GPU -->            not run; the reason is one of REASONS

A page is one flow: its blocks run from top to bottom in one empty folder. Wherever a page names an `infoprune` command,
in a block, in a workflow or inside a sentence, the command and its options must be those of the command line.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from harness import registry
from harness.cli import app
from harness.trials import spec

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
        *(ROOT / name for name in ("baselines/infoprune/README.md", "harness/reference/README.md")),
        *ROOT.glob("docs/**/*.md"),
    ]
)
REASONS = {
    "needs a GPU",
    "needs a cluster",
    "needs the network",
    "needs a git repository",
    "needs a server to send to",
    "needs official data",
    "installs packages",
    "takes many minutes",
    "a fragment",
}
ENDS = {"&", "&&", "||", "|", ";", ">"}  # of a command, in a shell


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the comments above it say."""

    page: Path
    line: int
    language: str
    text: str
    slow: bool = False
    parse_only: str = ""  # the reason
    exits: tuple[int, ...] = (0,)
    more: tuple[str, ...] = ()  # options that the tests add
    file: str = ""
    changes: dict[str, Any] = field(default_factory=dict)  # of a board, in tests
    copies: tuple[tuple[str, str], ...] = ()  # from the repository, to the folder

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def marks(comments: list[str], where: str) -> dict[str, Any]:
    """What the comments above a block say, as fields of `Block`."""
    said: dict[str, Any] = {}
    for comment in comments:
        key, _, value = comment.partition(": ")
        if key == "lay out":
            pairs = [part.split(" as ") for part in value.split(", ")]
            said["copies"] = tuple((pair[0], pair[-1]) for pair in pairs)
        elif key == "file":
            said["file"], _, changes = value.partition("; in tests: ")
            said["changes"] = yaml.safe_load(changes or "{}")
        elif key == "test" and value.startswith("parse only, "):
            said["parse_only"] = value.removeprefix("parse only, ")
            assert said["parse_only"] in REASONS, f"{where}: {value!r}; choose a reason from: {sorted(REASONS)}"
        elif key == "test":
            for part in value.split(", "):
                if part == "slow":
                    said["slow"] = True
                elif part.startswith("with "):
                    said["more"] = tuple(shlex.split(part.removeprefix("with ")))
                elif re.fullmatch(r"exit \d( or \d)*", part):
                    said["exits"] = tuple(map(int, re.findall(r"\d", part)))
                else:
                    raise AssertionError(f"{where}: unknown mark {part!r}")
        else:
            raise AssertionError(f"{where}: unknown comment {comment!r}")
    return said


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in order."""
    page_blocks: list[Block] = []
    comments: list[str] = []
    inside: list[str] | None = None
    start, language = 0, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside is not None:
            if line.strip() == "```":
                where = f"{page.relative_to(ROOT)}:{start}"
                page_blocks.append(Block(page, start, language, "\n".join(inside) + "\n", **marks(comments, where)))
                inside, comments = None, []
            else:
                inside.append(line)
        elif line.startswith("```"):
            inside, start, language = [], number, line[3:].strip()
        elif comment := re.fullmatch(r"<!-- (.*) -->", line):
            comments.append(comment[1])
        elif line.strip():
            assert not comments, f"{page.relative_to(ROOT)}:{number}: no block follows the comment {comments[-1]!r}"
    assert inside is None, f"{page}: a block is not closed"
    return page_blocks


FLOWS = {page.relative_to(ROOT).as_posix(): blocks(page) for page in PAGES}
BLOCKS = [block for flow in FLOWS.values() for block in flow]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that are printed; a backslash continues a line."""
    lines: list[tuple[str, list[str]]] = []
    continued = False
    for line in text.splitlines():
        if continued:
            lines[-1] = (f"{lines[-1][0]} {line.strip().removesuffix(chr(92))}", [])
        elif line.startswith("$ "):
            lines.append((line[2:].removesuffix("\\"), []))
        else:
            lines[-1][1].append(line)
        continued = line.endswith("\\")
    return lines


def calls(line: str) -> Iterator[list[str]]:
    """The arguments of every `infoprune` on a shell line, also inside quoted words."""
    words = shlex.split(line, comments=True)
    for place, word in enumerate(words):
        if word.rpartition("/")[2] == "infoprune" and (place == 0 or words[place - 1] in {*ENDS, "--"}):
            end = next((i for i in range(place, len(words)) if words[i] in ENDS), len(words))
            yield words[place + 1 : end]
        elif " infoprune " in f" {word}" and place:
            yield from calls(word)


def parsed(words: list[str], whole: bool) -> None:
    """Check words against the command line. whole: the values too, and that no argument is missing. Runs nothing."""
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="infoprune")
    while hasattr(command, "commands"):
        _, rest, _ = command.make_parser(context).parse_args(list(words))
        if not rest or rest[0].isupper():  # a group by itself, or a placeholder
            return
        name, *words = rest
        assert name in command.commands, f"no command {name!r}; there are: {sorted(command.commands)}"
        command = command.commands[name]
        context = command.context_class(command, info_name=name, parent=context)
    if whole:
        command.make_context(command.name, list(words))
    else:
        command.make_parser(context).parse_args(list(words))


def checked(line: str, where: object, whole: bool = True) -> None:
    for words in calls(line):
        try:
            parsed(words, whole)
        except Exception as error:
            said = getattr(error, "message", "") or str(error)
            raise AssertionError(f"{where}: infoprune {' '.join(words)}: {said}") from error


# --- what is checked without running ---------------------------------------------------------------------------


def of(language: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == language]


def test_every_block_says_what_it_is() -> None:
    languages = {"console", "yaml", "python", "toml", "text", "bibtex"}
    assert not [str(block) for block in BLOCKS if block.language not in languages]


@pytest.mark.parametrize("block", of("console"))
def test_the_commands_of_a_block_are_those_of_the_command_line(block: Block) -> None:
    for line, _ in commands(block.text):
        checked(line, block)
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert set(words[1:]) <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), block
        assert block.parse_only or words[0] == "infoprune", f"{block}: {words[0]} is not run here; mark it `parse only`"
        if not block.parse_only:
            assert not ENDS & set(words), f"{block}: one command a line"


@pytest.mark.parametrize("page", FLOWS)
def test_the_commands_inside_sentences_are_those_of_the_command_line(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`(infoprune [^`]+)`", text):
        checked(" ".join(code.split()).replace("|", " ").replace("...", ""), f"{page}: `{code}`", whole=False)


@pytest.mark.parametrize("block", of("toml"))
def test_toml_is_toml(block: Block) -> None:
    assert tomllib.loads(block.text)


def board_of(block: Block) -> dict[str, Any] | None:
    """The board of a YAML block, None for other YAML; a block of some keys is put into the demo board."""
    content = yaml.safe_load(block.text)
    if not isinstance(content, dict) or not set(content) <= {*spec.Board.model_fields}:
        return None
    demo = yaml.safe_load(registry.board("demo").read_text(encoding="utf-8"))
    return content if "methods" in content and "name" in content else {**demo, **content}


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_is_a_board_a_workflow_or_a_hook(block: Block) -> None:
    """Boards are read in the page's flow, where the files that they name lie."""
    content = yaml.safe_load(block.text)
    if board_of(block) is not None:
        return
    if "jobs" in content:
        assert content["name"] and content[True], block  # YAML 1.1 reads the key `on` as true
        for job in content["jobs"].values():
            assert job["runs-on"] and job["steps"], block
            for step in job["steps"]:
                assert ("uses" in step) != ("run" in step), block
                for line in step.get("run", "").splitlines():
                    checked(line, block)
    else:
        assert set(content) == {"repos"}, f"{block}: neither a board (which key is unknown?), a workflow nor hooks"
        for hook in (hook for repository in content["repos"] for hook in repository["hooks"]):
            checked(hook["entry"], block)


@pytest.mark.parametrize(
    "line",
    [
        "infoprune sweeep demo",
        "infoprune sweep demo --nothing",
        "infoprune sweep demo --limit many",
        "infoprune export",
        "sbatch --wrap 'infoprune sweep demo --nothing'",
        "ray job submit -- infoprune nothing",
    ],
)
def test_a_command_that_does_not_exist_is_refused(line: str) -> None:
    checked("infoprune sweep demo --limit 3 --device cuda:1", "page")
    with pytest.raises(AssertionError, match="page: infoprune "):
        checked(line, "page")


# --- what is run -------------------------------------------------------------------------------------------------


def run_console(block: Block, call: Any) -> None:
    for line, printed in commands(block.text):
        (words,) = calls(line)
        done = call(*words, *block.more)
        assert done.code in block.exits, f"{block}: {line}: exit {done.code}: {done.err or done.out}"
        out = " ".join((done.out + done.err).split())
        for expected in printed:
            if expected.strip() != "...":
                assert " ".join(expected.split()) in out, f"{block}: {line}: not printed: {expected!r} but {out!r}"


def run_python(block: Block, call: Any) -> None:
    tree = ast.parse(block.text)
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    path = Path(block.file or "block.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    if "rank" in names:
        done = call("check-method", path)
        assert done.code == 0, f"{block}: {done.out or done.err}"
    elif not block.file:
        runpy.run_path(str(path), run_name="__main__")


def lay_out(block: Block) -> None:
    for source, target in block.copies:
        place = Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns(".claims", "sweep.log"))
        else:
            shutil.copy(ROOT / source, place)


def run(block: Block, call: Any) -> None:
    lay_out(block)
    if block.language == "yaml" and (board := board_of(block)) is not None:
        spec.check(board, Path(str(block)))
        if block.file:
            Path(block.file).write_text(yaml.safe_dump({**board, **block.changes}), encoding="utf-8")
            spec.read(block.file)
    elif block.language == "python":
        run_python(block, call)
    elif block.language == "console":
        run_console(block, call)
    elif block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")


def runnable(flow: list[Block], slow: bool) -> list[Block]:
    return [block for block in flow if not block.parse_only and (slow or not block.slow)]


@pytest.mark.parametrize("page", [page for page, flow in FLOWS.items() if runnable(flow, slow=False)])
def test_a_page_runs_from_top_to_bottom(page: str, call: Any) -> None:
    for block in runnable(FLOWS[page], slow=False):
        run(block, call)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, flow in FLOWS.items() if any(b.slow for b in runnable(flow, True))])
def test_a_page_runs_with_what_is_slow(page: str, call: Any) -> None:
    for block in runnable(FLOWS[page], slow=True):
        run(block, call)


def test_python_fragments_are_python() -> None:
    for block in BLOCKS:
        if block.language == "python" and block.parse_only:
            ast.parse(block.text)
