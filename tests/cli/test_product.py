"""The command line as a product: help that shows how, completion, quiet, logs, colours, an estimate."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from qcheck.cli.app import app
from qcheck.cli.progress import Bars
from qcheck.core import errors
from qcheck.core.errors import UserError
from qcheck.core.values import names_in
from qcheck.demo import library
from qcheck.spec import limits, probe, ranges, recipe, scheme, target
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


COMPLETE = """
source "$1"
COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
"$(complete -p qcheck | grep -oE '[^ ]+_completion')" qcheck
echo "${COMPREPLY[@]}"
"""


BASH = ("bash", "--noprofile", "--norc")


def test_bash_completes_by_what_the_command_prints(tmp_path: Path) -> None:
    """As a shell does it: the script that is shown, sourced, with a qcheck on the path."""
    script, command = tmp_path / "completion.sh", tmp_path / "qcheck"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m qcheck "$@"\n')
    command.chmod(0o755)
    show = f"{shlex.quote(sys.executable)} -m qcheck --show-completion; exit $?"  # Typer asks which shell calls it
    shown = subprocess.run([*BASH, "-c", show], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    script.write_text(shown.stdout)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}  # nothing of other tests
    words = [*BASH, "-c", COMPLETE, "bash", str(script)]
    for typed, expected in (("check demo --scheme int4-g12", "int4-g128 int4-g128-int8"), ("cache pr", "prune")):
        call = [*words, "qcheck", *typed.split()]
        done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
        assert (done.stdout.split(), done.stderr) == (expected.split(), "")


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


def test_a_stage_without_units_shows_no_bar() -> None:
    stream = io.StringIO()
    for title, units in (("nothing to do", 0), ("something", 2)):
        with Bars(Console(file=stream, width=200)).stage(title, units) as advance:
            advance(units)
    assert "nothing" not in stream.getvalue()
    assert "2/2" in stream.getvalue()


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


def _command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a shell runs it."""
    call = [sys.executable, "-m", "qcheck", *words]
    return subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_disk_that_is_full_is_one_error() -> None:
    with Path("/dev/full").open("w") as full:
        call = [sys.executable, "-m", "qcheck", "targets"]
        told = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert told.returncode == 2, told.stderr
    assert "error: No space left on device" in told.stderr
    assert "Traceback" not in told.stderr
    assert "$QCHECK_CACHE" in told.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/model.onnx"), "No space left on device: '/x/model.onnx'"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "No space left on device"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "report.html"), "Permission denied: 'report.html'"),
        (OSError(errno.EROFS, "Read-only file system", "/c"), "Read-only file system: '/c'"),
    ],
)
def test_what_the_machine_refuses_is_the_users_to_mend(error: Exception, said: str) -> None:
    found = errors.of_machine(error)
    assert found is not None
    assert said in found.what
    assert "Free space" in found.fix


def test_a_bug_keeps_its_traceback() -> None:
    assert errors.of_machine(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert errors.of_machine(ValueError("no space in this list")) is None


def test_a_cache_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    told = _command("check", "demo", "--lora", "flat", "--scheme", "int8", QCHECK_CACHE=str(tmp_path / "cache"))
    assert told.returncode == 2
    assert "cannot be written: Not a directory" in " ".join(told.stderr.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "100000"), "--steps 100000: the solver refuses it"),
        (("--seed", "99999999999999999999999"), "seed"),
        (("--seed", "-1"), "--seed '-1' is none"),
        (("--seed", "random:x"), "--seed 'random:x' is none"),
        (("--ranges", "/nope"), "/nope"),
    ],
)
def test_a_number_or_a_file_that_cannot_be_is_an_error_before_anything_runs(words: tuple[str, str], said: str) -> None:
    error = run("check", "demo", "--lora", "flat", "--scheme", "int8", *words).exception
    assert isinstance(error, UserError)
    assert said in error.what


def test_ranges_that_no_scheme_reads_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "read", lambda _: None)
    error = run("check", "demo", "--lora", "flat", "--scheme", "int4-g128", "--ranges", "r.json").exception
    assert isinstance(error, UserError)
    assert "no scheme of the request (int4-g128) has inputs on fixed ranges" in error.what


def test_a_termination_leaves_nothing_half_written(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "qcheck", "check", "demo", "--lora", "flat", "--scheme", "int8", "--no-cache"]
    with subprocess.Popen([*call, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        next(line for line in running.stderr if "load base" in line)
        running.send_signal(signal.SIGTERM)
        assert "interrupted" in running.stderr.read()
        assert running.wait() == 130
    assert not list(tmp_path.iterdir())
