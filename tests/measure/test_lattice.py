import numpy as np
import pytest

from qcheck.measure import lattice
from qcheck.measure.interval import measure
from qcheck.result.measurement import Measurement
from tests import views

FINALS = np.random.default_rng(0).standard_normal((8, 4, 16, 16))
CHECKER = (-1.0) ** np.add.outer(np.arange(16), np.arange(16))


def _found(quantized: np.ndarray, base: np.ndarray = FINALS) -> dict[tuple[str, str], Measurement]:
    view = views.only("finals", [FINALS, FINALS, base, quantized])
    samples = [*lattice.lattice_amplitude(view), *lattice.lattice_energy(view), *lattice.hidden_lattice(view)]
    return {(m.name, m.arm): m for m in (measure(s, None, 0.05) for s in samples)}


def test_a_lattice_has_periods_that_divide_both_sides() -> None:
    assert lattice.bins(16, 18).tolist() == lattice.bins(18, 16).tolist() == [[0.0, 0.5], [0.5, 0.0], [0.5, 0.5]]
    assert len(lattice.bins(16, 16)) == 15
    assert len(lattice.bins(15, 16)) == 0


@pytest.mark.parametrize("amplitude", [0.02, 0.05, 0.5])
def test_a_checkerboard_is_read_back_with_its_channel(amplitude: float) -> None:
    quantized = FINALS + 0.03 * np.random.default_rng(1).standard_normal(FINALS.shape)
    quantized[:, 2] += amplitude * CHECKER * np.sqrt(FINALS.var((2, 3)).mean(0)[2])
    found = _found(quantized)["lattice_amplitude", "adapted"]
    assert found.value == pytest.approx(amplitude, abs=0.005)
    assert found.where == "channel 2"
    assert found.low <= amplitude <= found.high  # type: ignore[operator]


def test_a_pattern_of_period_four_is_read_as_its_root_mean_square() -> None:
    pattern = np.tile(np.random.default_rng(3).standard_normal((4, 4)), (4, 4))
    pattern -= pattern.mean()
    found = _found(FINALS + 0.1 * pattern)["lattice_amplitude", "adapted"]
    deviation = np.sqrt(FINALS.var((2, 3)).mean(0)).min()
    assert found.value == pytest.approx(0.1 * pattern.std() / deviation, rel=1e-6)


def test_errors_that_share_nothing_average_to_nothing() -> None:
    values = []
    for seed in range(200):
        noise = 0.1 * np.random.default_rng(seed).standard_normal(FINALS.shape)
        values.append(lattice.amplitude(lattice.read(list(FINALS + noise), list(FINALS))).mean())
    assert np.mean(values) == pytest.approx(0, abs=0.002)


def test_the_base_s_own_grid_is_taken_off() -> None:
    both = FINALS + 0.1 * CHECKER
    found = _found(both, both)
    assert found["lattice_amplitude", "base"].value == pytest.approx(0.1, rel=0.1)
    assert found["lattice_amplitude", "both"].value == pytest.approx(0)


def test_a_grid_of_random_sign_has_energy_and_no_shared_amplitude() -> None:
    signs = np.random.default_rng(5).choice([-1, 1], (8, 4, 1, 1))
    found = _found(FINALS + 0.5 * signs * CHECKER)
    assert found["lattice_energy", "adapted"].low > 2  # type: ignore[operator]
    assert found["lattice_energy", "adapted"].where == "0.5, 0.5 cycles/px"
    assert found["lattice_energy", "base"].value == 0
    assert found["lattice_amplitude", "adapted"].value < 0.25  # type: ignore[operator]


def test_log_ratios_spread_as_the_weights_say() -> None:
    """pi in bins that are their own conjugate, pi / sqrt 3 elsewhere: their energies' errors are equal by weight."""
    rng = np.random.default_rng(6)
    grid = lattice.read(list(rng.standard_normal((2000, 1, 8, 8))), list(rng.standard_normal((2000, 1, 8, 8))))
    own = ((2 * grid.bins) % 1 == 0).all(1)
    assert grid.ratio[..., own].std() == pytest.approx(np.pi, rel=0.05)
    assert grid.ratio[..., ~own].std() == pytest.approx(np.pi / np.sqrt(3), rel=0.05)


def test_a_grid_that_only_full_precision_has_is_hidden() -> None:
    gridded = FINALS + CHECKER
    (kept,), (lost,) = (
        lattice.hidden_lattice(views.only("finals", [FINALS, gridded, FINALS, q1])) for q1 in (gridded, FINALS)
    )
    assert measure(kept, None, 0.05).value == pytest.approx(0, abs=1e-9)
    assert measure(lost, None, 0.05).low > 3  # type: ignore[operator]


@pytest.mark.parametrize(("height", "width"), [(17, 17), (16, 17), (18, 16), (19, 23), (4, 5)])
def test_a_checkerboard_is_found_whatever_the_sides_are(height: int, width: int) -> None:
    """As of 520 pixels with Stable Diffusion 1.5, whose latents have 65: no side need be a multiple of the periods."""
    finals = np.random.default_rng(3).standard_normal((8, 4, height, width))
    board = 0.1 * (-1.0) ** np.add.outer(np.arange(height), np.arange(width))
    grid = lattice.read(list(finals + board), list(finals))
    assert lattice.amplitude(grid).mean() == pytest.approx(0.1, rel=0.25)
    assert np.isfinite(lattice.energy(grid)).all()


def test_the_energy_of_a_grid_is_in_decibels() -> None:
    """Twice the amplitude is 6.02 dB; at the checkerboard's bin, which spreads more, it is divided by sqrt 3."""
    bins = np.array([[0.5, 0.5], [0.25, 0.5]])
    doubled = np.full((1, 1, 2), np.log(4.0))
    grid = lattice.Grid(np.zeros((1, 1, 2), complex), doubled, np.ones((1, 1)), bins, np.zeros(1), np.zeros(1))
    assert lattice.energy(grid)[0].tolist() == pytest.approx([6.0206 / np.sqrt(3), 6.0206], abs=1e-4)
