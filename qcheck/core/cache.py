"""What was computed once: folders found by the digest of everything they depend on, complete or absent.

A run that was interrupted leaves the finished entries; the same command finds them and goes on from there.
"""

import ast
import functools
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qcheck.core import versions
from qcheck.core.digest import digest_of
from qcheck.core.values import PACKAGE

VARIABLE = "QCHECK_CACHE"
COMPUTING = ("qcheck.tasks.work", "qcheck.calibrate.inputs", "qcheck.build.gate")  # what they import makes all entries
ENTRY = "entry"  # how an entry's folder is told from the shelves above it


def moved() -> str | None:
    """The folder that the environment names instead of the user's cache folder."""
    return os.environ.get(VARIABLE) or None


def location() -> Path:
    """``qcheck`` in ``$QCHECK_CACHE``, else in the user's cache folder; nothing outside it is ever touched."""
    if chosen := moved():
        return Path(chosen) / "qcheck"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcheck"


@functools.cache
def code(*roots: str) -> str:
    """The digest of the modules ``roots``, of all of qcheck's that they import, and of the libraries' versions."""
    named = [part for name, path in sorted(imported(roots).items()) for part in (name, path)]
    return digest_of(*named, repr(sorted(versions.versions().items())))


def imported(roots: Sequence[str]) -> dict[str, Path]:
    """Name and file of the modules ``roots`` and, transitively, of what they import of qcheck, anywhere in them."""
    found: dict[str, Path] = {}
    left = list(roots)
    while left:
        name = left.pop()
        path = _file(name)
        if path is None or name in found:
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                left += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                left += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _file(module: str) -> Path | None:
    """The source of a module of qcheck; None for everything else."""
    package, *rest = module.split(".")
    if package != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*rest)
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


@dataclass(frozen=True)
class Item:
    """One stored entry: its kind, what it holds in words, size, and the time of its last use (seconds, Unix)."""

    kind: str
    about: str
    path: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class Cache:
    """Entries below ``root``, one folder each: ``<kind>/<key>/``."""

    root: Path

    def find(self, kind: str, key: str) -> Path | None:
        """The entry's folder, or None; finding it counts as using it."""
        folder = self._place(kind, key)
        try:
            os.utime(folder / ENTRY)
        except FileNotFoundError:
            return None
        return folder

    @contextmanager
    def put(self, kind: str, key: str, about: str) -> Iterator[Path]:
        """A folder to write into, which becomes the entry when the block ends well and no other run was quicker."""
        place = self._place(kind, key)
        partial = _aside(place)
        partial.mkdir(parents=True)
        try:
            yield partial
            (partial / ENTRY).write_text(about, "utf-8")
            with suppress(OSError):  # the other run's entry is as good, and may be in use
                partial.rename(place)
            if self.find(kind, key) is None:
                raise OSError(f"{place} could not be written")
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def obtain(self, kind: str, key: str, about: str, make: Callable[[Path], object]) -> Path:
        """The entry's folder; where it is absent ``make`` fills it first."""
        found = self.find(kind, key)
        if found is None:
            with self.put(kind, key, about) as folder:
                make(folder)
            found = self._place(kind, key)
        return found

    def drop(self, kind: str, key: str) -> None:
        """Forget an entry, where there is one."""
        _remove(self._place(kind, key))

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def items(self) -> list[Item]:
        """Every entry, the least recently used first."""
        found = []
        for mark in self.root.glob(f"*/*/{ENTRY}"):
            folder = mark.parent
            with suppress(FileNotFoundError):  # removed by another run meanwhile
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                found.append(Item(folder.parent.name, mark.read_text("utf-8"), folder, size, mark.stat().st_mtime))
        return sorted(found, key=lambda item: item.used)

    def prune(self, keep_days: float, keep_bytes: float) -> list[Item]:
        """Remove what was last used before ``keep_days`` days, then the oldest until ``keep_bytes`` are left.

        Half-written entries of runs that were killed go too, once they are a day old.
        """
        now, items = time.time(), self.items()
        total, removed = sum(item.bytes for item in items), []
        for item in items:
            if now - item.used >= keep_days * 86400 or total > keep_bytes:
                _remove(item.path)
                removed.append(item)
                total -= item.bytes
        for partial in self.root.glob("*/.*"):
            with suppress(FileNotFoundError):
                if now - partial.stat().st_mtime > 86400:
                    shutil.rmtree(partial, ignore_errors=True)
        return removed


def _aside(place: Path) -> Path:
    """A hidden name beside an entry, for what is not yet or no longer one."""
    return place.with_name(f".{place.name}.{uuid.uuid4().hex}")


def _remove(place: Path) -> None:
    """Out of sight in one step, then gone: an interrupted removal leaves no half entry."""
    gone = _aside(place)
    with suppress(FileNotFoundError):
        place.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def key(*parts: bytes | str | Path) -> str:
    """The key of what is computed from ``parts`` by this code.

    Code that only reads what was computed is not in it; a module that keeps entries of its own and is not imported by
    ``COMPUTING`` adds ``code(__name__)`` to the parts.
    """
    return digest_of(code(*COMPUTING), *parts)
