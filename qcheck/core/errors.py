"""Errors that a user can cause and mend. Everything else is a bug and keeps its traceback."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qcheck.device.errors import REFUSALS, SPACE


class UserError(Exception):
    """A mistake in the input: ``what`` is wrong, and how to ``fix`` it. The command line prints both and exits 2."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n{fix}")
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        """Pickled by both parts: a worker's process hands it to its parent."""
        return UserError, (self.what, self.fix)


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a ``kind`` (scheme, target, ...) named ``name`` that is not among ``known``."""
    names = sorted(known)
    close = [word for word in names if word.startswith(name)] or difflib.get_close_matches(name, names, 1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}", f"{hint}Known: {', '.join(names)}.")


# the last is what numpy makes of any reason
_WORDS = re.compile(
    "No space left on device|Disk quota exceeded|Read-only file system|Input/output error"
    "|[0-9]+ requested and [0-9]+ written"
)
_MEMORY = ("out of memory", "not enough memory", "allocate memory", "bad_alloc", "bad allocation", "bfcarena")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """The block writes ``path``: an error for want of space that names no file, as of a write, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno in SPACE and error.filename is None:
            error.filename = str(path)
        raise


def of_machine(error: Exception) -> UserError | None:
    """The error for a file that the machine refuses to write or to read; None for any other.

    It refuses for a full or failing disk, or for rights; libraries say so in errors of other kinds.
    """
    if isinstance(error, OSError) and error.errno in REFUSALS:
        place = "" if error.filename is None else f": {str(error.filename)!r}"
        what = f"{error.strerror}{place}"
    else:
        words = _WORDS.search(str(error))
        if words is None:
            return None
        what = words[0]
    return UserError(what, "Free space, or give places that you may read and write: --out, $QCHECK_CACHE, $TMPDIR.")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out; libraries of native code say so in words."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY)


def of_memory(error: Exception) -> UserError | None:
    """The error for memory that ran out; None for any other."""
    if not ran_out(error):
        return None
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"memory ran out: {reason}",
        "Close other programs, give smaller --width and --height or --batch 1, and run the same command again.",
    )


def install(extra: str) -> str:
    """How to install an extra of qcheck, which is on no package index."""
    return f"in the checkout of qcheck: pip install -e '.[{extra}]' -c constraints.txt"


def listed(names: Sequence[str]) -> str:
    """The first three of ``names``, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
