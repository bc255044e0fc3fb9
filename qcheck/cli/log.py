"""``--log FILE``: stages, notes, warnings and the end of the command, with times, whatever the terminal shows."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qcheck import __version__
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.device.text import visible

LOGGER = logging.getLogger("qcheck")


@contextmanager
def to(file: Path | None) -> Iterator[None]:
    """Append what happens in the block to ``file``: qcheck's own lines, and warnings of every library.

    Raises:
        UserError: the file cannot be written.
    """
    if file is None:
        yield
        return
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(f"log {str(file)!r} cannot be written: {error.strerror}", "Give another --log.") from error
    handler.setFormatter(_Visible("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root, level = logging.getLogger(), LOGGER.level
    root.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        LOGGER.info("qcheck %s: %s", __version__, " ".join(sys.argv[1:]))
        with _ending():
            yield
    finally:
        logging.captureWarnings(False)
        LOGGER.setLevel(level)
        root.removeHandler(handler)
        handler.close()


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; text of files in it changes nothing in a terminal that shows the log."""
        return visible(super().format(record))


@contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        LOGGER.error("%s; %s", error.what, error.fix)
        raise
    except KeyboardInterrupt:
        LOGGER.error("interrupted")
        raise
    except Exception:
        LOGGER.exception("a bug")
        raise


class Logged:
    """Progress that is also written to the log."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, text: str) -> None:
        """As ``progress.Progress.note``."""
        LOGGER.info("%s", text)
        self._progress.note(text)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """As ``progress.Progress.stage``."""
        LOGGER.info("begins: %s (%d)", title, total)
        start = time.monotonic()
        with self._progress.stage(title, total) as advance:
            yield advance
        LOGGER.info("ended: %s, %.1f s", title, time.monotonic() - start)
