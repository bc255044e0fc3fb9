"""The command that is printed after an outcome is whole and right: each is typed where it says, and runs."""

import json
import re
import shlex
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

from qcheck.cli.check import parse
from qcheck.report import next_command
from qcheck.result import store
from tests import reports
from tests.conftest import Finished, run

# Two probes decide on survival alone, so that an outcome is known beforehand.
LIMITS = """
grounds = "a test"
looks = [2]
alpha = 0.4
negligible_effect = 0.0001
tail = [-1e6, 1e6]
bad_share = 0.1

[[gates]]
name = "effect_survival"
arm = "adapted"
role = "adapter"
low = 0.5
high = 1.5
"""
LOST = ("demo", "--lora", "faint", "--scheme", "int4-g128", "--order", "quantize-merge", "--limits", "survival.toml")
SMALL = ("--steps", "4", "--no-build", "--threads", "1")


def printed(output: str, label: str) -> list[str]:
    """The words of the one command after ``label``, of a ``cd`` before it too."""
    (found,) = re.findall(rf"^{label}:? +((?:cd \S+ && )?qcheck .*)$", output, re.MULTILINE)
    return shlex.split(found)


def in_markdown(folder: Path) -> list[str]:
    """The words of the command that report.md shows as the next."""
    found = re.search(r"^Next, in the folder of the report:\n\n    (.*)$", (folder / "report.md").read_text(), re.M)
    assert found is not None
    return shlex.split(found[1])


def on_the_page(folder: Path) -> list[str]:
    """The words of the command that report.html shows as the next."""
    found = re.search(r"<h3>Next</h3>\s*<pre[^>]*><code>(.*?)</code>", (folder / "report.html").read_text(), re.S)
    assert found is not None
    return shlex.split(unescape(found[1]))


@dataclass(frozen=True)
class Lost:
    """A check whose order loses the adapter, and the folder that it was typed in."""

    place: Path
    folder: Path
    output: str


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    place = tmp_path_factory.mktemp("lost")
    (place / "survival.toml").write_text(LIMITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = run("check", *LOST, *SMALL, "--out", "out")
    assert result.exit_code == 1, result.output
    assert store.read(place / "out").cases[0].verdict == "NEEDS-QAT"
    return Lost(place, place / "out", result.stdout)


@pytest.fixture(scope="module")
def cured(lost: Lost) -> str:
    """What ``qcheck advise`` printed, typed as the check said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lost.place)
        result = run(*printed(lost.output, "next")[1:], "--threads", "1")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_after_needs_qat_it_is_advice(lost: Lost, cured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(lost.output, "next") == ["qcheck", "advise", "out"]
    assert "cure: order" in cured
    assert in_markdown(lost.folder) == on_the_page(lost.folder) == ["qcheck", "advise", "."]
    monkeypatch.chdir(lost.folder)
    assert run("advise", ".", "--threads", "1").exit_code == 0


def test_after_a_cure_it_is_the_export(lost: Lost, cured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, folder, then, *words = printed(cured, "next")
    assert (change, then, words[:2], words[-2:]) == ("cd", "&&", ["qcheck", "export"], ["--out", "board"])
    monkeypatch.chdir(lost.place)
    monkeypatch.chdir(folder)
    result = run(*words[1:])
    assert result.exit_code == 0, result.output
    (case,) = json.loads(Path("advice.json").read_text())["cases"]
    assert Path("board/unet/model.onnx").stat().st_size == pytest.approx(case["tried"][case["cure"]]["bytes"], rel=0.01)


def test_a_cure_can_be_checked_again(lost: Lost, cured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, folder, then, *words = printed(cured, "check it again")
    assert (change, then) == ("cd", "&&")
    monkeypatch.chdir(lost.place)
    monkeypatch.chdir(folder)
    (case,) = json.loads(Path("advice.json").read_text())["cases"]
    assert run(*words[1:]).exit_code == 0
    (audited,) = re.findall(r"^then audit that report: qcheck (audit .*)$", cured, re.MULTILINE)
    monkeypatch.chdir(lost.place)
    assert run(*shlex.split(audited)).exit_code == 0
    (again,) = store.read(Path(shlex.split(audited)[1])).cases
    assert again["effect_survival"].value == case["tried"][case["cure"]]["survival"]


def test_after_a_pass_it_is_the_export_of_what_passed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = printed(finished.result.stdout, "next")
    assert words[:2] == ["qcheck", "export"]
    assert in_markdown(finished.folder) == on_the_page(finished.folder) == words
    monkeypatch.chdir(tmp_path)
    result = run(*words[1:], "--no-build")
    assert result.exit_code == 0, result.output
    judged = json.loads((finished.folder / "artifacts" / "int8" / "merge-quantize" / "manifest.json").read_text())
    exported = json.loads((tmp_path / "board" / "manifest.json").read_text())["denoiser"]
    assert exported["layers"] == judged["layers"]
    assert exported["order"] == judged["order"] == "merge-quantize"


def test_after_qat_it_is_the_check_against_what_was_calibrated(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lost.place)
    short = ("--train-steps", "1", "--every", "1", "--report", "reports", "--out", "new.safetensors")
    result = run("qat", *LOST, *SMALL, *short)
    assert result.exit_code in (0, 1), result.output
    words = printed(result.stdout, "check it again")
    assert words[words.index("--lora") + 1].endswith("new.safetensors")
    assert words[words.index("--reference-lora") + 1] == "faint"
    assert run(*words[1:], "--out", "again").exit_code == result.exit_code
    after, again = store.read(lost.place / "reports" / "after"), store.read(lost.place / "again")
    assert again.spec == after.spec
    assert again.cases[0].measurements == after.cases[0].measurements


def test_after_an_adapter_that_is_broken_itself_it_is_a_look_at_it() -> None:
    found = next_command.next_command(reports.report(reports.case(verdict="FAIL-ADAPTER")))
    assert found is not None
    result = run(*shlex.split(found)[1:])
    assert result.exit_code == 0, result.output


def test_after_a_builder_that_crashed_it_is_the_same_check_without_the_build() -> None:
    crashed = {"builder": "B", "capability": "8.6", "proxy": True, "status": "crashed", "detail": "killed"}
    report = reports.report(reports.case(verdict="INVALID", builds=[crashed]))
    found = next_command.next_command(report)
    assert found is not None
    assert parse(shlex.split(found)[2:]) == report.spec.changed(
        execution=report.spec.execution.model_copy(update={"build": False})
    )
    assert next_command.next_command(reports.report(reports.case(verdict="INVALID"))) is None
