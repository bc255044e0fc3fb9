"""Work in a forked process, one of whose writing calls fails, or in which the process is killed (``faults.c``).

The library is preloaded, so the process that forks is started with ``environment``; it imports all that is needed once.
"""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from qcheck.core.errors import UserError, of_machine
from qcheck.device.errors import CannotVerify

SOURCE = Path(__file__).parent / "faults.c"


class Mode(IntEnum):
    """What happens at the call: it fails, it and all later ones that take room fail, half is written, or a kill."""

    ONCE = 0
    FULL = 1
    SHORT = 2
    KILL = 3


@dataclass(frozen=True)
class Fault:
    """The fault at the call of that ``number``, from 1; 0 is none."""

    number: int
    mode: Mode
    error: int = errno.ENOSPC


NONE = Fault(0, Mode.ONCE)
ERRORS = {Mode.FULL: errno.ENOSPC, Mode.ONCE: errno.EIO, Mode.SHORT: 0, Mode.KILL: 0}


def faults(calls: int, modes: Collection[Mode] = tuple(Mode)) -> Iterator[Fault]:
    """A fault of each mode at every call."""
    for number in range(1, calls + 1):
        for mode in modes:
            yield Fault(number, mode, ERRORS[mode])


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") if sys.platform == "linux" else None


def environment(folder: Path) -> dict[str, str]:
    """Variables of a process that can make its children's calls fail; the library is built into ``folder``."""
    library = folder / "faults.so"
    subprocess.run([compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


@dataclass(frozen=True)
class Ended:
    """How work ended: its ``result``, or the ``error``, whose traceback is ``detail``; killed, it says neither.

    ``told`` says that the command line shows it as one error; ``calls`` is the number of the work's writing calls.
    """

    result: Any = None
    error: str = ""
    told: bool = False
    detail: str = ""
    calls: int = 0
    killed: bool = False


def attempt(work: Callable[[], Any], root: Path, fault: Fault, log: Path | None = None) -> Ended:
    """Do ``work`` in a child whose calls below ``root`` are counted, into ``log`` by name and path.

    The ``result`` is JSON.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        answer = _worked(work, root, fault, log)
        with os.fdopen(writing, "w") as stream:
            json.dump(answer, stream)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return Ended(**json.loads(text)) if text else Ended(killed=True)


def _worked(work: Callable[[], Any], root: Path, fault: Fault, log: Path | None) -> Mapping[str, Any]:
    library = ctypes.CDLL(None)
    trace = -1 if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    library.faults_arm(str(root).encode(), ctypes.c_long(fault.number), int(fault.mode), fault.error, trace)
    try:
        answer: dict[str, Any] = {"result": work()}
    except BaseException as error:  # noqa: BLE001 - the parent is told
        told = isinstance(error, UserError | CannotVerify) or (
            isinstance(error, Exception) and of_machine(error) is not None
        )
        answer = {"error": f"{type(error).__name__}: {error}", "told": told, "detail": traceback.format_exc()}
    finally:
        calls = library.faults_count()
        library.faults_arm(b"", ctypes.c_long(0), 0, 0, -1)
    return {**answer, "calls": calls}


def tree(folder: Path) -> dict[str, bytes]:
    """The files below ``folder`` that a user sees, by name; hidden ones are leftovers and locks."""
    names: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if not any(part.startswith(".") or part.endswith(".partial") for part in name.parts):
            with suppress(IsADirectoryError):
                names[name.as_posix()] = path.read_bytes()
    return names


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders below ``folder``, apart from locks."""
    names = [path.relative_to(folder) for pattern in (".*", "*.partial") for path in folder.rglob(pattern)]
    return sorted(name.as_posix() for name in names if ".locks" not in name.parts)
