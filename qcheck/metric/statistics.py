"""Means over probes with one-sided Student-t bounds (decibels and ratios of matched runs are near normal)."""

import numpy as np
from scipy import stats

from qcheck.measurement import Arm, Measurement

CONFIDENCE = 0.95


def bounds(values: np.ndarray, comparisons: int = 1) -> tuple[float, float, float]:
    """Mean, lower and upper one-sided 95 % bound of ``values`` [n], n >= 2; Bonferroni over ``comparisons``.

    NaN if any value is not finite: a probe that broke must not be averaged away.
    """
    if not np.isfinite(values).all():
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    quantile = float(stats.t.ppf(1 - (1 - CONFIDENCE) / comparisons, len(values) - 1))
    half = quantile * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return mean, mean - half, mean + half


def summarize(name: str, arm: Arm, unit: str, values: np.ndarray, where: str = "") -> Measurement:
    """The mean of a per-probe scalar [n] as a measurement."""
    mean, low, high = bounds(values)
    return Measurement(name=name, arm=arm, unit=unit, value=mean, low=low, high=high, where=where)


def decibels(power: np.ndarray, against: np.ndarray) -> np.ndarray:
    """10 log10(power / against); +-inf where one of them is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = 10 * np.log10(power / against)
    return found
