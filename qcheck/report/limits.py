"""What a report's limits say, as numbers: the text of a gate read back."""

Range = tuple[float | None, float | None]


def bounds(limit: str | None) -> Range:
    """The allowed range of a limit's text, ``>= 0.9``, ``<= 3`` or ``0.9 .. 1.1``; an open side is None."""
    if limit is None:
        return None, None
    if limit.startswith(">= "):
        return float(limit[3:]), None
    if limit.startswith("<= "):
        return None, float(limit[3:])
    low, _, high = limit.partition(" .. ")
    return float(low), float(high)
