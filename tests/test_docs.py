"""The pages in docs/ and README name commands, options, keys, files and links that exist, and the site builds."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from markdown_it import MarkdownIt

import qcheck
from qcheck.cli import config
from qcheck.cli.app import app
from qcheck.core.values import PACKAGE

ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OUTSIDE = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]  # not in the site
FOLDERS = "qcheck|tests|benchmarks|tools|targets|calibration|zoo|docs"
COMMANDS = typer.main.get_command(app)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def _typed(page: Path) -> Iterator[str]:
    """Lines with a prompt in consoles, and what workflows run."""
    for block in _blocks(page, "console"):
        yield from re.findall(r"^\$ .*?(qcheck .*)$", block, re.MULTILINE)
    for block in _blocks(page, "yaml"):
        for job in yaml.safe_load(block).get("jobs", {}).values():
            yield from (step["run"] for step in job["steps"] if step.get("run", "").startswith("qcheck"))


def _unknown(line: str) -> list[str]:
    """Options of a command line that its command does not have."""
    words = shlex.split(re.split(r" [>|&#]| 2>", line)[0])[1:]
    command: Any = COMMANDS
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    if command is COMMANDS and words and not words[0].startswith("-"):
        return words[:1]
    return [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_on_the_page_exist(page: Path) -> None:
    for line in _typed(page):
        assert _unknown(line) == [], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_yours_to_fill_in_is_in_capitals(page: Path) -> None:
    """Not in angle brackets, which a shell takes for a file, nor an address that nobody has."""
    typed = "\n".join(block for language in ("console", "yaml", "toml") for block in _blocks(page, language))
    assert re.findall(r"<[a-z][\w -]*>|example\.(?:com|org)|\b(?:your|my)_?[A-Z]\w+|/path/to", typed) == []


def test_an_option_that_does_not_exist_is_seen() -> None:
    assert _unknown("qcheck check demo --loras flat | tee x") == ["--loras"]
    assert _unknown("qcheck cache prune --older-than 3 --max-gb=1") == []
    assert _unknown("qcheck chek demo") == ["chek"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_on_the_page_are_read(page: Path, tmp_path: Path) -> None:
    check = COMMANDS.commands["check"]  # type: ignore[attr-defined]
    context = check.make_context("check", ["base", "--lora", "x"])
    for block in _blocks(page, "toml"):
        (tmp_path / config.NAME).write_text(block)
        if "[check]" in block:
            config.load(context, tmp_path / config.NAME)
            assert context.default_map is not None
            assert len(context.default_map) == len(tomllib.loads(block)["check"])


def _missing_files(text: str) -> list[str]:
    """Files of the repository that a text names and that are not there; names in capitals stand for many."""
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]+\.\w+", text)
    return [name for name in named if not (ROOT / name).exists() and not re.search(r"\b[A-Z]{4,}\b", name)]


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE[1:]], ids=lambda page: page.name)
def test_files_that_the_page_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    history = page.name == "CHANGELOG.md"  # older entries name the files of their day
    assert _missing_files(text.partition("## [0.1.0]")[0] if history else text) == []


def test_a_file_that_does_not_exist_is_noticed() -> None:
    assert _missing_files("see `qcheck/report/model.py` and targets/NAME.toml") == ["qcheck/report/model.py"]


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _dead(page: Path) -> list[str]:
    """Links of a page to files or headings of the repository that are not there."""
    dead = []
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        for child in token.children or ():
            target = str(child.attrs.get("href") or child.attrs.get("src") or "")
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            if target and "://" not in target and not (path.exists() and (not anchor or anchor in _anchors(path))):
                dead.append(target)
    return dead


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: page.name)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    assert _dead(page) == []


def _literals() -> str:
    """Every text in the package's code, a line each, f-strings in the parts between what they fill in."""
    nodes = [node for path in sorted(PACKAGE.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    return "\n".join(one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str))


def _unsaid(page: str, literals: str) -> list[str]:
    """Messages in the first column of a page's tables of which a part stands nowhere in the code."""
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    return [message for message in quoted if any(part.strip() not in literals for part in message.split("…"))]


def test_every_message_of_the_troubleshooting_is_one_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    assert page.count("\n| `") > 15
    assert _unsaid(page, _literals()) == []
    assert _unsaid("| `no adapter in … to be seen` | x |", _literals()) == ["no adapter in … to be seen"]


def _told() -> Iterator[str]:
    """What the program may say: texts in its code that are no docstrings, and those of its data."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        documented = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
        texts = (one for one in ast.walk(tree) if isinstance(one, ast.Constant) and id(one) not in documented)
        yield from (str(one.value) for one in texts)
    for path in sorted((PACKAGE / "spec" / "data").rglob("*.toml")):
        yield from map(str, tomllib.loads(path.read_text("utf-8")).values())


def test_the_program_sends_its_user_to_pages_that_help() -> None:
    """Not to the zoo, which is qcheck's own evidence: limits.md and own.md say what to do, and link to it."""
    pages = {page for text in _told() for page in re.findall(r"docs/(\w+)\.md", text)}
    assert {"limits", "own", "pictures"} <= pages
    assert "zoo" not in pages
    assert all((ROOT / "docs" / f"{page}.md").is_file() for page in pages)


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One head\n[a](b.md) [b](#one-head) [c](#other) ![d](e.png) [f](https://x.y)\n")
    assert _dead(tmp_path / "a.md") == ["b.md", "#other", "e.png"]


def _names(code: str) -> set[str]:
    """Public names of the package that an example uses."""
    attributes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "qcheck"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_page_is_python(page: Path) -> None:
    for block in _blocks(page, "python"):
        ast.parse(block)


@pytest.mark.skipif(not hasattr(qcheck, "check"), reason="the package has no Python API")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_page_uses_names_that_exist(page: Path) -> None:
    assert {name for block in _blocks(page, "python") for name in _names(block) if not hasattr(qcheck, name)} == set()


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reference-lora" in (tmp_path / "commands.html").read_text("utf-8")
