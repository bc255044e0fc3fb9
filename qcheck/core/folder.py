"""Output folders and files: complete or absent, and the earlier content stays until the new is complete."""

import glob
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qcheck.core import files
from qcheck.core.errors import UserError


@contextmanager
def staged(out: Path, overwrite: bool = False, option: str = "--out") -> Iterator[Path]:
    """A folder to write into, whose content becomes that of ``out`` when the block ends well; else nothing changes.

    ``out`` is absent or empty, or with ``overwrite`` what qcheck wrote: that stays until the new content is complete.

    Raises:
        UserError: ``out`` holds something else, or cannot be written.
    """
    out = out.resolve()
    require_free(out, overwrite, option)
    partial = _partial_folder(out, option)
    try:
        yield partial
        shutil.rmtree(partial / "cache", ignore_errors=True)
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
    names = sorted(path.name for path in out.iterdir() if not path.name.endswith(_PARTIAL))
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


_PARTIAL, _OLD = ".qcheck-partial", ".qcheck-old"
# the last: `qcheck qat --report`
_MARKS = ("report.json", "manifest.json", "advice.json", "bundle.json", "after/report.json")


def _partial_folder(out: Path, option: str) -> Path:
    """A fresh folder next to ``out``, or where only ``out`` itself may be written, as a mounted one, inside of it."""
    name = f".{out.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
    failure: OSError | None = None
    for place in (out.parent, out) if out.exists() else (out.parent,):
        try:
            (place / name).mkdir(parents=True)
            (place / name / "writable").touch()
            (place / name / "writable").unlink()
        except OSError as error:
            failure = failure or error
        else:
            return place / name
    reason = failure.strerror if failure is not None else "nowhere to write"
    raise UserError(f"output {str(out)!r} cannot be written: {reason}", f"Give another {option}, that you may write.")


def _replace(out: Path, partial: Path) -> None:
    """Move the content of ``out`` away and that of ``partial`` in; move both back where that fails.

    The folder itself stays: it may be a mounted one, or the one that the user is in.
    """
    old = partial.with_suffix(_OLD)
    old.mkdir()
    moves: list[tuple[Path, Path]] = []
    try:
        for source, destination in ((out, old), (partial, out)):
            for path in sorted(source.iterdir()):
                if not path.name.endswith((_PARTIAL, _OLD)):
                    moves.append((path, destination / path.name))
                    shutil.move(*moves[-1])
    except BaseException:
        for before, after in reversed(moves):
            if after.exists() and not before.exists():
                shutil.move(after, before)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replaced(file: str | Path | None, overwrite: bool, known: Callable[[Path], bool]) -> Iterator[None]:
    """The block writes ``file``, if any; when the block fails, the earlier content of the file is restored.

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
    before = out.read_bytes() if out.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            out.unlink(missing_ok=True)
        else:
            out.write_bytes(before)
        raise


def beside(folder: Path, value: Any) -> Any:
    """A path with a slash or an ending that exists in ``folder``, ``=WEIGHT`` allowed after it; else ``value``.

    A pattern is one where ``folder`` has files for it.
    """
    path = str(value).partition("=")[0]
    local = ("/" in path or "." in path) and folder != Path.cwd()
    there = local and ((folder / path).exists() or (glob.has_magic(path) and any(folder.glob(path))))
    return str(folder / str(value)) if there else value
