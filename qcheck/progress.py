"""How a long run tells where it is; the command line draws it, tests and libraries stay silent."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Stages of known length."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A context in which the returned function is called with the number of units just done."""
        ...


class Silent:
    """No output."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """As ``Progress.stage``."""
        yield lambda _: None
