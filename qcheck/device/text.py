"""Text of strangers as a terminal may show it."""

from __future__ import annotations

import re

# Control characters but tabs and line ends, lone surrogates (file names that are not UTF-8), non-characters, and marks
# that turn the direction of what follows; ordinary right-to-left letters and the joiners of emoji stay.
HIDDEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff"
_HIDDEN = re.compile("[" + HIDDEN + "]")


def visible(text: str) -> str:
    """``text`` with the replacement character for what would change how a terminal shows the rest."""
    return _HIDDEN.sub("\ufffd", text)
