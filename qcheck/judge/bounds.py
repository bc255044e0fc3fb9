"""What a report's limits say, as numbers: the text of a gate read back."""

import math

from qcheck.result.measurement import Judged

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


def room(seen: Judged) -> float:
    """How often the interval's own half fits between the value and the limit nearest to it; 1 touches it.

    Infinite where nothing was sampled, or there is no limit.
    """
    if seen.value is None or seen.low is None or seen.high is None or not math.isfinite(seen.value):
        return math.inf
    low, high = bounds(seen.limit)
    below, above = seen.value - seen.low, seen.high - seen.value
    found = [
        *([(seen.value - low) / below] if low is not None and below > 0 else []),
        *([(high - seen.value) / above] if high is not None and above > 0 else []),
    ]
    return min(found, default=math.inf)
