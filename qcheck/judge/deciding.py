"""Which measurement a verdict rests on: the one that every rendering names."""

import math
from collections.abc import Sequence

from qcheck.result.measurement import Judged
from qcheck.result.verdict import Deciding


def named(measurement: Judged | None) -> Deciding | None:
    """The name and arm of a measurement."""
    return None if measurement is None else Deciding(name=measurement.name, arm=measurement.arm)


def closest(judged: Sequence[Judged]) -> Judged | None:
    """The gated measurement that is closest to its limit, where all passed; None where none was sampled."""
    gated = [measurement for measurement in judged if measurement.decides and math.isfinite(room(measurement))]
    return min(gated, key=room, default=None)


def room(measurement: Judged) -> float:
    """The distance to the nearest limit over the half width of the interval on that side; 1: the interval touches it.

    Infinite where the measurement was not sampled or has no limit.
    """
    if measurement.limit is None or measurement.value is None or measurement.low is None or measurement.high is None:
        return math.inf
    if not math.isfinite(measurement.value):
        return math.inf
    low, high = measurement.limit.low, measurement.limit.high
    below, above = measurement.value - measurement.low, measurement.high - measurement.value
    ratios = [
        *([(measurement.value - low) / below] if low is not None and below > 0 else []),
        *([(high - measurement.value) / above] if high is not None and above > 0 else []),
    ]
    return min(ratios, default=math.inf)
