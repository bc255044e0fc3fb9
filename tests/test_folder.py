"""Output is complete or absent, and what was there before stays until it is."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from qcheck.api import functions
from qcheck.core import files
from qcheck.core import folder as folders
from qcheck.core.errors import UserError
from tests import reports
from tests.conftest import run


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"'mine.txt' is in the way"), folders.staged(tmp_path):
        pass
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("place", ["/proc/nowhere/out", "/dev/null/out"])
def test_a_place_that_cannot_be_written_is_an_error(place: str) -> None:
    with pytest.raises(UserError, match="cannot be written"), folders.staged(Path(place)):
        pass


def test_the_current_folder_can_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "empty"
    inside.mkdir()
    monkeypatch.chdir(inside)
    with folders.staged(Path()) as folder:
        (folder / "report.json").touch()
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["report.json"]


def test_a_failure_in_the_middle_leaves_no_half_written_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), folders.staged(tmp_path / "out") as folder:
        _half(folder / "report.json", RuntimeError)
    assert list(tmp_path.iterdir()) == []


def _earlier(folder: Path) -> Path:
    """A folder that an earlier run wrote."""
    (folder / "artifacts").mkdir(parents=True)
    (folder / "report.json").write_text('{"schema": "qcheck-report/1"}')
    (folder / "artifacts/old.onnx").write_text("old")
    return folder


def _half(file: Path, error: type[BaseException]) -> None:
    files.write(file, "half")
    raise error


def _tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_folder_is_taken_and_stays_the_same_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    with folders.staged(out) as folder:
        (folder / "report.json").touch()
    assert (_tree(tmp_path), out.stat().st_ino) == ({"out/report.json"}, before)


def test_an_empty_folder_is_taken_where_only_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, make = tmp_path / "out", Path.mkdir
    out.mkdir()

    def closed(self: Path, *given: Any, **more: Any) -> None:
        if self.parent == tmp_path and not self.exists():
            raise PermissionError
        make(self, *given, **more)

    monkeypatch.setattr(Path, "mkdir", closed)
    with folders.staged(out) as folder:
        (folder / "report.json").touch()
        assert folder.parent == out
    assert _tree(tmp_path) == {"out/report.json"}


def test_what_an_earlier_run_wrote_is_replaced_where_that_is_asked(tmp_path: Path) -> None:
    out = _earlier(tmp_path / "out")
    with pytest.raises(UserError, match="'artifacts' of an earlier run") as refused, folders.staged(out):
        pass
    assert "--overwrite" in str(refused.value.fix)
    with folders.staged(out, overwrite=True) as folder:
        assert _tree(out) == {"report.json", "artifacts/old.onnx"}
        (folder / "report.json").write_text("new")
    assert _tree(tmp_path) == {"out/report.json"}
    assert (out / "report.json").read_text() == "new"


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"schema": "other/1"}'])
def test_what_qcheck_did_not_write_is_never_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=r"'report\.json' is in the way"), folders.staged(tmp_path, overwrite=True):
        pass
    assert (tmp_path / "report.json").read_text() == content


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_stops_leaves_what_the_earlier_one_wrote(tmp_path: Path, stop: type[BaseException]) -> None:
    out = _earlier(tmp_path / "out")
    with pytest.raises(stop), folders.staged(out, overwrite=True) as folder:
        _half(folder / "report.json", stop)
    assert _tree(tmp_path) == {"out/report.json", "out/artifacts/old.onnx"}


@pytest.mark.parametrize("place", range(4))
def test_a_replacement_that_fails_midway_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    out, moved, move = _earlier(tmp_path / "out"), 0, shutil.move

    def failing(source: Path, target: Path) -> None:
        nonlocal moved
        moved += 1
        if moved == place + 1:
            raise OSError("disk full")
        move(source, target)

    monkeypatch.setattr(folders.shutil, "move", failing)
    with pytest.raises(OSError, match="disk full"), folders.staged(out, overwrite=True) as folder:
        _earlier(folder / "artifacts").with_name("report.json").write_text("new")
    assert _tree(tmp_path) == {"out/report.json", "out/artifacts/old.onnx"}
    assert (out / "report.json").read_text() == '{"schema": "qcheck-report/1"}'


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "ranges.json"
    with pytest.raises(RuntimeError), folders.replaced(out, False, folders.ours):
        _half(out, RuntimeError)
    assert not out.exists()
    with folders.replaced(out, False, folders.ours):
        out.write_text('{"schema": "qcheck-ranges/1"}')
    with pytest.raises(UserError, match="already"), folders.replaced(out, False, folders.ours):
        pass
    with pytest.raises(RuntimeError), folders.replaced(out, True, folders.ours):
        _half(out, RuntimeError)
    assert folders.ours(out)
    with pytest.raises(UserError, match="already"), folders.replaced(out, True, lambda _: False):
        pass
    with pytest.raises(UserError, match="is a folder"), folders.replaced(tmp_path, True, folders.ours):
        pass


class _ReachedError(Exception):
    """A command got as far as its folder."""


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("check", "demo", "--lora", "flat", "--scheme", "int8"), "flat"),
        (("demo", "ink"), "ink"),
        (("export", "demo", "--lora", "flat", "--scheme", "fp8", "--target", "jetson-thor-t5000"), "flat-fp8"),
        (("qat", "demo", "--lora", "flat", "--out", "new.v2.safetensors"), "new.v2"),
        (("advise", "report.json"), "advice"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_help_names_the_folder_that_a_command_writes(
    command: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADAPTER, SCHEME and NEW in the help stand for what was given."""
    used: list[Path] = []

    def reached(out: Path, *_: Any) -> None:
        used.append(out)
        raise _ReachedError

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(functions, "staged", reached)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.json").write_text(reports.report().to_json())
    assert isinstance(run(*command).exception, _ReachedError)
    shown = " ".join(run(command[0], "--help").output.replace("\u2502", " ").split())
    told = {"flat-fp8": "ADAPTER-SCHEME-TIME", "new.v2": "qcheck-out/NEW-TIME", "advice": "qcheck-out/advice-TIME"}
    assert told.get(named, "qcheck-out/ADAPTER-TIME") in shown
    assert re.fullmatch(rf"{re.escape(named)}-\d{{8}}-\d{{6}}", used[0].name)
    assert used[0].parent == Path("qcheck-out")


_SLOW = """
import shutil, sys
from pathlib import Path
from qcheck.core import folder

move = shutil.move
def waiting(source, target):
    move(source, target)
    print("midway", flush=True)
    sys.stdin.readline()

shutil.move = waiting
with folder.staged(Path(sys.argv[1]), overwrite=True) as partial:
    (partial / "report.json").write_text('{"schema": "qcheck-report/1"}')
"""


def test_what_a_file_of_the_same_beginning_left_is_none_of_a_folders(tmp_path: Path) -> None:
    """`qat --out out.safetensors --report out`, killed while the file was replaced."""
    file, folder = tmp_path / "out.safetensors", tmp_path / "out"
    file.write_text("whole")
    kept = folders._second_name(file)
    with folders.staged(folder) as partial:
        (partial / "report.json").touch()
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    with folders.replaced(file, True, lambda _: True):
        files.write(file, "new")
    assert (file.read_text(), kept.exists()) == ("new", True)


def test_what_killed_processes_kept_of_a_file_goes_a_day_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out.safetensors"
    file.write_text("whole")
    kept, now = folders._second_name(file), folders.time.time()
    monkeypatch.setattr(folders.time, "time", lambda: now + 2 * folders._DAY)
    with folders.replaced(file, True, lambda _: True):
        files.write(file, "new")
    assert (file.read_text(), kept.exists()) == ("new", False)


def test_what_a_running_process_replaces_is_waited_for_and_not_taken_back(tmp_path: Path) -> None:
    out = _earlier(tmp_path / "out")
    words = [sys.executable, "-c", _SLOW, str(out)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "midway\n"
        (old,) = tmp_path.glob("*.qcheck-old")
        before = _tree(old)
        ours = threading.Thread(target=_replace_by, args=(out, "ours"))
        ours.start()
        ours.join(0.3)
        waits = ours.is_alive() and _tree(old) == before
        other.communicate("\n" * 9)
    ours.join()
    assert (waits, other.returncode) == (True, 0)
    assert (_tree(tmp_path), (out / "report.json").read_text()) == ({"out/report.json"}, "ours")


def _replace_by(out: Path, text: str) -> None:
    with folders.staged(out, overwrite=True) as folder:
        (folder / "report.json").write_text(text)


def test_only_one_of_two_that_end_together_takes_an_absent_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="of an earlier run is in the way"), folders.staged(out):
        _replace_by(out, '{"schema": "qcheck-report/1"}')
    assert _tree(tmp_path) == {"out/report.json"}


@pytest.mark.parametrize("newest", ["", "artifacts/new.onnx"])
def test_what_was_written_into_today_is_not_removed(tmp_path: Path, newest: str) -> None:
    """A run of several days may write deep in its folder alone."""
    partial = tmp_path / ".out.00000000.qcheck-partial"
    _earlier(partial)
    (partial / "artifacts/new.onnx").touch()
    for path in (partial, *partial.rglob("*")):
        if path.relative_to(partial).as_posix() != newest:
            os.utime(path, (0, 0))
    with folders.staged(tmp_path / "out"):
        pass
    assert partial.exists() == bool(newest)
