"""Student's t distribution without SciPy: the board has none."""

from __future__ import annotations

import functools
import math

_TINY, _EXACT, _ROUNDS = 1e-300, 1e-15, 500


def below(t: float, freedom: int) -> float:
    """P(T <= t) with ``freedom`` degrees of freedom (Abramowitz and Stegun 1964, 26.7.1)."""
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    whole = freedom + t * t
    tail = 0.5 * _beta(freedom / 2, 0.5, freedom / whole, t * t / whole)
    return tail if t < 0 else 1 - tail


@functools.lru_cache(maxsize=None)
def quantile(p: float, freedom: int) -> float:
    """The t with P(T <= t) = ``p``, 0 < p < 1, by bisection."""
    if p < 0.5:
        return -quantile(1 - p, freedom)
    low, high = 0.0, 1.0
    while below(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if below(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _beta(a: float, b: float, x: float, y: float) -> float:
    """The regularized incomplete beta function I_x(a, b), y = 1 - x (Numerical Recipes, 6.4)."""
    if x <= 0 or y <= 0:
        return float(y <= 0)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    front = math.exp(logarithm)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, y) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by the method of Lentz."""
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, _ROUNDS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + factor * d)
            c = _away(1 + factor / c)
            result *= c * d
        if abs(c * d - 1) < _EXACT:
            break
    return result


def _away(value: float) -> float:
    """``value``, or a tiny number where it is 0."""
    return value if abs(value) > _TINY else _TINY
