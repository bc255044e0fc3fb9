"""Every command that the documentation shows is one that works.

Scripts of pages run in bash, in a folder of small things. What is light runs whole. What computes for long runs up to
its task, with all of its options checked; ``TASKS`` names the test in which that task runs for real. What this machine
cannot run is listed, with the reason. A command that is none of these fails.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import re
import subprocess
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qcheck.cli.app import app
from qcheck.core.errors import UserError
from qcheck.core.values import PACKAGE
from qcheck.device import options as board_options
from tests import documented, workshop
from tests.conftest import Finished
from tests.documented import Asked

ROOT = PACKAGE.parent
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
]
PAGES += [ROOT / "examples" / "README.md"]

TASKS = {  # what computes for long: the test below tests/ that runs it for real
    "qcheck.tasks.check.check": "cli/test_cli.py::test_a_demo_check_ends_in_files_and_a_verdict",
    "qcheck.tasks.export.export": "test_export.py::test_the_layout_is_optimums",
    "qcheck.tasks.bundle.bundle": "device/test_bundle.py::test_the_bundle_is_small_whole_and_says_what_it_is",
    "qcheck.device.main.run": "device/test_bundle.py::test_the_way_back_gives_one_report",
    "qcheck.tasks.advise.advise": "test_advise.py::test_no_cure_is_exit_1_and_a_list_alone_is_0",
    "qcheck.tasks.qat.calibrate": "test_next.py::test_after_qat_it_is_the_check_against_what_was_calibrated",
    "qcheck.tasks.calibrate.calibrate": "test_calibrate.py::test_ranges_of_all_methods_are_written_and_taken_back",
    "qcheck.tasks.executors.local": "sweep/test_sweep.py::test_a_corrupt_adapter_is_a_row_and_the_others_have_verdicts",
    "qcheck.tasks.executors.on_ray": "sweep/test_workers.py::test_a_worker_that_is_stopped_changes_nothing",
    "qcheck.tasks.pictures.judge": "test_pictures.py::test_a_style_that_is_kept_passes_and_one_that_is_lost_does_not",
    "qcheck.tasks.attribute.attribute": "test_attribution.py::test_the_command_gives_json",
}
ABSENT = {  # what this machine cannot run
    "curl": "no ComfyUI listens here",
    "gh": "no pull request",
    "kill": "no training runs here",
    "model-explorer": "a viewer, in a browser",
    "model_signing": "not installed: no part of qcheck rests on it",
    "pip-audit": "it asks a service for advisories",
    "podman": "no container engine",
    "ray": "no cluster",
    "scp": "no board",
    "ssh": "no board",
}
ABSENT_MODULES = {"benchmarks.fuzz": "atheris", "build": "build"}  # a module, and the package without which it is none
ARGUMENTS = {"benchmarks.shapes": 2, "tests.crash.writers": 1}  # of modules without a parser; any other takes none
NAMES = {"benchmarks.crashes": "export"}  # what NAME stands for; of any other a pipeline's
STAND_INS = {
    **dict.fromkeys(("BASE", "B"), "demo"), **dict.fromkeys(("L", "L*"), "flat"), "S": "int8", "NAME": "general",
    **dict.fromkeys(("FOLDER", "REPORT"), "report"), "RUN_FOLDER": "runs/style", "FILE.onnx": "model.onnx",
    "F0": "base", "F1": "lora", "Q1": "lora-q4", "compare A": "first", "compare B": "second",
    "qat NEW": "new.safetensors",    "targets NAME": "jetson-agx-orin-64gb", "inspect base/": "demo",
}  # fmt: skip


class Reached(Exception):  # noqa: N818 - no error: the command came to its task
    """All of a command's input is good."""


# What a command is answered


def _qcheck(asked: Asked, finished: Finished) -> tuple[int, str]:
    """Exit code and output of a command; after its task was reached, what it writes is there."""
    with contextlib.chdir(asked.folder):
        result = CliRunner().invoke(app, asked.words[1:], env=asked.environment, prog_name="qcheck")
    if isinstance(result.exception, Reached):
        for name in workshop.written(asked.words):
            workshop.prepare(name, asked.folder, finished)
        return 0, ""
    if isinstance(result.exception, UserError):
        return 2, f"{result.exception.what} {result.exception.fix}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def _pip(words: Sequence[str]) -> str:
    """What of an installation is not there: an extra, or a file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    extras = [extra for word in words for one in re.findall(r"\[([\w,]+)\]$", word) for extra in one.split(",")]
    files = [word for word in words if word.endswith(".txt") and not (ROOT / Path(word).name).exists()]
    return " ".join([*(extra for extra in extras if extra not in {*project, "default"}), *files])  # the last: of ray


def _make(words: Sequence[str]) -> str:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    return " ".join(word for word in words if word not in targets)


def _module(name: str, words: Sequence[str]) -> str:
    """What the parser of a module says of its arguments; the module's work is not done."""
    if name == "pytest":
        return _pytest(words)
    if name in ABSENT_MODULES and not _is_installed(ABSENT_MODULES[name]):
        return ""
    given = [NAMES.get(name, "pair") if word == "NAME" else STAND_INS.get(word, word) for word in words]
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    if not callable(getattr(module, "main", None)):
        assert "__main__" in Path(str(module.__file__)).read_text("utf-8"), name
        return "" if len(given) in {0, ARGUMENTS.get(name, 0)} else f"{name} takes other arguments"
    parse, said = argparse.ArgumentParser.parse_args, io.StringIO()

    def parsed(parser: argparse.ArgumentParser, *_: object) -> None:
        parse(parser, given)
        raise Reached

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        try:
            module.main()
        except Reached:
            return ""
        except SystemExit:
            return said.getvalue()
    return f"{name} parses nothing"


def _is_installed(package: str) -> bool:
    """Whether there is code of that name: a folder alone, such as build/, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _pytest(words: Sequence[str]) -> str:
    return " ".join(
        word for word in words if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists()
    )


def _python(words: Sequence[str]) -> str:
    if words[0] == "-m":
        return _module(words[1], words[2:])
    if words[0] == "-c":
        ast.parse(words[1])
        return ""
    if words[0].endswith("verify.pyz"):
        board_options.parser().parse_args(words[1:])
        return ""
    return "" if (ROOT / words[0]).is_file() else f"no {words[0]}"


CHECKED = {"pip": _pip, "make": _make, "python": _python, "python3": _python, "pytest": _pytest}


def _answer(asked: Asked, finished: Finished) -> tuple[int, str]:
    """Exit code and text of a command: 2 where it is wrong, 127 where nobody knows it."""
    name, *words = asked.words
    if name == "qcheck":
        return _qcheck(asked, finished)
    if inner := documented.within(asked.words):
        code, text = _qcheck(Asked(inner, asked.folder, asked.environment), finished)
        if code or name not in ABSENT:
            return code, text
    if name in CHECKED:
        wrong = CHECKED[name](words)
        return 2 if wrong else 0, wrong
    return (0, "") if name in ABSENT else (127, f"no test knows {name}")


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that commands came to, instead of running; and a watch that is interrupted at its first rest."""
    reached: list[str] = []

    def stop(name: str) -> Callable[..., None]:
        def task(*_: object, **__: object) -> None:
            reached.append(name)
            raise Reached

        return task

    for name in TASKS:
        module, _, function = name.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), function, stop(name))

    def rest(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qcheck.cli.watch.time", type("Clock", (), {"sleep": staticmethod(rest), "time": time.time}))
    return reached


def _faults(page: Path, place: Path, finished: Finished) -> list[str]:
    """Commands of a page's script that are wrong or that nobody knows, and what bash complains of."""
    text, wrong = documented.script(page), list[str]()
    workshop.furnish(page, text, place / "here", finished)
    subprocess.run(["git", "init", "--quiet", str(place / "here")], check=True)

    def answer(asked: Asked) -> tuple[int, str]:
        code, said = _answer(asked, finished)
        if code in (2, 127):
            wrong.append(f"{' '.join(asked.words)}: {said}")
        return code, said

    complaints = documented.run(text, place / "here", answer)
    return [*wrong, *complaints.splitlines()]


SCRIPTS = [page for page in PAGES if documented.script(page)]


@pytest.mark.parametrize("page", SCRIPTS, ids=lambda page: page.stem)
def test_what_a_page_types_works(page: Path, tmp_path: Path, finished: Finished) -> None:
    assert _faults(page, tmp_path, finished) == []


def _stand_in(words: Sequence[str]) -> list[str]:
    """The words of a command that the text names, with something small for what stands in capitals."""
    return [words[0], *(STAND_INS.get(f"{words[1]} {word}", STAND_INS.get(word, word)) for word in words[1:])]


def _mistaken(words: Sequence[str], place: Path, finished: Finished) -> str:
    """What is wrong with a command that the text names; it may leave out what the command needs."""
    whole = _stand_in(words) if words[0] == "qcheck" else list(words)
    workshop.furnish(ROOT / "SECURITY.md", " ".join(whole), place, finished)
    code, said = _answer(Asked(tuple(whole), place, {}), finished)
    unfinished = words[0] == "qcheck" and re.search(r"Missing|requires an argument", said)
    return said if code in (2, 127) and not unfinished else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_text_of_a_page_names_works(page: Path, tmp_path: Path, finished: Finished) -> None:
    named = dict.fromkeys(map(tuple, documented.mentions(page)))
    wrong = {" ".join(one): _mistaken(one, tmp_path / str(n), finished) for n, one in enumerate(named)}
    assert {command: said for command, said in wrong.items() if said} == {}


@pytest.mark.parametrize("test", TASKS.values())
def test_what_computes_for_long_runs_in_a_test_that_exists(test: str) -> None:
    path, _, name = test.partition("::")
    nodes = ast.walk(ast.parse((ROOT / "tests" / path).read_text("utf-8")))
    assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("qcheck check demo --lora flat --scheme int9", "int8"),
        ("qcheck check demo --lora flat --steps many", "many"),
        ("qcheck schemes --targets x", "targets"),
        ("qcheck compare baseline nowhere", "nowhere"),
        ("podman run qcheck-edge check demo --lora flat --scheme int9", "int8"),
        ("ray job submit -- qcheck sweep demo --lora flat --schemes int8 --out x", "schemes"),
        ("make tests", "tests"),
        ("pip install -e '.[hosts]' -c constraint.txt", "hosts constraint.txt"),
        ("python -m benchmarks.sweep fleet --adapter-count 2", "adapter-count"),
        ("python -m tools.docs_tables now", "other arguments"),
        ("docker run x", "no test knows docker"),
        ("cp nowhere here", "nowhere"),
        ("qcheck targets || (", "syntax error"),
    ],
)
def test_a_command_that_is_wrong_or_unknown_is_noticed(
    typed: str, said: str, tmp_path: Path, finished: Finished
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```console\n$ {typed}\n```\n")
    assert said in " ".join(_faults(page, tmp_path, finished))
