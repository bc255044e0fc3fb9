import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from qcheck.device.arithmetic import pseudo_values
from qcheck.measure import distribution
from qcheck.measure.interval import measure
from qcheck.measure.sample import Sample
from qcheck.spec.measurement import Limit
from tests import views

SHAPE = (8, 4, 16, 16)


def _moments(latents: np.ndarray) -> np.ndarray:
    return np.stack([latents.mean((2, 3)), latents.var((2, 3))], 1)


def _samples(f0: np.ndarray, f1: np.ndarray, q0: np.ndarray, q1: np.ndarray) -> dict[tuple[str, str], Sample]:
    view = views.only("moments", [_moments(x)[:, None] for x in (f0, f1, q0, q1)])
    taken = (distribution.latent_kl_excess, distribution.adapter_shift, distribution.latent_mmd)
    return views.by_key(sample for function in taken for sample in function(view))


def test_kl_of_gaussians_is_the_closed_form_on_pooled_pixels() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(SHAPE), 0.3 + 1.2 * rng.standard_normal(SHAPE)
    found = distribution.gaussian_kl(_moments(x), _moments(y))
    m1, m2, v1, v2 = x.mean((0, 2, 3)), y.mean((0, 2, 3)), x.var((0, 2, 3)), y.var((0, 2, 3))
    assert found == pytest.approx(0.5 * (np.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1))


def test_pairs_that_differ_by_noise_have_no_excess_and_a_shift_has_its_own() -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal(SHAPE) * rng.uniform(0.5, 1.5, (8, 4, 1, 1))
    noisy = full + 0.1 * rng.standard_normal(SHAPE)
    found = _samples(full, full, noisy, noisy + 0.3 * full.std() * np.array([1, 1, 1.2, 0.8]).reshape(-1, 1, 1))
    assert measure(found["latent_kl_excess", "base"], None, 0.05).high < 0.01  # type: ignore[operator]
    shifted = measure(found["latent_kl_excess", "adapted"], Limit(high=0.05), 0.05)
    assert shifted.value == pytest.approx(4 * 0.5 * 0.3**2, rel=0.2)
    assert shifted.p < 0.001  # type: ignore[operator]
    assert shifted.where == "channel 2"
    assert measure(found["latent_mmd", "adapted"], None, 0.05).low > 0  # type: ignore[operator]


def test_what_pairs_differ_by_at_random_is_not_excess() -> None:
    """Pairs whose contrasts differ by chance have a KL, and exchanging them has the same on average."""
    excess, plain = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        full = rng.standard_normal((8, 4, 4, 4))
        one, two = (_moments(full * rng.uniform(0.3, 1.7, (8, 4, 1, 1))) for _ in range(2))
        excess.append(distribution.kl_excess(one, two, distribution.swaps(8)).sum())
        plain.append(distribution.gaussian_kl(one, two).sum())
    assert np.mean(plain) > 0.1
    assert abs(np.mean(excess)) < 0.3 * np.mean(plain)


def test_drift_that_the_base_shares_is_taken_off() -> None:
    full = np.random.default_rng(0).standard_normal(SHAPE)
    found = _samples(full, full, full + 0.3, full + 0.3)
    assert found["latent_kl_excess", "both"].values == pytest.approx(0)
    assert found["latent_kl_excess", "adapted"].values.mean() > 0.05


def test_the_profile_is_the_excess_before_every_call_and_at_the_end() -> None:
    """A shift that comes at the last of three places is there alone."""
    full = np.random.default_rng(0).standard_normal(SHAPE)
    places = np.stack([_moments(full)] * 3, 1)
    moved = places.copy()
    moved[:, 2, 0] += 0.3
    found = distribution.profile(moved, places)
    assert found[:2] == pytest.approx([0, 0])
    assert found[2] == pytest.approx(distribution.kl_excess(moved[:, 2], places[:, 2], distribution.swaps(8)).sum())
    assert found[2] > 0.1


def test_an_adapter_is_meant_to_shift_and_that_is_reported() -> None:
    full = np.random.default_rng(0).standard_normal(SHAPE)
    found = _samples(full, 0.5 * full, full, 0.5 * full)
    assert found["adapter_shift", "adapted"].values.mean() == pytest.approx(4 * 0.5 * (np.log(4) + 0.25 - 1), rel=0.01)
    assert found["latent_kl_excess", "adapted"].values == pytest.approx(0)


def test_exchanges_are_all_of_them_while_they_are_few() -> None:
    assert len(np.unique(distribution.swaps(5), axis=0)) == 32
    assert distribution.swaps(40).shape == (256, 40)


def test_exchanging_pairs_flips_the_sign_of_their_terms() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 3))
    terms = distribution.mmd(x, y)
    x[2], y[2] = y[2].copy(), x[2].copy()
    flipped = distribution.mmd(x, y)
    others = np.arange(6) != 2
    assert flipped[2, others] == pytest.approx(-terms[2, others])
    assert flipped[np.ix_(others, others)] == pytest.approx(terms[np.ix_(others, others)])


def test_pseudo_values_of_a_mean_are_the_values_and_of_a_variance_unbias_it() -> None:
    values = np.random.default_rng(0).standard_normal(9)
    assert pseudo_values(lambda i: values[i].mean(), 9) == pytest.approx(values)
    assert pseudo_values(lambda i: values[i].var(), 9).mean() == pytest.approx(values.var(ddof=1))


def test_the_jackknife_covers_the_drift_that_is_there() -> None:
    """One-sided 95 % bounds of a shift of .3 sd at 8 probes, over 300 draws."""
    inside = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        full = rng.standard_normal((8, 4, 4, 4)) + 0.3 * rng.standard_normal((8, 4, 1, 1))
        moved = full + 0.3 + 0.2 * rng.standard_normal((8, 4, 1, 1))
        found = _samples(full, full, full, moved)["latent_kl_excess", "adapted"]
        every = distribution.gaussian_kl(
            np.array([[[0.3] * 4, [1 + 0.09 + 0.04] * 4]]), np.array([[[0.0] * 4, [1 + 0.09] * 4]])
        )
        inside.append(measure(found, None, 0.05).high >= every.sum() * 0.9)  # type: ignore[operator]
    assert np.mean(inside) > 0.85


def test_the_kernel_of_mmd_is_as_wide_as_the_median_distance_of_different_samples() -> None:
    draws = np.random.default_rng(5)
    x, y = draws.standard_normal((3, 4)), draws.standard_normal((3, 4))
    pooled = np.concatenate([x, y])
    square = squareform(pdist(pooled / pooled.std(0), "sqeuclidean"))
    kernel = np.exp(-square / np.median(squareform(square)))
    expected = kernel[:3, :3] + kernel[3:, 3:] - kernel[:3, 3:] - kernel[3:, :3]
    assert distribution.mmd(x, y) == pytest.approx(expected)
