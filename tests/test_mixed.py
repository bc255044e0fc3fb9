"""Which layers stay in the compute type: never above the budget, and as good as trying everything."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcheck.core.errors import UserError
from qcheck.diagnose import mixed
from qcheck.diagnose.mixed import KEEP, Option

LAYERS = st.lists(
    st.tuples(st.floats(1e-12, 1e6), st.integers(1, 10**9), st.integers(1, 10**9)), min_size=1, max_size=7
)


def _options(layers: list[tuple[float, int, int]]) -> dict[str, list[Option]]:
    return {
        f"layer{place}": [Option("int4", cost, small), Option(KEEP, 0.0, small + more)]
        for place, (cost, small, more) in enumerate(layers)
    }


@settings(max_examples=60, deadline=None)
@given(layers=LAYERS, part=st.floats(0, 1))
def test_a_choice_stays_within_the_budget_and_is_as_good_as_any(
    layers: list[tuple[float, int, int]], part: float
) -> None:
    options = _options(layers)
    least, most = (sum(offered[which].bytes for offered in options.values()) for which in (0, 1))
    budget = least + int(part * (most - least))
    chosen = mixed.choose(options, budget)
    assert list(chosen) == list(options)
    assert sum(option.bytes for option in chosen.values()) <= budget
    fitting = [
        sum(option.cost for option in every)
        for every in itertools.product(*options.values())
        if sum(option.bytes for option in every) <= budget
    ]
    worst = max(cost for cost, _, _ in layers)
    assert sum(option.cost for option in chosen.values()) <= min(fitting) + 1e-6 * worst


def test_a_costly_layer_goes_before_two_cheap_ones_only_if_it_is_worse_than_both() -> None:
    options = _options([(3.0, 10, 20), (2.0, 10, 10), (2.0, 10, 10)])
    assert mixed.kept(mixed.choose(options, 50)) == ["layer1", "layer2"]
    assert mixed.kept(mixed.choose(options, 50, most=1)) == ["layer0"]


def test_one_byte_over_is_over() -> None:
    options = _options([(3.0, 10**9, 10**9), (2.0, 10**9, 10**9 - 1), (1.0, 10**9, 10**9 - 2)])
    assert mixed.kept(mixed.choose(options, 4 * 10**9 - 1)) == ["layer1"]
    assert mixed.kept(mixed.choose(options, 4 * 10**9)) == ["layer0"]


def test_more_than_two_formats_may_be_offered() -> None:
    options = {
        "a": [Option("int4", 9, 4), Option("int8", 1, 8), Option(KEEP, 0, 16)],
        "b": [Option("int4", 1, 4), Option(KEEP, 0, 16)],
    }
    assert [option.name for option in mixed.choose(options, 12).values()] == ["int8", "int4"]


def test_a_budget_below_the_smallest_is_an_error() -> None:
    with pytest.raises(UserError, match="at least 20 bytes, and the budget is 19"):
        mixed.choose(_options([(1.0, 10, 5), (1.0, 10, 5)]), 19)
