"""Every output is whole or not there: faults at every call that writes, and kills in it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import injector

pytestmark = pytest.mark.skipif(injector.compiler() is None, reason="needs Linux and a C compiler")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: the writers wait for the disk at every file."""
    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder below it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


def _broken(folder: Path, *modes: str) -> list[str]:
    """What the writers say when each of their calls fails in those modes; the last line counts."""
    words = [sys.executable, "-W", "ignore", "-m", "tests.crash.writers", str(folder), *modes]
    ended = subprocess.run(words, env=injector.environment(folder), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_whatever_fails_the_earlier_content_or_the_new_one_is_there(folder: Path) -> None:
    *wrong, count = _broken(folder, "FULL", "KILL")
    assert not wrong, "\n".join(wrong)
    assert int(count.split()[2]) > 300


@pytest.mark.slow  # the same with calls that fail once, and with writes that are cut
def test_in_every_mode(folder: Path) -> None:
    *wrong, _ = _broken(folder)
    assert not wrong, "\n".join(wrong)
