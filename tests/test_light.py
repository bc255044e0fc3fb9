"""What works where nothing heavy is installed: `make test-lowest` runs this with the lowest versions and no torch."""

import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

from qcheck.cli.app import app
from qcheck.core.values import PACKAGE, names_in
from qcheck.spec import limits, probe, recipe, scheme, target

STORED = Path(__file__).parent / "report" / "folder"
LIGHT = ("core", "spec", "result", "judge", "cli")
HEAVY = {"torch", "diffusers", "transformers", "peft", "onnx", "onnx_ir", "onnxruntime", "numpy", "scipy"}


def _modules() -> list[str]:
    walked = pkgutil.walk_packages([str(PACKAGE)], "qcheck.")
    return [module.name for module in walked if module.name.split(".")[1] in LIGHT]


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, (*path, name))


def _printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_light_packages_import_nothing_heavy() -> None:
    code = f"import sys, {', '.join(_modules())}; print(*sorted({HEAVY} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", [*_commands(typer.main.get_command(app))], ids=lambda path: " ".join(path) or "qcheck")
def test_every_command_shows_its_help(path: tuple[str, ...]) -> None:
    assert f"Usage: {'qcheck' if not path else ''}" in _printed(*path, "--help")


@pytest.mark.parametrize("kind", [limits, probe, recipe, scheme, target], ids=lambda kind: kind.__name__)
def test_every_data_file_is_read(kind: Any) -> None:
    names = names_in(kind.FOLDER)
    assert names
    assert [kind.find(name).name for name in names] == [*names]


def test_devices_and_schemes_are_shown() -> None:
    for name in names_in(target.FOLDER):
        assert name in _printed("targets", name)
    assert {one["name"] for one in json.loads(_printed("schemes", "--json"))} == {*names_in(scheme.FOLDER)}


def test_a_stored_report_is_compared_with_itself() -> None:
    assert "nothing got worse" in _printed("compare", str(STORED), str(STORED), "--markdown")
    assert "int8" in _printed("compare", str(STORED), str(STORED), "--matrix")


def test_every_module_of_the_light_packages_is_listed() -> None:
    assert {name.split(".")[1] for name in _modules()} == {*LIGHT}
    assert import_module("qcheck.cli.app").app is app


def _pinned() -> dict[str, Version]:
    text = (PACKAGE.parent / "constraints-lowest.txt").read_text("utf-8")
    return {name: Version(version) for name, version in re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE)}


def test_the_lowest_versions_are_those_that_the_project_declares() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = (*project["dependencies"], *extras["host"], *extras["bitsandbytes"])
    declared = [requirement for text in texts if (requirement := Requirement(text)).name != "torch"]
    assert {one.name: Version(bound.version) for one in declared for bound in one.specifier} == _pinned()
