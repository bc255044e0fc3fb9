"""Text of users and builders as one line: without invisible characters and marks that reorder the text around it."""

import re

from qcheck.device.text import visible

_SPACE = re.compile(r"\s+")


def line(text: str, most: int = 200) -> str:
    """``text`` on one line of at most ``most`` characters; the replacement character stands for invisible ones."""
    shown = visible(_SPACE.sub(" ", text).strip())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


# marks of direction stay: the page isolates what is between its own
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(value: object) -> object:
    """``value`` as a page may hold it: text without control characters.

    What is HTML already, a subclass of ``str``, stays as it is.
    """
    return _UNPRINTABLE.sub("\ufffd", value) if type(value) is str else value


def folded(name: str, width: int) -> str:
    """A dotted name on lines of at most ``width`` characters, broken after a dot where possible."""
    lines = [""]
    for part in re.findall(r"[^.]*\.|[^.]+", name):
        for piece in (part[at : at + width] for at in range(0, len(part), width)):
            if lines[-1] and len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)
