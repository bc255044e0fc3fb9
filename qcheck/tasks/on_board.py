"""A board's measurements again, from the numbers of its probes."""

import numpy as np

from qcheck.device import gates
from qcheck.result.verified import BoardMeasurement
from qcheck.spec.limits import Limits
from qcheck.spec.measurement import Limit

_OF_THE_BUNDLE, _WIDER = "endpoint_error", 1.25


def again(one: BoardMeasurement, limits: Limits, probes: int) -> BoardMeasurement:
    """A measurement with what the numbers of its probes give, and with the limit that it has in ``limits``.

    The limit of endpoint_error is the bundle's, which knows how far another seed moves: it may be a quarter wider.

    Raises:
        ValueError: it has no limit, or its numbers are no table of the probes that its interval needs.
    """
    extreme = _extremes(limits).get(one.name)
    limit = extreme or limits.ranges.get((one.name, one.arm))
    if one.name == _OF_THE_BUNDLE and limit is not None and _about(one.limit, limit):
        limit = one.limit
    if limit is None:
        raise ValueError(f"{one.name} ({one.arm}) of the board has no limit")
    gate = gates.Gate(one.name, one.arm, one.unit, limit.low, limit.high)
    values = np.array(one.rows, np.float64)
    if values.ndim != 2 or not values.size or (extreme is None and len(values) != max(probes, 2)):
        raise ValueError(f"{one.name} ({one.arm}) of the board has no table of numbers")
    given = (
        gates.worst(values[:, 0].tolist(), gate, one.where)
        if extreme
        else gates.measure(values, gate, limits.alpha, [one.where] * values.shape[1])
    )
    numbers = {"value": given.value, "low": given.low, "high": given.high, "p": given.p}
    return one.model_copy(update={**numbers, "limit": limit})


def _about(stated: Limit | None, own: Limit) -> bool:
    """Whether an upper limit is at most ``_WIDER`` times another."""
    return stated is not None and None not in (stated.high, own.high) and stated.high <= _WIDER * own.high  # type: ignore[operator]


def _extremes(limits: Limits) -> dict[str, Limit]:
    """The limits of what is the worst of a component's outputs, no mean."""
    return {
        "embedding_cosine": Limit(low=limits.embedding_cosine),
        "picture_error": Limit(high=limits.picture_error),
    }
