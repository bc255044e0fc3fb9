"""Survival of the effect in each group of prompts by itself: the mean over all probes hides a small group's loss."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from qcheck.measure.interval import measure
from qcheck.measure.registry import measures
from qcheck.measure.sample import Sample
from qcheck.result.measurement import Measurement
from qcheck.spec.measurement import Limit


def each(sample: Sample, groups: Sequence[str], limit: Limit, alpha: float) -> list[Measurement]:
    """The measurement of every group, in the order of their first probes, with its name as the place.

    ``sample`` has values [n] and ``groups`` the n names, "" for a probe that is in none. The interval of a group is its
    own; its p-value is multiplied by the number of groups (Bonferroni). A group of one probe has no spread: its
    interval is the whole line.
    """
    names = [name for name in dict.fromkeys(groups) if name]
    sample = dataclasses.replace(sample, values=sample.values.reshape(-1))
    return [_of(sample, np.array(groups) == name, name, limit, alpha, len(names)) for name in names]


def _of(sample: Sample, rows: np.ndarray, name: str, limit: Limit, alpha: float, count: int) -> Measurement:
    values = sample.values[rows]
    if len(values) == 1:
        whole = {"low": -math.inf, "high": math.inf, "p": 1.0} if np.isfinite(values[0]) else {"p": 0.0}
        twice = measure(dataclasses.replace(sample, values=np.repeat(values, 2)), limit, alpha)
        own = twice.model_copy(update=whole)
    else:
        own = measure(dataclasses.replace(sample, values=values), limit, alpha)
    return own.model_copy(update={"where": name, "p": None if own.p is None else min(1.0, count * own.p)})


@measures("group_survival", when="end")
def group_survival(of_each: Sequence[Measurement], limit: Limit) -> Measurement:
    """Of the groups' measurements the one with the least room to its limit, and the smallest p-value of all.

    Where its interval is inside the limit, those of all groups are.
    """
    worst = min(of_each, key=lambda one: _room(one, limit))
    p_values = [one.p for one in of_each if one.p is not None]
    return worst.model_copy(update={"name": "group_survival", "p": min(p_values, default=None)})


def _room(one: Measurement, limit: Limit) -> float:
    """The distance between an interval and the limit's nearer end, below 0 where it reaches beyond; NaN has least."""
    below = math.inf if limit.low is None else (one.low if one.low is not None else math.nan) - limit.low
    above = math.inf if limit.high is None else limit.high - (one.high if one.high is not None else math.nan)
    room = min(below, above)
    return -math.inf if math.isnan(below) or math.isnan(above) else room
