"""Text of users and builders as one line that shows what it is: nothing invisible, nothing that reorders its place."""

import re

# Control characters, lone surrogates (file names that are not UTF-8), non-characters, and marks that turn the
# direction of what follows; ordinary right-to-left letters and the joiners of emoji stay.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
_SPACE = re.compile(r"\s+")


def line(text: str, most: int = 200) -> str:
    """``text`` on one line of at most ``most`` characters; the replacement character stands for what cannot be seen."""
    seen = _HIDDEN.sub("\ufffd", _SPACE.sub(" ", text).strip())
    return seen if len(seen) <= most else f"{seen[: most - 1]}…"
