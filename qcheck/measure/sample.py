"""Per-probe scalars to means with one-sided Student-t bounds and p-values against a limit.

Decibels and ratios of matched runs are near normal. ``alpha`` is the error spent at one look of a sequence of looks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from qcheck.result.measurement import Measurement
from qcheck.spec.arm import Arm

BROKEN = np.errstate(all="ignore")  # an arm that broke gives NaN, which every measurement keeps; no need to warn
Range = tuple[float | None, float | None]
Ranges = Mapping[tuple[str, Arm], Range]


@dataclass(frozen=True)
class Sample:
    """A scalar of each probe, ``values`` [n]; or [n, k] for k ``places`` of which the ``worst`` mean counts.

    A value of the whole set comes as its ``pseudo_values``.
    """

    name: str
    arm: Arm
    unit: str
    values: np.ndarray
    places: tuple[str, ...] = ()
    worst: Literal["lowest", "highest"] = "lowest"


def pseudo_values(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Jackknife pseudo-values [n, ...] of a statistic of a set of ``count`` probes, n >= 2 (Tukey 1958).

    ``statistic`` is asked for sets of probes by their indices. The mean of n T - (n - 1) T without i is T less its bias
    of order 1/n, and their spread is its standard error, so a value of the set is bounded like a mean of scalars.
    """
    every = np.arange(count)
    whole = statistic(every)
    found: np.ndarray = np.array([count * whole - (count - 1) * statistic(np.delete(every, i)) for i in every])
    return found


def bounds(values: np.ndarray, alpha: float) -> tuple[float, float, float]:
    """Mean, lower and upper one-sided 1 - ``alpha`` bound of ``values`` [n], n >= 2.

    NaN if any value is not finite: a probe that broke must not be averaged away.
    """
    if not np.isfinite(values).all():
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    half = float(stats.t.ppf(1 - alpha, len(values) - 1)) * _error(values)
    return mean, mean - half, mean + half


def _error(values: np.ndarray) -> float:
    """Standard error of the mean of ``values`` [n]."""
    return float(values.std(ddof=1)) / float(np.sqrt(len(values)))


def beyond(values: np.ndarray, limit: Range) -> float:
    """p-value of "the mean of ``values`` [n] is inside ``limit``": small when it lies beyond either side.

    The smaller of two one-sided t-tests; the other side adds next to nothing while the interval is narrower than the
    limits, and an interval that is not never passes.
    0 where a value is not finite.
    """
    if not np.isfinite(values).all():
        return 0.0
    mean, error = float(values.mean()), _error(values)
    low, high = limit
    excess = [*([] if low is None else [low - mean]), *([] if high is None else [mean - high])]
    found = [float(stats.t.sf(e / error, len(values) - 1)) if error else float(e <= 0) for e in excess]
    return min(found)


def measure(sample: Sample, limit: Range | None, alpha: float) -> Measurement:
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
        unit=sample.unit,
        value=sign * mean,
        low=low if sign > 0 else -high,
        high=high if sign > 0 else -low,
        p=p,
        where=sample.places[worst] if sample.places else "",
    )


def _lowest(columns: np.ndarray, alpha: float) -> tuple[float, float, float, int]:
    """Lowest mean of ``columns`` [k, n], a bound below all of the means, one above the lowest, and whose it is."""
    count = len(columns)
    single = np.array([bounds(column, alpha) for column in columns])
    jointly = single if count == 1 else np.array([bounds(column, alpha / count) for column in columns])
    worst = int(np.argmin(np.where(np.isnan(single[:, 0]), -np.inf, single[:, 0])))
    return float(single[:, 0].min()), float(single[:, 1].min()), float(jointly[:, 2].min()), worst


def _signed(limit: Range, sign: int) -> Range:
    low, high = limit
    return limit if sign > 0 else (None if high is None else -high, None if low is None else -low)


def measure_all(samples: Sequence[Sample], limits: Ranges, alpha: float) -> list[Measurement]:
    """Every sample beside its limit, where it has one."""
    return [measure(sample, limits.get((sample.name, sample.arm)), alpha) for sample in samples]


def decibels(power: np.ndarray, against: np.ndarray) -> np.ndarray:
    """10 log10(power / against); +-inf where one of them is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = 10 * np.log10(power / against)
    return found
