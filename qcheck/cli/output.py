"""The frame of every long command: progress, a log, and a message after Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from qcheck.cli import log, terminal
from qcheck.cli.progress import Bars
from qcheck.core.progress import Progress, Silent


@contextmanager
def session(keeps: bool, silent: bool, file: Path | None = None) -> Iterator[Progress]:
    """Progress for work that may be interrupted, logged to ``file``; ``keeps``: the cache keeps finished parts."""
    progress = Silent() if silent else Bars(terminal.console(stderr=True))
    try:
        with log.to(file):
            yield log.Logged(progress) if file is not None else progress
    except KeyboardInterrupt:
        outcome = "What was finished is kept: run the same command again to go on." if keeps else "Nothing was kept."
        terminal.console(stderr=True).print(f"[bold]interrupted.[/] {outcome}")
        raise typer.Exit(130) from None
