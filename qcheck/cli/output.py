"""What every command that works for a while has around it: progress, a log, and an end by Ctrl-C that says what stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from qcheck.cli import log
from qcheck.cli.progress import Bars
from qcheck.core.progress import Progress, Silent


@contextmanager
def session(keeps: bool, silent: bool, file: Path | None = None) -> Iterator[Progress]:
    """The progress to tell, for work that may be interrupted and logged to ``file``; ``keeps``: in the cache."""
    shown = Silent() if silent else Bars(Console(stderr=True))
    try:
        with log.to(file):
            yield log.Logged(shown) if file is not None else shown
    except KeyboardInterrupt:
        kept = "What was finished is kept: run the same command again to go on." if keeps else "Nothing was kept."
        Console(stderr=True).print(f"[bold]interrupted.[/] {kept}")
        raise typer.Exit(130) from None
