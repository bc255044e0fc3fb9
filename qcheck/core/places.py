"""Files below a place that several processes and machines share: a folder, or a URL that fsspec knows.

Each file is there whole or not at all. Names are relative to the place, with slashes.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from qcheck.core import files
from qcheck.core.errors import UserError, install

_WORK, _LOCKS, _DAY = ".work-", ".locks", 86400


class Files(Protocol):
    """Files below one place, which ``str`` names."""

    def names(self) -> list[str]:
        """What is directly in the place; empty where there is none."""
        ...

    def size(self, name: str) -> int | None:
        """The bytes of a file; None where it is not there."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: it is not there.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of an earlier one."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def work(self) -> Any:
        """A context manager that gives a local folder to write into, removed when the block ends."""
        ...

    def move(self, folder: Path, name: str) -> None:
        """Move a ``folder`` below ``work`` here, in place of an earlier one."""
        ...

    def claim(self, name: str) -> Any:
        """A context manager that gives whether nobody else holds the name meanwhile."""
        ...

    def tidy(self) -> None:
        """Remove what processes that were killed have left, once nobody writes to it any more."""
        ...


class Folder:
    """A folder of this machine, or one that machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        """The folder."""
        return str(self.root)

    def names(self) -> list[str]:
        """As ``Files.names``; a file in place of the folder is its own name."""
        if self.root.is_file():
            return [self.root.name]
        return sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []

    def size(self, name: str) -> int | None:
        """As ``Files.size``."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """As ``Files.read``."""
        return files.read_bytes(self.root / name)

    def write(self, name: str, content: bytes) -> None:
        """As ``Files.write``, even where power is lost."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)

    def remove(self, name: str) -> None:
        """As ``Files.remove``."""
        (self.root / name).unlink(missing_ok=True)

    @contextmanager
    def work(self) -> Iterator[Path]:
        """As ``Files.work``, on the place's own file system."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=self.root) as name:
            yield Path(name)

    def move(self, folder: Path, name: str) -> None:
        """As ``Files.move``."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = folder.with_name(f"{folder.name}.earlier")  # removed with the folder of work
        if path.exists():
            path.rename(earlier)
        try:
            folder.rename(path)
        except BaseException:
            if earlier.exists():
                earlier.rename(path)
            raise

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """As ``Files.claim``, by a lock that ends with the process."""
        folder = self.root / _LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def tidy(self) -> None:
        """As ``Files.tidy``: half-written work of a day ago."""
        for path in self.root.glob(f"{_WORK}*"):
            with suppress(FileNotFoundError):  # its process ended meanwhile
                if time.time() - path.stat().st_mtime > _DAY:
                    shutil.rmtree(path, ignore_errors=True)


class Remote:
    """A place that fsspec knows: S3, GCS, Azure, SFTP and more. Nobody can claim a name there.

    Raises:
        UserError: no such kind of place, or its library is missing.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._files, self._root = _filesystem(url)
        self._folders = set[str]()

    def __reduce__(self) -> tuple[type["Remote"], tuple[str]]:
        """Pickled by its URL: another process, or machine, connects by itself."""
        return Remote, (self._url,)

    def __str__(self) -> str:
        """The URL."""
        return self._url

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Each kind of place has errors of its own: no rights, no connection, no bucket."""
        try:
            yield
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise UserError(f"{self._url!r} does not answer: {reason}", "Check the URL and its credentials.") from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """As ``Files.names``."""
        self._files.invalidate_cache()
        with self._reached():
            try:
                paths = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)

    def size(self, name: str) -> int | None:
        """As ``Files.size``; listings of other processes' files are not kept."""
        self._files.invalidate_cache()
        with self._reached():
            try:
                about = self._files.info(self._path(name))
            except FileNotFoundError:
                return None
        return int(about["size"]) if about["type"] == "file" else None

    def read(self, name: str) -> bytes:
        """As ``Files.read``."""
        content: bytes = self._files.cat_file(self._path(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """As ``Files.write``: by fsspec's transaction, which ends in one request, or in one move."""
        path = self._path(name)
        with self._reached():
            self._require_folder(path.rsplit("/", 1)[0])
            with self._files.transaction, self._files.open(path, "wb") as stream:
                stream.write(content)

    def _require_folder(self, path: str) -> None:
        """Make the place's folder and those below: not its parents, of which the first may be a bucket."""
        if path in self._folders or "/" not in path.strip("/"):
            return
        if path != self._root.rstrip("/"):
            self._require_folder(path.rsplit("/", 1)[0])
        with suppress(FileExistsError):
            self._files.mkdir(path, create_parents=False)
        self._folders.add(path)

    def remove(self, name: str) -> None:
        """As ``Files.remove``."""
        if self.size(name) is not None:
            self._files.rm_file(self._path(name))

    @contextmanager
    def work(self) -> Iterator[Path]:
        """As ``Files.work``."""
        with tempfile.TemporaryDirectory(prefix="qcheck-") as name:
            yield Path(name)

    def move(self, folder: Path, name: str) -> None:
        """As ``Files.move``; its files come one after another."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.write(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """As ``Files.claim``: always."""
        yield True

    def tidy(self) -> None:
        """As ``Files.tidy``: nothing is left there."""


def at(place: str | Path) -> Files:
    """The files of a folder or of a URL.

    Raises:
        UserError: no such kind of URL, or its library is missing.
    """
    text = str(place)
    if isinstance(place, Path) or "://" not in text:
        return Folder(Path(text).resolve())
    return Folder(Path(text.removeprefix("file://")).resolve()) if text.startswith("file://") else Remote(text)


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise UserError(f"{url!r}: fsspec is not installed", f"Install it, {install('host')}") from error
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UserError(f"{url!r} cannot be opened: {error}", "Give a folder, or install what it needs.") from error
