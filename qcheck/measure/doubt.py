"""The p-value of "this case does not pass", from the intervals of its measurements."""

from collections.abc import Iterable

import numpy as np

from qcheck.device import student
from qcheck.result.measurement import Judged


def doubt(measurements: Iterable[Judged], probes: int, alpha: float, looks: int) -> float | None:
    """The largest over all gates of the p-value of "the mean lies on or beyond the limit", times ``looks``; at most 1.

    All gates have to hold, so the union of their complements is tested (intersection-union test, Berger 1982), and a
    sequence of ``looks`` may have ended at the best of them. Standard errors are those of the one-sided t-intervals at
    ``alpha`` over ``probes``. None where no gate was sampled; 1 where a value is not finite.
    """
    p_values = [_beyond(one, probes, alpha) for one in measurements if one.decides and one.p is not None]
    return None if not p_values else min(1.0, looks * max(p_values))


def _beyond(one: Judged, probes: int, alpha: float) -> float:
    limit = one.limit
    if limit is None or one.value is None or one.low is None or one.high is None or not np.isfinite(one.value):
        return 1.0
    reach = student.quantile(1 - alpha, probes - 1)
    sides = [] if limit.low is None else [(one.value - limit.low, one.value - one.low)]
    sides += [] if limit.high is None else [(limit.high - one.value, one.high - one.value)]
    return max((_tail(room, half / reach, probes) for room, half in sides), default=1.0)


def _tail(room: float, error: float, probes: int) -> float:
    """P(T >= room / error) of Student's t with probes - 1 degrees of freedom."""
    if error <= 0:
        return 0.0 if room > 0 else 1.0
    return student.below(-room / error, probes - 1)
