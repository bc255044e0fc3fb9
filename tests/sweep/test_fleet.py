"""The error control of a fleet, against definitions that are evaluated by brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from qcheck.judge import fleet
from qcheck.measure.doubt import doubt
from qcheck.result.fleet import Row
from qcheck.result.measurement import Judged
from qcheck.spec.measurement import Limit

ALPHA = 0.0165


def row(case: str, verdict: str | None = "PASS", p: float | None = 1e-6, **more: object) -> Row:
    values = {"case": case, "adapter": f"{case}.safetensors", "weight": 1.0, "base": "b", "scheme": "int8"}
    values |= {"order": "merge-quantize", "target": "t", "verdict": verdict, "doubt": p}
    return Row.model_validate(values | more)


def test_an_e_value_of_a_valid_p_value_is_one_on_average() -> None:
    """The integral over p, with x = -ln p; beyond x = 700 the integrand is 1 / x^2, of which 1 / 700 is left."""
    x = np.geomspace(1e-3, 700, 20000)
    values = [fleet.e_value(math.exp(-one)) * math.exp(-one) for one in x]
    assert integrate.trapezoid(values, x) + 1 / 700 == pytest.approx(1, abs=1e-3)


@given(st.floats(1e-12, 1), st.floats(1e-12, 1))
def test_e_values_fall_with_p(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert fleet.e_value(low) >= fleet.e_value(high) - 1e-9
    assert fleet.e_value(0) == math.inf


@given(st.lists(st.floats(0, 1e4), max_size=7), st.sampled_from([0.05, 0.2]))
def test_e_bh_lists_the_largest_self_consistent_set(e_values: list[float], rate: float) -> None:
    """Every set whose members are all at least K / (rate |set|) is self-consistent; e-BH takes the largest."""
    count = len(e_values)
    consistent = [
        set(chosen)
        for size in range(1, count + 1)
        for chosen in combinations(range(count), size)
        if all(e_values[i] >= count / (rate * size) for i in chosen)
    ]
    listed = fleet.e_bh(e_values, rate)
    assert len(listed) == max(map(len, consistent), default=0)
    assert not listed or listed in consistent


def test_at_a_rate_of_nothing_nothing_is_listed() -> None:
    assert fleet.e_bh([math.inf, 1e9], 0.0) == set()


def test_the_share_of_wrong_ones_among_those_listed_stays_below_the_rate() -> None:
    draws, rate, shares = np.random.default_rng(0), 0.2, []
    for _ in range(300):
        common = draws.standard_normal()  # all adapters share the probes
        null = draws.random(40) < 0.5
        z = np.where(null, 0.0, 5.0) + math.sqrt(0.5) * common + math.sqrt(0.5) * draws.standard_normal(40)
        listed = fleet.e_bh([fleet.e_value(p) for p in stats.norm.sf(z)], rate)
        shares.append(sum(null[i] for i in listed) / max(1, len(listed)))
    assert np.mean(shares) <= rate


def test_a_summary_lists_only_what_passes_and_ranks_what_needs_a_person_first() -> None:
    rows = [row("a"), row("b", p=0.04), row("c", "NEEDS-QAT", 1.0), row("d", None, None, error="x"), row("e", p=1e-9)]
    summary = fleet.summary(rows)
    assert [one.case for one in summary.rows] == ["d", "c", "b", "a", "e"]
    assert summary.certain == {"a", "e"}
    assert summary.expected_wrong == pytest.approx(2 * fleet.RATE)
    assert summary.counts == {"PASS": 3, "NEEDS-QAT": 1, "error": 1}
    assert "2 of the 3 that pass" in summary.error_control()
    nothing = fleet.summary([row("b", p=0.04)])
    assert not nothing.certain
    assert "None of the 1" in nothing.error_control()


def test_what_failed_for_another_reason_than_its_measurements_is_not_listed_and_helps_nobody() -> None:
    """Its build fell back, say. Were its e-value counted, the one of "b" would be large enough beside it."""
    rows = [row("a", "FAIL-RECIPE", 1e-12), row("b", p=0.0008)]
    assert fleet.e_bh([fleet.e_value(one.doubt or 0) for one in rows]) == {0, 1}
    assert not fleet.summary(rows).certain


def test_the_layer_that_is_the_worst_of_several_cases_is_named() -> None:
    rows = [row(str(n), worst_layer="mid" if n < 3 else f"l{n}") for n in range(5)]
    assert fleet.summary(rows).worst_layers == [("mid", 3)]


def judged(values: np.ndarray, low: float | None, high: float | None, **more: object) -> Judged:
    mean, half = values.mean(), stats.t.ppf(1 - ALPHA, len(values) - 1) * stats.sem(values)
    numbers = {"value": float(mean), "low": float(mean - half), "high": float(mean + half), "p": 0.5}
    fixed = {"name": "effect_survival", "arm": "adapted", "unit": "", "limit": Limit(low=low, high=high)}
    return Judged.model_validate({**fixed, **numbers, **more})


@given(st.integers(0, 10**6), st.integers(3, 20), st.floats(0.5, 1.2))
def test_doubt_is_the_t_test_of_the_worst_side_times_the_looks(seed: int, count: int, mean: float) -> None:
    values = np.random.default_rng(seed).normal(mean, 0.1, count)
    below = stats.ttest_1samp(values, 0.8, alternative="greater").pvalue
    above = stats.ttest_1samp(values, 1.2, alternative="less").pvalue
    found = doubt([judged(values, 0.8, 1.2)], count, ALPHA, looks=4)
    assert found == pytest.approx(min(1, 4 * max(below, above)), rel=1e-6)


def test_the_weakest_gate_is_the_doubt_and_what_decides_nothing_is_none() -> None:
    values = np.linspace(0.95, 1.05, 8)
    strong, weak = judged(values, 0.8, None), judged(values, 0.98, None)
    assert doubt([strong, weak], 8, ALPHA, 1) == doubt([weak], 8, ALPHA, 1)
    assert doubt([strong, judged(values, 2.0, None, warns=True)], 8, ALPHA, 1) == doubt([strong], 8, ALPHA, 1)
    assert doubt([judged(values, 0.8, None, p=None)], 8, ALPHA, 1) is None
    assert doubt([judged(values, 0.8, None, value=math.nan)], 8, ALPHA, 1) == 1


@pytest.mark.parametrize(
    ("verdicts", "codes"),
    [
        (["PASS", "PASS"], (0, 0, 0)),
        (["PASS", "NEEDS-QAT"], (1, 0, 0)),
        (["PASS", "INCONCLUSIVE"], (3, 0, 0)),
        (["PASS", None], (3, 3, 3)),
        (["NEEDS-QAT", None], (1, 1, 3)),
        (["FAIL-ADAPTER", "FAIL-RECIPE"], (1, 1, 0)),
        (["INVALID"], (3, 3, 0)),
        ([], (3, 3, 0)),
    ],
)
def test_what_is_not_measured_is_never_a_pass_whatever_is_required(
    verdicts: list[str | None], codes: tuple[int, ...]
) -> None:
    rows = [row(str(n), verdict, **({} if verdict else {"error": "broken"})) for n, verdict in enumerate(verdicts)]
    assert tuple(fleet.summary(rows).exit_code(require) for require in ("all", "any", "none")) == codes
