"""Measurements beside their limits, and the verdict: the same intervals, tests and error rate as the host's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Container, Mapping, Sequence

import numpy as np

from . import student


@dataclass(frozen=True)
class Gate:
    """A limit of a measurement, of one arm; ``below`` and ``above`` say what it means to be outside there."""

    name: str
    arm: str
    unit: str
    low: float | None
    high: float | None
    below: str = ""
    above: str = ""

    def outside(self, value: float) -> str:
        """What it means that ``value`` lies outside, in words; nothing where it does not."""
        if self.high is not None and value > self.high:
            return self.above
        return self.below if self.low is not None and value < self.low else ""

    def holds(self, low: float, high: float) -> bool:
        """Whether an interval lies inside; one that is not finite does not."""
        above = self.low is None or low >= self.low
        return above and (self.high is None or high <= self.high)


def _words(low: float | None, high: float | None) -> str:
    """A limit in words."""
    sides = [*([] if low is None else [f">= {low:g}"]), *([] if high is None else [f"<= {high:g}"])]
    return " and ".join(sides)


@dataclass(frozen=True)
class Measurement:
    """A measurement on the board, as report.json has it; ``status`` is pass, fail or undecided.

    ``rows`` [n][k] are the numbers of each probe at each place, from which the others are computed.
    """

    name: str
    arm: str
    unit: str
    value: float
    low: float
    high: float
    p: float | None
    where: str
    limit: Mapping[str, float | None]
    rows: Sequence[Sequence[float]]
    status: str = ""
    outside: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON; numbers that are not finite become words."""
        return {key: written(value) for key, value in asdict(self).items() if key != "outside"}

    def text(self) -> str:
        """One line."""
        at = " at " + self.where if self.where else ""
        means = ": " + self.outside if self.status == "fail" and self.outside else ""
        limit = _words(self.limit["low"], self.limit["high"])
        if not math.isfinite(self.value):
            return f"{self.name} ({self.arm}) is not finite{at}; limit {limit}"
        interval = f"[{self.low:.3g}, {self.high:.3g}]"
        return f"{self.name} ({self.arm}) {self.value:.3g} {self.unit} {interval}{at}; limit {limit}{means}"


def written(value: Any) -> Any:
    """A value as JSON has it: NaN and infinities as words."""
    if isinstance(value, (list, tuple)):
        return [written(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def measure(values: np.ndarray, gate: Gate, alpha: float, places: Sequence[str] = ()) -> Measurement:
    """The mean of ``values`` [n] with its bounds; of [n, k] at k ``places`` that of the lowest mean.

    It is inside its limit if every place is, and beyond it if some place is: k times the smallest p-value.
    """
    columns = values.reshape(len(values), -1).T
    intervals = [_bounds(column, alpha) for column in columns]
    worst = min(range(len(intervals)), key=lambda i: -math.inf if math.isnan(intervals[i][0]) else intervals[i][0])
    joint = (
        intervals[worst][2]
        if len(intervals) == 1
        else min(_bounds(column, alpha / len(intervals))[2] for column in columns)
    )
    if any(math.isnan(one[0]) for one in intervals):
        joint = math.nan
    low = math.nan if math.isnan(joint) else min(one[1] for one in intervals)
    p = min(1.0, len(columns) * min(_beyond(column, gate) for column in columns))
    where = places[worst] if places else ""
    limit = {"low": gate.low, "high": gate.high}
    rows, mean = columns.T.tolist(), intervals[worst][0]
    return Measurement(
        gate.name, gate.arm, gate.unit, mean, low, joint, p, where, limit, rows, outside=gate.outside(mean)
    )


def worst(values: Sequence[float], gate: Gate, where: str = "") -> Measurement:
    """The one of ``values`` [n] that is closest to the limit's outside, no mean: its bounds equal it."""
    value = math.nan if not np.isfinite(values).all() else max(values) if gate.low is None else min(values)
    status = "pass" if gate.holds(value, value) else "fail"
    limit, rows = {"low": gate.low, "high": gate.high}, [[one] for one in values]
    return Measurement(
        gate.name, gate.arm, gate.unit, value, value, value, None, where, limit, rows, status, gate.outside(value)
    )


def _bounds(values: np.ndarray, alpha: float) -> tuple[float, float, float]:
    """Mean, lower and upper one-sided 1 - ``alpha`` bound of ``values`` [n], n >= 2; NaN where they are broken."""
    mean, error = _mean(values)
    half = student.quantile(1 - alpha, len(values) - 1) * error
    return mean, mean - half, mean + half


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` [n] and its standard error; NaN where a value is not finite, or their spread is not."""
    with np.errstate(all="ignore"):
        mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return (mean, error) if math.isfinite(mean) and math.isfinite(error) else (math.nan, math.nan)


def _beyond(values: np.ndarray, gate: Gate) -> float:
    """p-value of "the mean of ``values`` [n] is inside the limit", the smaller of two one-sided t-tests."""
    mean, error = _mean(values)
    if math.isnan(mean):
        return 0.0
    sides = [] if gate.low is None else [gate.low - mean]
    sides += [] if gate.high is None else [mean - gate.high]
    return min(student.below(-side / error, len(values) - 1) if error > 0 else float(side <= 0) for side in sides)


def judged(measurements: Sequence[Measurement], gates: Sequence[Gate], alpha: float) -> list[Measurement]:
    """The measurements with their status: pass, fail by Holm's step-down at ``alpha``, or undecided (Holm 1979)."""
    by_key = {(gate.name, gate.arm): gate for gate in gates}
    sampled = sorted((m for m in measurements if m.p is not None), key=lambda m: m.p or 0.0)
    failing = set()
    for index, one in enumerate(sampled):
        if (one.p or 0.0) > alpha / (len(sampled) - index):
            break
        failing.add((one.name, one.arm))
    return [one if one.p is None else replace(one, status=_status(one, by_key, failing)) for one in measurements]


def _status(one: Measurement, gates: Mapping[tuple[str, str], Gate], failing: Container[tuple[str, str]]) -> str:
    """The status of a sampled measurement; ``failing`` are those that are beyond their limits."""
    key = one.name, one.arm
    if gates[key].holds(one.low, one.high):
        return "pass"
    return "fail" if key in failing or math.isnan(one.value) else "undecided"


def verdict(
    judged_measurements: Sequence[Measurement], broken: Sequence[str], open_: Sequence[str]
) -> tuple[str, list[str]]:
    """PASS, FAIL or INCONCLUSIVE, with reasons; ``broken`` fails the board by itself, ``open_`` keeps it from PASS."""
    failed = [*broken, *(one.text() for one in judged_measurements if one.status == "fail")]
    if failed:
        return "FAIL", failed
    undecided = [*(one.text() for one in judged_measurements if one.status == "undecided"), *open_]
    if undecided:
        return "INCONCLUSIVE", undecided
    return "PASS", ["every measurement on this board is inside its limit"]
