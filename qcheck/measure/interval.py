"""Means of per-probe scalars, with one-sided Student-t bounds and p-values against a limit.

Decibels and ratios of matched runs are near normal. ``alpha`` is the error of one look in a sequence of looks. The
distribution is the board's (``device.student``), so that intervals are the same there, here, and where a report is
audited without SciPy.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from qcheck.device import student
from qcheck.measure.sample import BROKEN, Sample
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement
from qcheck.spec.arm import Arm
from qcheck.spec.measurement import Limit

Ranges = Mapping[tuple[str, Arm], Limit]


def bounds(values: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper one-sided 1 - ``alpha`` bound of ``values`` [..., n], n >= 2, along the last axis.

    NaN where any value is not finite, or all are too large for their spread: a broken probe must not be averaged away.
    """
    mean, error, finite = _mean(values)
    half = student.quantile(1 - alpha, values.shape[-1] - 1) * error
    return tuple(np.where(finite, one, np.nan) for one in (mean, mean - half, mean + half))  # type: ignore[return-value]


@BROKEN
def _mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of ``values`` [..., n] and its standard error, 0 where one is not finite, and whether both are."""
    mean, error = values.mean(-1), values.std(-1, ddof=1) / np.sqrt(values.shape[-1])
    finite = np.isfinite(mean) & np.isfinite(error)
    return np.where(finite, mean, 0.0), np.where(finite, error, 0.0), finite


@BROKEN
def beyond(values: np.ndarray, limit: Limit) -> np.ndarray:
    """p-value of "the mean of ``values`` [..., n] is inside ``limit``": small when it lies beyond either side.

    The smaller of two one-sided t-tests; the other side adds next to nothing while the interval is narrower than the
    limits, and an interval that is not never passes. 0 where a value is not finite, or the spread is not.
    """
    mean, error, finite = _mean(values)
    sides = [] if limit.low is None else [limit.low - mean]
    sides += [] if limit.high is None else [mean - limit.high]
    p_values = [np.where(error > 0, _below(-side / error, values.shape[-1] - 1), side <= 0) for side in sides]
    smallest: np.ndarray = np.where(finite, np.min(p_values, 0), 0.0)
    return smallest


def _below(t: np.ndarray, freedom: int) -> np.ndarray:
    """P(T <= t) of every t [...]; NaN for NaN."""
    return np.array([student.below(one, freedom) for one in np.ravel(t).tolist()]).reshape(np.shape(t))


def measure(sample: Sample, limit: Limit | None, alpha: float) -> Measurement:
    """The measurement of a sample: mean, bounds and, where it has a limit, the p-value of lying inside.

    With k places the worst mean counts, the lowest or the highest. It is inside its limit if every place is (no
    correction: all must hold), and beyond it if some place is: k times the smallest p-value, Holm's first step.
    """
    sign = 1 if sample.worst == "lowest" else -1
    columns = sign * sample.values.reshape(len(sample.values), -1).T
    mean, low, high, worst = _lowest(columns, alpha)
    p = None if limit is None else min(1.0, len(columns) * float(beyond(columns, _signed(limit, sign)).min()))
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
    means, lows, highs = bounds(columns, alpha)
    jointly = highs if count == 1 else bounds(columns, alpha / count)[2]
    worst = int(np.argmin(np.where(np.isnan(means), -np.inf, means)))
    return float(means.min()), float(lows.min()), float(jointly.min()), worst


def _signed(limit: Limit, sign: int) -> Limit:
    """The limit of values that are multiplied by ``sign``."""
    if sign > 0:
        return limit
    low, high = limit.low, limit.high
    return Limit(low=None if high is None else -high, high=None if low is None else -low)


def measure_all(samples: Sequence[Sample], limits: Ranges, alpha: float) -> list[Measurement]:
    """The measurement of every sample, against its limit where it has one."""
    return [measure(sample, limits.get((sample.name, sample.arm)), alpha) for sample in samples]
