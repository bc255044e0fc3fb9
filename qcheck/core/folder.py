"""Output folders: complete or absent."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcheck.core.errors import UserError


@contextmanager
def staged(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` when the block ends well and is removed when it does not.

    Raises:
        UserError: ``out`` holds something already, or cannot be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"output {str(out)!r} exists and is not an empty folder", "Give another --out, or remove it.")
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        (partial / "writable").touch()
        (partial / "writable").unlink()
    except OSError as error:
        raise UserError(
            f"output {str(out)!r} cannot be written: {error}", "Give an --out that you may write."
        ) from error
    try:
        yield partial
        shutil.rmtree(partial / "cache", ignore_errors=True)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
