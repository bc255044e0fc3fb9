"""The progress of a long run; the command line draws it, tests and libraries stay silent."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Stages of known length, and notes between them."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A context in which the returned function is called with the number of units just done."""
        ...

    def note(self, text: str) -> None:
        """Say something that belongs to no stage."""
        ...


class Silent:
    """No output."""

    def note(self, text: str) -> None:
        """As ``Progress.note``."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """As ``Progress.stage``."""
        yield lambda _: None


class Stopwatch:
    """Progress that also keeps how long each stage took: ``seconds`` by title."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        """As ``Progress.note``."""
        self._progress.note(text)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """As ``Progress.stage``; a stage that comes again adds to its time."""
        start = time.monotonic()
        with self._progress.stage(title, total) as advance:
            yield advance
        self.seconds[title] = round(self.seconds.get(title, 0.0) + time.monotonic() - start, 2)
