"""Text of users and builders as one line: without invisible characters and marks that reorder the text around it."""

import re

# Control characters, lone surrogates (file names that are not UTF-8), non-characters, and marks that turn the
# direction of what follows; ordinary right-to-left letters and the joiners of emoji stay.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
_SPACE = re.compile(r"\s+")


def line(text: str, most: int = 200) -> str:
    """``text`` on one line of at most ``most`` characters; the replacement character stands for invisible ones."""
    visible = _HIDDEN.sub("\ufffd", _SPACE.sub(" ", text).strip())
    return visible if len(visible) <= most else f"{visible[: most - 1]}…"


def folded(name: str, width: int) -> str:
    """A dotted name on lines of at most ``width`` characters, broken after a dot where possible."""
    lines = [""]
    for part in re.findall(r"[^.]*\.|[^.]+", name):
        for piece in (part[at : at + width] for at in range(0, len(part), width)):
            if lines[-1] and len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)
