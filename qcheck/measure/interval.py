"""Means of per-probe scalars, with one-sided Student-t bounds and p-values against a limit.

Decibels and ratios of matched runs are near normal. ``alpha`` is the error of one look in a sequence of looks.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from qcheck.measure.sample import Sample
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement
from qcheck.spec.arm import Arm
from qcheck.spec.measurement import Limit

Ranges = Mapping[tuple[str, Arm], Limit]


def bounds(values: np.ndarray, alpha: float) -> tuple[float, float, float]:
    """Mean, lower and upper one-sided 1 - ``alpha`` bound of ``values`` [n], n >= 2.

    NaN if any value is not finite: a broken probe must not be averaged away.
    """
    if not np.isfinite(values).all():
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    half = float(special.stdtrit(len(values) - 1, 1 - alpha)) * _error(values)
    return mean, mean - half, mean + half


def _error(values: np.ndarray) -> float:
    """Standard error of the mean of ``values`` [n]."""
    return float(values.std(ddof=1)) / float(np.sqrt(len(values)))


def beyond(values: np.ndarray, limit: Limit) -> float:
    """p-value of "the mean of ``values`` [n] is inside ``limit``": small when it lies beyond either side.

    The smaller of two one-sided t-tests; the other side adds next to nothing while the interval is narrower than the
    limits, and an interval that is not never passes. 0 where a value is not finite.
    """
    if not np.isfinite(values).all():
        return 0.0
    mean, error = float(values.mean()), _error(values)
    excess = [
        *([] if limit.low is None else [limit.low - mean]),
        *([] if limit.high is None else [mean - limit.high]),
    ]
    p_values = [float(special.stdtr(len(values) - 1, -e / error)) if error else float(e <= 0) for e in excess]
    return min(p_values)


def measure(sample: Sample, limit: Limit | None, alpha: float) -> Measurement:
    """The measurement of a sample: mean, bounds and, where it has a limit, the p-value of lying inside.

    With k places the worst mean counts, the lowest or the highest. It is inside its limit if every place is (no
    correction: all must hold), and beyond it if some place is: k times the smallest p-value, Holm's first step.
    """
    sign = 1 if sample.worst == "lowest" else -1
    columns = sign * sample.values.reshape(len(sample.values), -1).T
    mean, low, high, worst = _lowest(columns, alpha)
    p = None if limit is None else min(1.0, len(columns) * min(beyond(x, _signed(limit, sign)) for x in columns))
    return Measurement(
        name=sample.name,
        arm=sample.arm,
        unit=measurement.find(sample.name).of(sample.arm).unit,
        value=sign * mean,
        low=low if sign > 0 else -high,
        high=high if sign > 0 else -low,
        p=p,
        where=sample.places[worst] if sample.places else "",
    )


def _lowest(columns: np.ndarray, alpha: float) -> tuple[float, float, float, int]:
    """Lowest mean of ``columns`` [k, n], a bound below all means, a bound above the lowest, and the lowest's index."""
    count = len(columns)
    single = np.array([bounds(column, alpha) for column in columns])
    jointly = single if count == 1 else np.array([bounds(column, alpha / count) for column in columns])
    worst = int(np.argmin(np.where(np.isnan(single[:, 0]), -np.inf, single[:, 0])))
    return float(single[:, 0].min()), float(single[:, 1].min()), float(jointly[:, 2].min()), worst


def _signed(limit: Limit, sign: int) -> Limit:
    """The limit of values that are multiplied by ``sign``."""
    if sign > 0:
        return limit
    low, high = limit.low, limit.high
    return Limit(low=None if high is None else -high, high=None if low is None else -low)


def measure_all(samples: Sequence[Sample], limits: Ranges, alpha: float) -> list[Measurement]:
    """The measurement of every sample, against its limit where it has one."""
    return [measure(sample, limits.get((sample.name, sample.arm)), alpha) for sample in samples]
