"""The pages in docs/ and README name commands, options and keys that exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from qcheck.cli import config
from qcheck.cli.app import app
from qcheck.core.values import PACKAGE

ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def _typed(page: Path) -> Iterator[str]:
    """Lines with a prompt in consoles, and what workflows run."""
    for block in _blocks(page, "console"):
        yield from re.findall(r"^\$ .*?(qcheck .*)$", block, re.MULTILINE)
    for block in _blocks(page, "yaml"):
        for job in yaml.safe_load(block)["jobs"].values():
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
