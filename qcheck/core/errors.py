"""Errors that a user can cause and mend. Everything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input: ``what`` is wrong, and how to ``fix`` it. The command line prints both and exits 2."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n{fix}")
        self.what = what
        self.fix = fix


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a ``kind`` (scheme, target, ...) named ``name`` that is not among ``known``."""
    names = sorted(known)
    close = [word for word in names if word.startswith(name)] or difflib.get_close_matches(name, names, 1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}", f"{hint}Known: {', '.join(names)}.")
