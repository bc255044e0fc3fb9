"""U on pictures: exact laws of the ratio, and what is void."""

import numpy as np
import pytest

from qcheck.measure import interval
from qcheck.measure.sample import Sample
from qcheck.measure.utility import style_utility
from qcheck.result.measurement import Measurement

F0 = np.array([0.30, 0.32, 0.28, 0.35])
F1 = F0 - np.array([0.10, 0.12, 0.09, 0.11])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0, -0.2])
def test_u_is_the_share_of_the_benefit_that_is_left(share: float) -> None:
    found = style_utility(F0, F1, F0 + share * (F1 - F0))
    assert isinstance(found, Sample)
    assert found.values == pytest.approx(np.full(4, share))


def test_its_interval_is_that_of_a_ratio_over_pictures() -> None:
    rng = np.random.default_rng(0)
    f0, benefit = rng.uniform(0.3, 0.4, 400), rng.uniform(0.05, 0.15, 400)
    left = 0.8 * benefit + 0.02 * rng.standard_normal(400)
    found = style_utility(f0, f0 - benefit, f0 - left)
    assert isinstance(found, Sample)
    value = left.mean() / benefit.mean()
    error = (left - value * benefit).std(ddof=1) / benefit.mean() / 20  # of a ratio, to first order
    assert found.values.mean() == pytest.approx(value, abs=1e-4)
    assert found.values.std(ddof=1) / 20 == pytest.approx(error, rel=0.02)
    assert interval.measure(found, None, 0.05).low == pytest.approx(value - 1.649 * error, abs=1e-3)


@pytest.mark.parametrize("f1", [F0, F0 + 0.1, F0 - np.array([0.2, -0.1, 0.1, -0.1])], ids=["same", "worse", "unsure"])
def test_it_is_void_where_the_adapter_is_not_better_beyond_doubt(f1: np.ndarray) -> None:
    found = style_utility(F0, f1, F0)
    assert isinstance(found, Measurement)
    assert found.value is None
    assert found.where.startswith("void: ")


def test_losses_that_are_not_finite_are_void_or_no_number() -> None:
    broken = style_utility(F0, F1, F0 * np.nan)
    assert isinstance(broken, Sample)
    assert np.isnan(broken.values).all()
    assert isinstance(style_utility(F0, F1 * np.nan, F0), Measurement)
