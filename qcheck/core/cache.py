"""Results of earlier computations: a folder for the digest of everything it depends on, complete or absent.

A run that was interrupted leaves the finished entries; the same command finds them and goes on from there. An entry has
a lock, so that one of several processes computes it while the others wait.
"""

import ast
import functools
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from qcheck.core import versions
from qcheck.core.digest import digest_of, file_digest
from qcheck.core.errors import UserError
from qcheck.core.files import read_object
from qcheck.core.values import PACKAGE

VARIABLE = "QCHECK_CACHE"
ENTRY = "entry"  # the file that marks the folder of a complete entry
_LOCKS = ".locks"
_LARGE, _DIGEST = 100_000_000, "sha256"


def moved() -> str | None:
    """The folder that the environment names instead of the user's cache folder."""
    return os.environ.get(VARIABLE) or None


def location() -> Path:
    """``qcheck`` in ``$QCHECK_CACHE``, else in the user's cache folder; nothing outside it is ever touched.

    Raises:
        UserError: there is neither, as in a container whose user has no home folder.
    """
    if folder := moved():
        return Path(folder) / "qcheck"
    try:
        return user_cache_path("qcheck", appauthor=False)
    except RuntimeError as error:
        raise UserError(
            f"there is no folder for results that are kept: {error}",
            f"Give one in ${VARIABLE}, or --no-cache.",
        ) from error


@functools.cache
def code(*modules: str) -> str:
    """The digest of what ``modules`` compute with: their code, that of qcheck which they import, and libraries.

    Docstrings and comments are no code, and of the libraries only the versions of those that are imported count.
    """
    parts, libraries = [], set[str]()
    for name, path in sorted(imported(modules).items()):
        tree = ast.parse(path.read_text("utf-8"))
        libraries |= _libraries(tree)
        parts += [name, ast.dump(_without_docstrings(tree))]
    return digest_of(*parts, repr(sorted(versions.of(libraries).items())))


def imported(roots: Sequence[str]) -> dict[str, Path]:
    """Name and file of the modules ``roots`` and, transitively, of what they import of qcheck, anywhere in them."""
    files: dict[str, Path] = {}
    pending = list(roots)
    while pending:
        name = pending.pop()
        path = _file(name)
        if path is None or name in files:
            continue
        files[name] = path
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                pending += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                pending += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return files


def _file(module: str) -> Path | None:
    """The source of a module of qcheck; None for everything else and for ``qcheck`` itself, which only offers names."""
    package, *rest = module.split(".")
    if package != PACKAGE.name or not rest:
        return None
    path = PACKAGE.joinpath(*rest)
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def _libraries(tree: ast.Module) -> set[str]:
    """Import names of the packages that a module imports, qcheck's own aside."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - {PACKAGE.name}


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """``tree`` without its docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def key(module: str, *parts: bytes | str | Path) -> str:
    """The key of what ``module`` (its ``__name__``) computes from ``parts``; a change of its code makes another key."""
    return digest_of(code(module), *parts)


def _write_digest(path: Path, folder: Path) -> None:
    (folder / _DIGEST).write_bytes(file_digest(path))


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
        """The entry's folder, or None; finding it counts as using it. One that lost files, or parts, is removed."""
        folder = self._place(kind, key)
        try:
            os.utime(folder / ENTRY)
        except FileNotFoundError:
            return None
        if _is_whole(folder):
            return folder
        _remove(folder)
        return None

    @contextmanager
    def put(self, kind: str, key: str, about: str) -> Iterator[Path]:
        """A folder to write into, which becomes the entry when the block ends well and no other run was quicker."""
        place = self._place(kind, key)
        partial = _hidden_name(place)
        partial.mkdir(parents=True)
        try:
            yield partial
            (partial / ENTRY).write_text(json.dumps({"about": about, "bytes": _sizes(partial)}), "utf-8")
            try:
                partial.rename(place)
            except OSError:
                if self.find(kind, key) is None:  # else another run's entry is as good, and may be in use
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def locked(self, kind: str, *keys: str) -> Iterator[None]:
        """Nobody else computes these entries while the block runs; whoever waited finds them when it goes on.

        Locks are taken in the order of the keys, so that two processes that want several never wait for each other.
        """
        folder = self.root / kind / _LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            for key in sorted(set(keys)):
                locks.enter_context(FileLock(folder / key))
            yield

    def obtain(self, kind: str, key: str, about: str, make: Callable[[Path], object]) -> Path:
        """The entry's folder; where it is absent ``make`` fills it first, in one of the processes that need it."""
        entry = self.find(kind, key)
        if entry is not None:
            return entry
        with self.locked(kind, key):
            if self.find(kind, key) is None:
                with self.put(kind, key, about) as folder:
                    make(folder)
        return self._place(kind, key)

    def file_digest(self, path: Path) -> bytes:
        """The SHA-256 of a file; a large one is read again only when it is another file or was changed since."""
        status = path.stat()
        if status.st_size < _LARGE:
            return file_digest(path)
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        key = digest_of(str(path.resolve()), repr(state))
        entry = self.obtain("digest", key, str(path), lambda folder: _write_digest(path, folder))
        return (entry / _DIGEST).read_bytes()

    def drop(self, kind: str, key: str) -> None:
        """Forget an entry, where there is one."""
        _remove(self._place(kind, key))

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def items(self) -> list[Item]:
        """Every entry, the least recently used first."""
        items = []
        for mark in self.root.glob(f"*/*/{ENTRY}"):
            folder = mark.parent
            with suppress(FileNotFoundError):  # removed by another run meanwhile
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                about = str(_mark(folder).get("about", ""))
                items.append(Item(folder.parent.name, about, folder, size, mark.stat().st_mtime))
        return sorted(items, key=lambda item: item.used)

    def prune(self, keep_days: float, keep_bytes: float) -> list[Item]:
        """Remove what was last used before ``keep_days`` days, then the oldest until ``keep_bytes`` are left.

        Half-written entries of runs that were killed, and locks that nobody holds, go too, once they are a day old.
        """
        now, items = time.time(), self.items()
        total, removed = sum(item.bytes for item in items), []
        for item in items:
            if max(0.0, now - item.used) >= keep_days * 86400 or total > keep_bytes:
                _remove(item.path)
                removed.append(item)
                total -= item.bytes
        for leftover in (*self.root.glob("*/.*"), *self.root.glob(f"*/{_LOCKS}/*")):
            with suppress(FileNotFoundError):
                if leftover.name != _LOCKS and now - leftover.stat().st_mtime > 86400:
                    shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
        return removed


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file of an entry, but for its mark, by its name in the entry."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / ENTRY)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _mark(folder: Path) -> dict[str, Any]:
    """What an entry says of itself; empty where it is damaged."""
    try:
        return read_object(folder / ENTRY)
    except (OSError, ValueError):
        return {}


def _is_whole(folder: Path) -> bool:
    """Whether an entry has its files in their sizes: copies, full disks and lost power make them shorter.

    Bytes that changed are not noticed: the cache is trusted.
    """
    try:
        return _sizes(folder) == _mark(folder).get("bytes")
    except OSError:  # removed by another run meanwhile
        return False


def _hidden_name(place: Path) -> Path:
    """A hidden name beside an entry, for a folder that is incomplete or about to be removed."""
    return place.with_name(f".{place.name}.{uuid.uuid4().hex}")


def _remove(place: Path) -> None:
    """Hide the entry in one step, then delete it: an interrupted removal leaves no half entry."""
    hidden = _hidden_name(place)
    with suppress(FileNotFoundError):
        place.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
