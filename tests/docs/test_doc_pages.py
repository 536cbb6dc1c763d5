"""The pages hold together: every link leads somewhere, and every module stands in the tree of docs/design.md."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from harness.trials import spec
from harness.types import Tuning

ROOT = Path(__file__).parents[2]
KEYS = ROOT / "docs" / "guides" / "board-keys.md"
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]
    if path.relative_to(ROOT).parts[0] not in ("leaderboards", "runs")
)


def prose(path: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", head)).lower().replace(" ", "-") for head in heads
    }


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in PAGES])
def test_every_relative_link_leads_somewhere(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), f"{page}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page}: {link}; anchors: {sorted(anchors(target))}"


def test_every_page_of_docs_is_linked_from_the_readme_or_from_a_page_that_is() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose(path))]
        todo += [(path.parent / link).resolve() for link in links if link.endswith(".md") and ":" not in link]
    assert not [path for path in PAGES if path.is_relative_to(ROOT / "docs") and path not in seen]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def tree() -> set[str]:
    """The modules that design.md's tree names; a folder stands for its __init__.py."""
    (text,) = re.findall(r"```text\n(harness/.*?)```", (ROOT / "docs/design.md").read_text(encoding="utf-8"), re.DOTALL)
    modules: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        folders = [(at, name) for at, name in folders if at < depth]
        base = "".join(name for _, name in folders)
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            if name.endswith("/"):
                folders.append((depth, name))
                if (ROOT / base / name / "__init__.py").is_file():
                    modules.add(f"{base}{name}__init__.py")
            elif name.endswith(".py"):
                modules.add(f"{base}{name}")
    return modules


PLUGINS = ("baselines/*.py", "harness/families/*.py", "harness/metrics/*.py")  # a new one is one file, and no more


def test_every_module_stands_in_the_tree() -> None:
    modules = {
        path.relative_to(ROOT).as_posix() for part in ("harness", "baselines") for path in ROOT.glob(f"{part}/**/*.py")
    }
    plugins = {path.relative_to(ROOT).as_posix() for pattern in PLUGINS for path in ROOT.glob(pattern)}
    missing, unknown = sorted(modules - plugins - tree()), sorted(tree() - modules)
    assert not missing, f"docs/design.md: the tree lacks {', '.join(missing)}"
    assert not unknown, f"docs/design.md: the tree names {', '.join(unknown)}, which do not exist"


def test_the_table_of_packages_is_whole() -> None:
    """The table of docs/design.md has a row for each package of harness/."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    packages = {path.name for path in (ROOT / "harness").iterdir() if (path / "__init__.py").is_file()}
    assert packages <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def test_the_files_that_other_services_read_are_what_they_expect() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step] == [".ci/run"]
    forms = set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    for form in forms - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"}:
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text(encoding="utf-8"))), form


def test_the_changelog_has_a_section_for_what_is_unreleased_and_for_the_version() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    heads = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased" and version in heads


def test_every_key_of_a_board_is_explained() -> None:
    """One page has them all: a key that is added to the code without a word there fails here."""
    told = {
        key
        for row in re.findall(r"^\| (`.*?) \|", KEYS.read_text(encoding="utf-8"), re.M)
        for key in re.findall(r"`(\w+)`", row)
    }
    keys = {*spec.Board.model_fields, *spec.Contestant.model_fields, *(item.name for item in fields(Tuning))}
    assert keys - told == set() and told - keys == set()
