"""Output folders and files: complete or absent, and the earlier content stays until the new is complete."""

import glob
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from qcheck.core import files
from qcheck.core.errors import UserError, naming


@contextmanager
def staged(out: Path, overwrite: bool = False, option: str = "--out") -> Iterator[Path]:
    """A folder to write into, whose content becomes that of ``out`` when the block ends well; else nothing changes.

    ``out`` is absent or empty, or with ``overwrite`` what qcheck wrote: that stays until the new content is complete.
    What a killed process left is taken back or completed first. Processes that replace one folder take turns.

    Raises:
        UserError: ``out`` holds something else, or cannot be written.
    """
    out = out.resolve()
    _mend(out)
    require_free(out, overwrite, option)
    partial = _partial_folder(out, option)
    try:
        with naming(out):
            yield partial
            shutil.rmtree(partial / "cache", ignore_errors=True)
            with _alone(out, partial.parent):
                if out.exists():
                    require_free(out, overwrite, option)
                    _replace(out, partial)
                else:
                    partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_free(out: Path, overwrite: bool, option: str = "--out") -> None:
    """Refuse a folder that holds something else; ``option`` is what named it.

    Raises:
        UserError: it is a file, or a file in it is in the way.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"output {str(out)!r} is a file", f"Give a folder as {option}.")
    names = sorted(path.name for path in out.iterdir() if not path.name.endswith(_OWN))
    if not names:
        return
    if not any(ours(out / name) for name in _MARKS):
        raise UserError(f"output {str(out)!r} is not empty: {names[0]!r} is in the way", f"Give another {option}.")
    if not overwrite:
        raise UserError(
            f"output {str(out)!r} is not empty: {names[0]!r} of an earlier run is in the way",
            f"Give another {option}, or --overwrite to replace what that run wrote.",
        )


def ours(path: Path) -> bool:
    """Whether it is a JSON file that qcheck wrote: each names its schema."""
    try:
        content = files.read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("schema")).startswith("qcheck-")


_PARTIAL, _OLD, _LOCK, _KEPT = _OWN = (".qcheck-partial", ".qcheck-old", ".qcheck-lock", ".qcheck-kept")
_MOVED = "moved"  # in a folder of old content: all of it is there, so a killed replacement is completed, not taken back
_DAY = 86400  # seconds
# the last: `qcheck qat --report`
_MARKS = ("report.json", "manifest.json", "advice.json", "bundle.json", "after/report.json")


def _partial_folder(out: Path, option: str) -> Path:
    """A fresh folder next to ``out``, or where only ``out`` itself may be written, as a mounted one, inside of it."""
    name = f".{out.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
    failure: OSError | None = None
    for place in _places(out):
        try:
            (place / name).mkdir(parents=True)
            (place / name / "writable").touch()
            (place / name / "writable").unlink()
        except OSError as error:
            failure = failure or error
            shutil.rmtree(place / name, ignore_errors=True)
        else:
            return place / name
    reason = failure.strerror if failure is not None else "nowhere to write"
    raise UserError(f"output {str(out)!r} cannot be written: {reason}", f"Give another {option}, that you may write.")


def _places(out: Path) -> Sequence[Path]:
    """Where content can be made that is then moved to ``out`` by its name alone."""
    if not out.is_dir():
        return (out.parent,)
    return (out,) if out.is_mount() else (out.parent, out)


@contextmanager
def _alone(out: Path, place: Path) -> Iterator[None]:
    """No other process that works in ``place`` replaces ``out``, or mends it, while the block runs."""
    file = place / f".{out.name}{_LOCK}"
    with FileLock(file):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                file.unlink()


def _replace(out: Path, partial: Path) -> None:
    """Move the content of ``out`` away and that of ``partial`` in; move both back where that fails.

    The folder itself stays: it may be a mounted one, or the one that the user is in. The files by which readers know
    it go first and come last, so that nobody reads a part of it.
    """
    old = partial.with_suffix(_OLD)
    old.mkdir()
    moves: list[tuple[Path, Path]] = []
    try:
        _move(out, old, moves, marks_first=True)
        (old / _MOVED).touch()
        _move(partial, out, moves)
    except BaseException:
        (old / _MOVED).unlink(missing_ok=True)
        for before, after in reversed(moves):
            if after.exists() and not before.exists():
                shutil.move(after, before)
        old.rmdir()
        raise
    _discard(old)


def _move(source: Path, target: Path, moves: list[tuple[Path, Path]], marks_first: bool = False) -> None:
    """Move what is in ``source`` and has no name of this module; each move is noted in ``moves`` before it is tried."""
    tops = {Path(mark).parts[0] for mark in _MARKS}
    paths = [path for path in source.iterdir() if not path.name.endswith(_OWN)]
    for path in sorted(paths, key=lambda path: ((path.name in tops) != marks_first, path.name)):
        moves.append((path, target / path.name))
        shutil.move(*moves[-1])


def _discard(old: Path) -> None:
    """Remove a folder of old content, and last that it was all there: what cannot be removed is, the next time."""
    with suppress(OSError):
        for path in sorted(old.iterdir(), key=lambda path: path.name == _MOVED):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        old.rmdir()


def _mend(out: Path) -> None:
    """Take back, or complete, what killed processes were replacing; remove a day later what they were writing."""
    for place in _places(out):
        if any(place.glob(_left(out, _OLD))):
            with _alone(out, place):  # what a running process replaces, it has finished by then
                for old in place.glob(_left(out, _OLD)):
                    _finish(old, out)
        for partial in place.glob(_left(out, _PARTIAL)):
            with suppress(FileNotFoundError):  # another process ended meanwhile
                if time.time() - _latest(partial) > _DAY:
                    shutil.rmtree(partial, ignore_errors=True)


def _left(out: Path, ending: str) -> str:
    """The pattern of what processes leave beside ``out``."""
    return f".{glob.escape(out.name)}.{'[0-9a-f]' * 8}{ending}"


def _finish(old: Path, out: Path) -> None:
    """Take back, or complete, one replacement of a killed process."""
    partial = old.with_suffix(_PARTIAL)
    if not (old / _MOVED).exists():
        _move(old, out, [])
    elif partial.exists():
        _move(partial, out, [])
    _discard(old)


def _latest(folder: Path) -> float:
    """When anything in a folder was last written, in seconds (Unix): a run of days writes deep in it."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


@contextmanager
def replaced(file: str | Path | None, overwrite: bool, known: Callable[[Path], bool]) -> Iterator[None]:
    """The block replaces ``file``, if any (``files.whole``); when it fails, the earlier file is back, without room.

    Raises:
        UserError: the file exists, and ``overwrite`` is false or ``known`` says that qcheck did not write it.
    """
    if file is None:
        yield
        return
    out = Path(file)
    if out.is_dir():
        raise UserError(f"--out {str(out)!r} is a folder", "Give the name of a file in it.")
    if out.exists() and not known(out):
        raise UserError(f"--out {str(out)!r} is there already", "Give another name, or remove it.")
    if out.exists() and not overwrite:
        raise UserError(
            f"--out {str(out)!r} is there already",
            "Give another name, or --overwrite to replace what an earlier run wrote.",
        )
    for kept in out.parent.glob(_left(out, _KEPT)):  # of processes that were killed: the file itself was whole
        with suppress(FileNotFoundError):
            if time.time() - kept.stat().st_ctime > _DAY:
                kept.unlink()
    before = _second_name(out) if out.exists() else None
    try:
        with naming(out):
            yield
    except BaseException:
        if before is None:
            out.unlink(missing_ok=True)
        else:
            before.replace(out)
        raise
    finally:
        if before is not None:
            before.unlink(missing_ok=True)


def _second_name(file: Path) -> Path:
    """The content of a file under a hidden name beside it, which stays when the file is replaced."""
    kept = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}{_KEPT}")
    try:
        kept.hardlink_to(file)
    except OSError:  # a file system without links
        try:
            shutil.copy2(file, kept)
        except BaseException:
            kept.unlink(missing_ok=True)
            raise
    return kept


def rewrite(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a finished folder anew: all of them, or where one cannot be written none."""
    with ExitStack() as stack:
        for name in contents:
            stack.enter_context(replaced(folder / name, True, lambda _: True))
        for name, content in contents.items():
            files.write(folder / name, content)


def beside(folder: Path, value: Any) -> Any:
    """A path with a slash or an ending that exists in ``folder``, ``=WEIGHT`` allowed after it; else ``value``.

    A pattern is one where ``folder`` has files for it.
    """
    path = str(value).partition("=")[0]
    local = ("/" in path or "." in path) and folder != Path.cwd()
    try:
        there = local and ((folder / path).exists() or (glob.has_magic(path) and any(folder.glob(path))))
    except (OSError, ValueError, NotImplementedError):  # no disk has such a name, and it is no pattern
        return value
    return str(folder / str(value)) if there else value
