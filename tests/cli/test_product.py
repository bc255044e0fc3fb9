"""The command line as a product: help that shows how, completion, quiet, logs, colours, an estimate."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qcheck.cli.app import app
from qcheck.core.errors import UserError
from qcheck.core.values import names_in
from qcheck.demo import library
from qcheck.spec import limits, probe, recipe, scheme, target
from qcheck.spec.check import CheckSpec
from qcheck.tasks import check as task
from tests import reports
from tests.conftest import run

CHECK = ("check", "demo", "--lora", "flat", "--scheme", "int8")


def _commands(group: Any, path: str = "qcheck") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), [*_commands(typer.main.get_command(app))])
def test_every_help_has_an_example(path: str, command: Any) -> None:
    assert re.search(rf"`{path}\b", command.help or ""), path


def test_every_option_of_a_check_is_in_a_group_and_explained() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for parameter in commands["check"].params:
        assert parameter.help, parameter.name
        assert parameter.param_type_name == "argument" or parameter.name == "help" or parameter.rich_help_panel


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("check demo --scheme int8", {"int8", "int8-sq"}),
        ("check demo --scheme a", {"all"}),
        ("check demo --target ", set(names_in(target.FOLDER))),
        ("check demo --recipe ", set(names_in(recipe.FOLDER))),
        ("check demo --probes ", set(names_in(probe.FOLDER))),
        ("check demo --limits ", set(names_in(limits.FOLDER))),
        ("check demo --order un", {"unmerged"}),
        ("export demo --scheme nv", {"nvfp4", "nvfp4-wo"}),
        ("demo ", set(library.adapters())),
        ("demo --scheme fp", {"fp16", "fp8", "fp8-linear"}),
        ("targets jetson-thor", {n for n in names_in(target.FOLDER) if n.startswith("jetson-thor")}),
        ("schemes --target dgx", {"dgx-spark"}),
        ("inspect ", set(library.adapters())),
        ("inspect x --scheme bf", {n for n in names_in(scheme.FOLDER) if n.startswith("bf")}),
    ],
)
def test_names_complete(typed: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qcheck.toml").write_text("broken")  # completing reads no configuration
    monkeypatch.chdir(tmp_path)
    environment = {"_QCHECK_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment["_TYPER_COMPLETE_ARGS"] = f"qcheck {typed}"
    found = CliRunner().invoke(app, [], env=environment, prog_name="qcheck")
    assert set(found.stdout.split()) == expected


def test_quiet_prints_the_verdicts_alone(asked: list[CheckSpec]) -> None:
    found = run(*CHECK, "--quiet")
    assert (found.stdout, found.stderr, found.exit_code) == ("NEEDS-QAT int8 merge-quantize\n", "", 1)


def test_json_is_the_report_alone(asked: list[CheckSpec]) -> None:
    found = run(*CHECK, "--json")
    assert json.loads(found.stdout)["cases"][0]["verdict"] == "NEEDS-QAT"
    assert found.stderr == ""


def test_progress_and_notes_go_to_standard_error(asked: list[CheckSpec]) -> None:
    found = run(*CHECK)
    assert "1 case ahead" in found.stderr
    assert "reference" in found.stderr
    assert "1 case ahead" not in found.stdout


def test_a_log_holds_stages_notes_and_the_verdict_whatever_is_shown(tmp_path: Path, asked: list[CheckSpec]) -> None:
    file = tmp_path / "run.log"
    run(*CHECK, "--quiet", "--log", str(file))
    run(*CHECK, "--quiet", "--log", str(file))
    lines = file.read_text().splitlines()
    told = [line.split(" qcheck ", 1)[1] for line in lines]
    assert told[1:3] == ["1 case ahead", "begins: reference (2)"]
    assert told[3].startswith("ended: reference, ")
    assert told[4] == "int8 merge-quantize: NEEDS-QAT"
    assert len(told) == 10
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", line) for line in lines)


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [(UserError("odd", "mend it"), "ERROR qcheck odd; mend it"), (KeyboardInterrupt(), "ERROR qcheck interrupted"),
     (ZeroDivisionError(), "ZeroDivisionError")],
)  # fmt: skip
def test_a_log_holds_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, wanted: str
) -> None:
    def check(*_: object) -> None:
        raise raised

    monkeypatch.setattr(task, "check", check)
    file = tmp_path / "run.log"
    found = run(*CHECK, "--log", str(file), "--out", str(tmp_path / "out"))
    assert found.exit_code != 0
    assert wanted in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run.log"]


def test_a_log_holds_warnings_of_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: object) -> Any:
        warnings.warn("a library is unhappy", UserWarning, stacklevel=1)
        return reports.report()

    monkeypatch.setattr(task, "check", check)
    file = tmp_path / "run.log"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run(*CHECK, "--log", str(file), "--out", str(tmp_path / "out"))
    assert "a library is unhappy" in file.read_text()


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path, asked: list[CheckSpec]) -> None:
    found = run(*CHECK, "--log", str(tmp_path / "none" / "run.log"))
    assert isinstance(found.exception, UserError)
    assert asked == []


def test_no_color_is_respected(asked: list[CheckSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|4[0-7])[0-9;]*m")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour.search(run(*CHECK).stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    found = run(*CHECK)
    assert not colour.search(found.stdout + found.stderr)
