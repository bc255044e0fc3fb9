"""The board's statistics are the host's, without SciPy and without qcheck's host."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from qcheck.device import gates, student
from qcheck.device.gates import Gate
from qcheck.judge import holm
from qcheck.measure import interval
from qcheck.measure.sample import Sample
from qcheck.spec import limits
from qcheck.spec.measurement import Limit

NUMBERS = st.floats(-3, 3, allow_nan=False)


@given(st.floats(-60, 60, allow_nan=False), st.integers(1, 200))
def test_the_distribution_is_scipys(t: float, freedom: int) -> None:
    assert student.below(t, freedom) == pytest.approx(special.stdtr(freedom, t), rel=1e-9, abs=1e-14)


@given(st.floats(1e-5, 1 - 1e-5), st.integers(1, 200))
def test_the_quantile_is_scipys(p: float, freedom: int) -> None:
    assert student.quantile(p, freedom) == pytest.approx(special.stdtrit(freedom, p), rel=1e-8, abs=1e-10)


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=2, max_size=12), st.integers(1, 3))
def test_a_measurement_is_the_hosts(rows: list[list[float]], count: int) -> None:
    values = np.array(rows)[:, 0] if count == 1 else np.array(rows)[:, :count]
    places = () if count == 1 else ("a", "b", "c")[:count]
    gate = Gate("effect_survival", "adapted", "ratio", 0.8, 1.2)
    here = gates.measure(values, gate, 0.0165, places)
    there = interval.measure(Sample("effect_survival", "adapted", values, places), Limit(low=0.8, high=1.2), 0.0165)
    for name in ("value", "low", "high", "p"):
        assert getattr(here, name) == pytest.approx(getattr(there, name), rel=1e-6, abs=1e-9), name
    assert here.where == there.where


@pytest.mark.parametrize("values", [[1.0, math.nan], [1.0, 1e200]])
def test_values_that_are_not_finite_or_too_large_fail_and_are_written_as_words(values: list[float]) -> None:
    gate = Gate("effect_survival", "adapted", "ratio", 0.8, 1.2, "it is lost")
    (one,) = gates.judged([gates.measure(np.array(values), gate, 0.0165)], [gate], 0.0165)
    assert (one.status, one.to_json()["value"]) == ("fail", "NaN")
    assert [gates.written(value) for value in (math.inf, -math.inf, 1.0)] == ["Infinity", "-Infinity", 1.0]
    assert one.text() == "effect_survival (adapted) is not finite; limit >= 0.8 and <= 1.2"


@given(st.lists(st.floats(0, 0.05), min_size=2, max_size=2), st.floats(0, 1))
def test_holms_step_down_is_the_hosts(p_values: list[float], far: float) -> None:
    bounds = limits.find("default")
    names = ("effect_survival", "stratum_survival", "endpoint_error")
    values = [*p_values, far]
    every = [Gate(name, "adapted", "", 10.0, None) for name in names]  # so high that nothing is inside
    sampled = [
        gates.Measurement(name, "adapted", "", 1.0, 0.9, 1.1, p, "", {"low": 10.0, "high": None}, [])
        for name, p in zip(names, values, strict=True)
    ]
    there = interval.measure_all([Sample(name, "adapted", np.array([1.0, 1.1])) for name in names], {}, bounds.alpha)
    there = [one.model_copy(update={"p": p}) for one, p in zip(there, values, strict=True)]
    beyond = {name for name, _ in holm.beyond(there, bounds)}
    assert {one.name for one in gates.judged(sampled, every, bounds.alpha) if one.status == "fail"} == beyond


def test_the_verdict_says_what_failed_before_what_is_open() -> None:
    gate = Gate("effect_survival", "adapted", "ratio", 0.8, 1.2, "more than a fifth is lost", "a fifth too much")
    lost = gates.judged([gates.measure(np.full(8, 0.5) + np.arange(8) / 100, gate, 0.0165)], [gate], 0.0165)
    assert gates.verdict(lost, [], ["a tail"])[0] == "FAIL"
    assert gates.verdict(lost, [], [])[1][0].endswith("more than a fifth is lost")
    loud = gates.judged([gates.measure(np.full(8, 1.5) + np.arange(8) / 100, gate, 0.0165)], [gate], 0.0165)
    assert gates.verdict(loud, [], [])[1][0].endswith("a fifth too much")
    assert gates.verdict([], [], ["a tail"]) == ("INCONCLUSIVE", ["a tail"])
    assert gates.verdict([], ["the engine fell back"], [])[0] == "FAIL"
    assert gates.verdict([], [], [])[0] == "PASS"
