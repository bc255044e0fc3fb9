"""Which measurement a verdict rests on: the one that every rendering names."""

import math
from collections.abc import Sequence

from qcheck.result.measurement import Judged
from qcheck.result.verdict import Deciding


def named(seen: Judged | None) -> Deciding | None:
    """The name and arm of a measurement."""
    return None if seen is None else Deciding(name=seen.name, arm=seen.arm)


def closest(judged: Sequence[Judged]) -> Judged | None:
    """Of what passed, the gated measurement that is closest to its limit; None where nothing was sampled."""
    gated = [seen for seen in judged if seen.decides and math.isfinite(room(seen))]
    return min(gated, key=room, default=None)


def room(seen: Judged) -> float:
    """How often the interval's own half fits between the value and the limit nearest to it; 1 touches it.

    Infinite where nothing was sampled, or there is no limit.
    """
    if seen.limit is None or seen.value is None or seen.low is None or seen.high is None:
        return math.inf
    if not math.isfinite(seen.value):
        return math.inf
    low, high = seen.limit.low, seen.limit.high
    below, above = seen.value - seen.low, seen.high - seen.value
    found = [
        *([(seen.value - low) / below] if low is not None and below > 0 else []),
        *([(high - seen.value) / above] if high is not None and above > 0 else []),
    ]
    return min(found, default=math.inf)
