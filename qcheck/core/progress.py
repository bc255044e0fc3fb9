"""How a long run tells where it is; the command line draws it, tests and libraries stay silent."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Stages of known length, and notes between them."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
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
    def stage(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """As ``Progress.stage``."""
        yield lambda _: None
