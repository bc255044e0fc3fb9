"""Errors that a user can cause and mend. Everything else is a bug and keeps its traceback."""

import difflib
import errno
from collections.abc import Iterable, Sequence


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


_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})
_WORDS = ("No space left on device", "Disk quota exceeded", "Read-only file system")  # in errors of other kinds


def of_machine(error: Exception) -> UserError | None:
    """The error for a file that the machine refuses to write or to read: a full disk, or rights; None for any other."""
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        place = "" if error.filename is None else f": {str(error.filename)!r}"
        what = f"{error.strerror}{place}"
    else:
        word = next((word for word in _WORDS if word in str(error)), None)
        if word is None:
            return None
        what = word
    return UserError(what, "Free space, or give places that you may read and write: --out, $QCHECK_CACHE, $TMPDIR.")


def install(extra: str) -> str:
    """How to install an extra of qcheck, which is on no package index."""
    return f"in the checkout of qcheck: pip install -e '.[{extra}]' -c constraints.txt"


def listed(names: Sequence[str]) -> str:
    """The first three of ``names``, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
