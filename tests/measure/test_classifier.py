import numpy as np
import pytest

from qcheck.measure import classifier, spectrum

pytest.importorskip("sklearn")
FULL = np.random.default_rng(0).standard_normal((24, 2, 16, 16))


def test_spectra_of_one_distribution_are_not_told_apart() -> None:
    other = np.random.default_rng(1).standard_normal(FULL.shape)
    found = classifier.measure("adapted", other, FULL, 0.05)
    assert found.low < 0.5 < found.high  # type: ignore[operator]


def test_a_grid_is_told_apart() -> None:
    board = (-1.0) ** np.add.outer(np.arange(16), np.arange(16))
    signs = np.random.default_rng(2).choice([-1, 1], (24, 1, 1, 1))
    found = classifier.measure("adapted", FULL + signs * board, FULL, 0.05)
    assert found.value > 0.9  # type: ignore[operator]
    assert found.low > 0.8  # type: ignore[operator]


def test_partners_are_in_one_fold_and_an_equal_partner_scores_the_same() -> None:
    ours, theirs = classifier.scores(FULL, FULL)
    assert ours == pytest.approx(theirs)
    assert classifier.measure("base", FULL, FULL, 0.05).value == pytest.approx(0.5, abs=0.01)  # but for rounding


def test_what_is_not_finite_is_not_told_apart_either() -> None:
    broken = FULL.copy()
    broken[3, 0, 0, 0] = np.nan
    assert np.isnan(classifier.measure("base", broken, FULL, 0.05).value)  # type: ignore[arg-type]


def test_auc_is_the_share_of_ordered_couples() -> None:
    assert classifier.auc(np.array([[1.0, 2.0], [0.0, 2.0]])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_whitening_takes_off_scale_and_slope_and_leaves_a_peak() -> None:
    assert spectrum.residual(3 * FULL[0]) == pytest.approx(spectrum.residual(FULL[0]))
    wave = 5 * np.cos(2 * np.pi * 5 * np.arange(16) / 16)[:, None] * np.ones(16)
    found = spectrum.residual(FULL[0] + wave) - spectrum.residual(FULL[0])
    assert np.unravel_index(found[0].argmax(), found[0].shape)[0] in (5, 11)
