"""Per-probe scalars to means with one-sided Student-t bounds and p-values against a limit.

Decibels and ratios of matched runs are near normal. ``alpha`` is the error spent at one look of a sequence of looks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from qcheck.measurement import Arm, Measurement

Range = tuple[float | None, float | None]
Ranges = Mapping[tuple[str, Arm], Range]


@dataclass(frozen=True)
class Sample:
    """A scalar of each probe, ``values`` [n]; or [n, k] for k ``places`` of which the lowest mean counts."""

    name: str
    arm: Arm
    unit: str
    values: np.ndarray
    places: tuple[str, ...] = ()


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

    With k places the lowest mean counts. It is inside a lower limit if every place is (no correction: all must hold),
    and beyond it if some place is (Bonferroni over the places).
    """
    columns = sample.values.reshape(len(sample.values), -1).T
    count = len(columns)
    single = np.array([bounds(column, alpha) for column in columns])
    jointly = single if count == 1 else np.array([bounds(column, alpha / count) for column in columns])
    worst = int(np.argmin(np.where(np.isnan(single[:, 0]), -np.inf, single[:, 0])))
    mean, low = (float(x) for x in single[:, :2].min(0))
    p = None if limit is None else min(1.0, count * min(beyond(column, limit) for column in columns))
    return Measurement(
        name=sample.name,
        arm=sample.arm,
        unit=sample.unit,
        value=mean,
        low=low,
        high=float(jointly[:, 2].min()),
        p=p,
        where=sample.places[worst] if sample.places else "",
    )


def measure_all(samples: Sequence[Sample], limits: Ranges, alpha: float) -> list[Measurement]:
    """Every sample beside its limit, where it has one."""
    return [measure(sample, limits.get((sample.name, sample.arm)), alpha) for sample in samples]


def decibels(power: np.ndarray, against: np.ndarray) -> np.ndarray:
    """10 log10(power / against); +-inf where one of them is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = 10 * np.log10(power / against)
    return found
