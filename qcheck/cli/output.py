"""The output folder: complete or absent."""

import datetime
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from qcheck.cli import log
from qcheck.cli.progress import Bars
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress, Silent
from qcheck.spec.check import Job


def default(adapter: str) -> Path:
    """``qcheck-out/<adapter>-<time>``."""
    return Path("qcheck-out") / f"{Path(adapter).stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


@contextmanager
def interruptible(keeps: bool) -> Iterator[None]:
    """Ctrl-C inside the block says what becomes of the work, and exits 130."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "What was finished is kept: run the same command again to go on." if keeps else "Nothing was kept."
        Console(stderr=True).print(f"[bold]interrupted.[/] {kept}")
        raise typer.Exit(130) from None


@contextmanager
def session(job: Job, silent: bool, file: Path | None) -> Iterator[tuple[Path, Progress]]:
    """The folder to write into and the progress to tell, for work that may be interrupted and logged to ``file``."""
    shown = Silent() if silent else Bars(Console(stderr=True))
    with interruptible(job.cache is not None), log.to(file), staged(job.out) as folder:
        yield folder, log.Logged(shown) if file is not None else shown


@contextmanager
def staged(out: Path) -> Iterator[Path]:
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
