import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcheck.device import arithmetic
from qcheck.measure import control, effect, endpoint, spectrum
from qcheck.measure.interval import bounds, measure
from qcheck.measure.sample import Sample
from qcheck.result.measurement import Measurement
from qcheck.spec.measurement import Limit
from tests import views

SHAPE = (12, 4, 4, 16, 16)
TIMES = (900.0, 600.0, 300.0, 1.0)


def _measured(samples: list[Sample]) -> list[Measurement]:
    return [measure(sample, None, 0.05) for sample in samples]


def _arms(seed: int = 0, noise: float = 0.02) -> dict[str, np.ndarray]:
    """f0, f1 and independent quantization errors of equal size on both."""
    rng = np.random.default_rng(seed)
    f0 = rng.standard_normal(SHAPE)
    f1 = f0 + 0.3 * rng.standard_normal(SHAPE)
    return {
        "f0": f0,
        "f1": f1,
        "q0": f0 + noise * rng.standard_normal(SHAPE),
        "q1": f1 + noise * rng.standard_normal(SHAPE),
    }


def test_a_perfect_artifact_measures_perfect() -> None:
    a = _arms()
    e = effect.energies(a["f0"], a["f1"], a["f0"], a["f1"])
    even = effect.evenly(e)
    assert effect.survival(e) == pytest.approx(1)
    assert np.isposinf(effect.effect_to_error(e)).all()
    assert effect.excess_error(e, np.full(4, 1e-6)) == pytest.approx(
        10 * np.log10((e.f1 * even).sum(1) / (e.f0 * even).sum(1)), abs=1e-9
    )


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.0), (0.2, 0.2), (4.0, 4.0), (-1.0, -1.0)])
def test_survival_reads_back_how_much_of_the_adapter_is_left(scale: float, expected: float) -> None:
    a = _arms()
    e = effect.energies(a["f0"], a["f1"], a["f0"], a["f0"] + scale * (a["f1"] - a["f0"]))
    assert effect.survival(e) == pytest.approx(expected)


def test_what_a_calibrated_adapter_takes_back_of_the_bases_error_is_no_effect() -> None:
    a = _arms()
    whole = effect.energies(a["f0"], a["f1"], a["q0"], a["f1"], calibrated=True)
    half = effect.energies(a["f0"], a["f1"], a["q0"], (a["f0"] + a["f1"]) / 2, calibrated=True)
    assert effect.survival(whole) == pytest.approx(1)
    assert effect.survival(half) == pytest.approx(0.5)
    beside = effect.survival(effect.energies(a["f0"], a["f1"], a["q0"], a["f1"]))
    assert np.abs(beside - 1).min() > 1e-6


def test_independent_double_rounding_is_three_decibels_of_excess() -> None:
    a = _arms()
    twice = a["q1"] + 0.02 * np.random.default_rng(9).standard_normal(SHAPE)
    e = effect.energies(a["f0"], a["f1"], a["q0"], twice)
    assert effect.excess_error(e, np.zeros(4)).mean() == pytest.approx(3.01, abs=0.1)


def test_the_difference_of_errors_is_the_difference_of_effects() -> None:
    a = _arms()
    left, right = (a["q1"] - a["f1"]) - (a["q0"] - a["f0"]), (a["q1"] - a["q0"]) - (a["f1"] - a["f0"])
    assert np.allclose(left, right, atol=1e-12)
    e = effect.energies(a["f0"], a["f1"], a["q0"], a["q1"])
    r, g, even = effect.effect_to_error(e), effect.excess_error(e, np.zeros(4)), effect.evenly(e)
    assert r + g == pytest.approx(10 * np.log10((e.effect * even).sum(1) / (e.error0 * even).sum(1)))


def test_errors_below_the_floor_are_not_told_apart() -> None:
    a = _arms(noise=1e-6)
    a["q1"] = a["f1"] + 100 * (a["q1"] - a["f1"])
    e = effect.energies(**a)
    assert effect.excess_error(e, np.zeros(4)).mean() > 30
    assert abs(effect.excess_error(e, np.full(4, 1e-4))).max() < 1


def test_the_worst_stratum_is_found_and_named() -> None:
    a = _arms()
    a["q1"][:, 2] += 0.5 * np.random.default_rng(1).standard_normal(a["q1"][:, 2].shape)
    found = {m.arm: m for m in _measured(effect.stratum_sqnr(views.view(**a, timesteps=TIMES)))}
    assert found["adapted"].where == "timestep 300"
    assert found["adapted"].value == pytest.approx(6.4, abs=0.3)
    assert found["base"].value == pytest.approx(34, abs=0.3)


def test_an_error_of_one_timestep_is_excess_there_and_hidden_in_the_sum() -> None:
    """Beside an effect that is ten times as large there as elsewhere."""
    a = _arms()
    more = 9 * (a["f1"] - a["f0"])[:, 2]
    a["f1"][:, 2] += more
    a["q1"][:, 2] += more
    a["q1"][:, 2] = a["f1"][:, 2] + 3 * (a["q1"][:, 2] - a["f1"][:, 2])
    view = views.view(**a, timesteps=TIMES)
    (worst,), (whole,) = effect.worst_stratum(view), effect.excess_error_of(view)
    found = measure(worst, Limit(high=6.0), 0.05)
    assert found.value == pytest.approx(20 * np.log10(3), abs=0.2)
    assert found.where == "timestep 300"
    assert found.p < 1e-6  # type: ignore[operator]
    assert measure(whole, None, 0.05).value == pytest.approx(0, abs=0.2)


def test_the_highest_place_is_the_lowest_of_its_mirror() -> None:
    values = np.random.default_rng(0).standard_normal((9, 4))
    places = ("a", "b", "c", "d")
    for limit, mirror in ((Limit(high=0.5), Limit(low=-0.5)), (Limit(low=-1, high=2), Limit(low=-2, high=1))):
        high = measure(Sample("psnr", "base", values, places, "highest"), limit, 0.05)
        low = measure(Sample("psnr", "base", -values, places), mirror, 0.05)
        assert (high.p, high.where) == (low.p, low.where)
    assert (high.value, high.low, high.high) == (-low.value, -low.high, -low.low)  # type: ignore[operator]


def test_a_stratum_that_certainly_fails_is_not_hidden_by_one_that_is_uncertain() -> None:
    rng = np.random.default_rng(0)
    decibels = np.stack([12 + 8 * rng.standard_normal(12), 5 + 0.3 * rng.standard_normal(12)], 1)
    values = effect.sqnr(np.ones((12, 2)), 10 ** (-decibels / 10))
    found = measure(Sample("stratum_sqnr", "base", values, ("timestep 900", "timestep 1")), Limit(low=8.0), 0.05)
    assert found.value == pytest.approx(5, abs=0.5)
    assert found.where == "timestep 1"
    assert found.high < 8  # type: ignore[operator]
    assert found.p < 1e-6  # type: ignore[operator]


def test_one_probe_that_is_not_finite_is_never_averaged_away() -> None:
    a = _arms()
    a["q1"][3, 1, 0, 0, 0] = np.nan
    view = views.view(**a)
    values = {m.arm: m.value for m in _measured(effect.stratum_sqnr(view))}
    assert np.isnan(_measured(effect.effect_survival(view))[0].value)  # type: ignore[arg-type]
    assert np.isnan(values["adapted"])
    assert np.isfinite(values["base"])
    assert effect.bad_probes(view.once(effect.energies_of), 0.5, 1.5) == [place == 3 for place in range(12)]


def test_a_probe_is_bad_outside_of_the_tail_and_where_an_arm_is_not_finite() -> None:
    a = _arms()
    a["q1"][3] = a["q0"][3] + 0.2 * (a["f1"] - a["f0"])[3]
    assert effect.bad_probes(effect.energies(**a), 0.5, 1.5) == [place == 3 for place in range(12)]
    a["q0"][5] = np.nan
    calibrated = effect.bad_probes(effect.energies(**a, calibrated=True), 0.5, 1.5)  # survival without the base's error
    assert calibrated == [place in (3, 5) for place in range(12)]


def test_the_size_of_an_effect_is_weighed_by_the_strata() -> None:
    """An effect of one stratum alone, a tenth of the signal there, counts by that stratum's weight."""
    f0 = np.random.default_rng(0).standard_normal(SHAPE)
    f1 = f0.copy()
    f1[:, 1] *= 1.1
    alone = effect.effect_size(f0, f1, np.array([0.0, 1.0, 0.0, 0.0]))
    assert alone == pytest.approx(0.1 / 1.1)
    assert effect.effect_size(f0, f1, np.array([1.0, 0.0, 1.0, 1.0])) == pytest.approx(0)


def test_the_profile_of_signal_over_error_is_the_mean_over_probes_by_stratum() -> None:
    signal, error = np.ones((2, 3)), np.array([[0.1, 0.01, 0.0], [0.001, 0.01, 0.0]])
    assert effect.stratum_profile(signal, error) == pytest.approx([20, 20, 200])


def test_the_prompt_with_most_excess_is_named_and_one_that_broke_before_all() -> None:
    a = _arms()
    size = np.where(np.arange(12) % 3 == 1, 3.0, 1.0)[:, None, None, None, None]
    a["q1"] = a["f1"] + size * (a["q1"] - a["f1"])
    prompts = ["red", "green", "blue"] * 4
    found = effect.worst_prompt(effect.energies(**a), np.zeros(4), prompts)
    assert (found.where, found.low, found.p) == ("green", None, None)
    assert found.value == pytest.approx(20 * np.log10(3), abs=0.2)
    a["q1"][2, 0, 0, 0, 0] = np.nan
    assert effect.worst_prompt(effect.energies(**a), np.zeros(4), prompts).where == "blue"


def test_the_error_over_several_places_is_that_of_one() -> None:
    """Eight places whose true means lie on the limit: the worst of them is beyond it by chance, and is not blamed."""
    rng, alpha, limit = np.random.default_rng(0), 0.05, Limit(low=0.0)
    below, blamed = 0, 0
    for _ in range(400):
        sample = Sample("stratum_sqnr", "adapted", rng.standard_normal((8, 8)), tuple("abcdefgh"))
        measured = measure(sample, limit, alpha)
        below += (measured.high or 0) < 0
        blamed += (measured.p or 0) <= alpha
    assert below / 400 < 2 * alpha
    assert blamed / 400 < 2 * alpha


def test_a_no_op_equals_at_every_stratum() -> None:
    """Outputs that equal at half of the strata come from an arm that was quantized."""
    a = _arms()
    a["q1"][:, ::2] = a["f1"][:, ::2]
    half = {one.arm: one.value for one in control.noop(effect.energies(**a))}
    whole = {one.arm: one.value for one in control.noop(effect.energies(**a | {"q1": a["f1"]}))}
    assert (half["adapted"], whole["adapted"], whole["base"]) == (0, 1, 0)


def test_a_slope_has_no_high_frequencies() -> None:
    """Without a window its jump from one edge to the other would be read as detail."""
    slope = np.add.outer(np.arange(16.0), np.arange(16.0))[None]
    assert spectrum.high_share([slope])[0] < -30


def test_a_distance_from_nothing_is_no_number() -> None:
    """A reference that is all 0 has no relative error: 0 would pass."""
    zeros, ones = np.zeros((1, 2, 2)), np.ones((1, 2, 2))
    assert arithmetic.relative([2 * ones, ones, zeros], [ones, zeros, zeros]) == pytest.approx(
        [1, np.nan, np.nan], nan_ok=True
    )


def test_endpoint_error_reads_a_relative_distance_beside_the_base() -> None:
    finals = np.random.default_rng(0).standard_normal((8, 4, 16, 16))
    view = views.only("finals", [finals, finals, 1.05 * finals, 1.10 * finals])
    found = {m.arm: m.value for m in _measured(endpoint.endpoint_error(view))}
    assert found["base"] == pytest.approx(0.05)
    assert found["adapted"] == pytest.approx(0.10)
    assert found["both"] == pytest.approx(6.02, abs=0.01)


def test_endpoint_errors_below_the_floor_are_not_told_apart() -> None:
    finals = np.random.default_rng(0).standard_normal((8, 4, 16, 16))
    view = views.only("finals", [finals, finals, 1.0001 * finals, 1.003 * finals], floor=1e-4)
    found = {m.arm: m for m in _measured(endpoint.endpoint_error(view))}
    assert found["both"].value == 0
    assert [found[arm].unit for arm in ("base", "both")] == ["ratio", "dB over base"]


@pytest.mark.parametrize(
    ("base", "adapted", "expected"),
    [
        pytest.param(0.5, 0.05, -20, id="collapsed"),
        pytest.param(2, 20, 20, id="saturated"),
        pytest.param(0.3, 2, 20 * np.log10(2), id="pale-base"),
        pytest.param(2, 0.5, 20 * np.log10(0.5), id="loud-base"),
        pytest.param(0.5, 0.9, 0, id="between"),
    ],
)
def test_the_size_of_the_reference_is_beyond_both_the_base_and_real_pictures(
    base: float, adapted: float, expected: float
) -> None:
    finals = np.random.default_rng(0).standard_normal((8, 4, 16, 16))
    finals /= finals.std((1, 2, 3), keepdims=True)
    (found,) = _measured(endpoint.reference_deviation(views.only("finals", [base * finals, adapted * finals, (), ()])))
    assert found.value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_size_of_a_reference_beside_a_broken_base_is_no_number(broken: float) -> None:
    finals = np.random.default_rng(0).standard_normal((8, 4, 16, 16))
    with np.errstate(invalid="ignore"):
        (found,) = _measured(endpoint.reference_deviation(views.only("finals", [broken * finals, finals, (), ()])))
    assert found.value is not None
    assert np.isnan(found.value)


def test_a_reference_a_little_louder_than_a_loud_base_reads_a_little_above_it() -> None:
    """Probes that lie on either side of the limit of what it is beside do not turn the sign."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.4, 2, (8, 1, 1, 1))
    finals = sizes * rng.standard_normal((8, 4, 16, 16))
    (found,) = _measured(endpoint.reference_deviation(views.only("finals", [finals, 1.01 * finals, (), ()])))
    assert found.value == pytest.approx(20 * np.log10(1.01), abs=1e-6)


def test_one_flat_picture_of_the_base_is_no_saturated_adapter() -> None:
    """Of all probes together: eight pictures over seven. Decibels of each alone would have a mean of 7.5."""
    finals = 2 * np.random.default_rng(0).standard_normal((8, 4, 16, 16))
    flat = np.where(np.arange(8) == 3, 1e-3, 1.0)[:, None, None, None] * finals
    (found,) = _measured(endpoint.reference_deviation(views.only("finals", [flat, finals, (), ()])))
    assert found.value == pytest.approx(10 * np.log10(8 / 7), abs=0.2)


def _texture(quantized: np.ndarray, finals: np.ndarray) -> dict[str, Measurement]:
    view = views.only("finals", [finals, finals, finals, quantized])
    taken = (spectrum.over_smoothing, spectrum.hf_energy, spectrum.laplacian_variance_of)
    found = [m for function in taken for m in _measured(function(view))]
    assert [m.value for m in found if m.arm == "base"] == [0.0] * 3
    return {m.name: m for m in found if m.arm == "adapted"}


def test_over_smoothing_fires_on_blur_and_not_on_gain_or_noise() -> None:
    rng = np.random.default_rng(0)
    finals = rng.standard_normal((8, 4, 16, 16)).cumsum(-1).cumsum(-2)
    blurred = (finals + np.roll(finals, 1, -1) + np.roll(finals, -1, -1)) / 3
    assert _texture(blurred, finals)["over_smoothing"].high < -0.5  # type: ignore[operator]
    louder = _texture(1.3 * finals, finals)
    assert louder["hf_energy"].value == pytest.approx(0, abs=1e-9)
    assert louder["over_smoothing"].value == pytest.approx(20 * np.log10(1.3))
    assert _texture(finals + 0.3 * rng.standard_normal(finals.shape), finals)["over_smoothing"].value > 0  # type: ignore[operator]


def test_texture_that_only_loses_its_share_is_not_over_smoothed() -> None:
    """A slow wave takes share from fine texture and leaves the Laplacian as it was."""
    finals = np.random.default_rng(0).standard_normal((8, 4, 16, 16))
    wave = 2 * np.cos(2 * np.pi * np.arange(16) / 16)
    found = _texture(finals + wave, finals)
    assert found["hf_energy"].value < -1  # type: ignore[operator]
    assert abs(found["over_smoothing"].value) < 0.3  # type: ignore[arg-type]


def test_high_share_of_white_noise_is_its_share_of_bins() -> None:
    finals = np.random.default_rng(0).standard_normal((64, 4, 16, 16))
    radius = np.hypot(np.fft.fftfreq(16)[:, None], np.fft.fftfreq(16))
    share = 10 * np.log10((radius >= 0.25).sum() / (radius > 0).sum())
    assert spectrum.high_share(finals).mean() == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("deviation", [0.01, 0.1])
def test_grain_reads_the_deviation_of_noise_and_not_of_edges(deviation: float) -> None:
    steps = np.repeat(np.repeat(np.random.default_rng(0).random((3, 8, 8)), 8, -1), 8, -2)
    noise = deviation * np.random.default_rng(1).standard_normal((3, 65, 64))
    assert spectrum.grain(np.pad(steps, ((0, 0), (0, 1), (0, 0))) + noise) == pytest.approx(deviation, rel=0.1)


def test_a_control_reads_the_error_that_was_put_in() -> None:
    outputs = np.random.default_rng(0).standard_normal(SHAPE)
    other = outputs.copy()
    other[:, 1] *= 1.01
    found, least = control.resolve(_control(control.noise(other, outputs)), np.zeros(4), 80, 20)
    assert found.value == pytest.approx(40)
    assert found.where == "timestep 5"
    assert least == 80
    same, _ = control.resolve(_control(control.noise(outputs, outputs)), np.zeros(4), 80, 20)
    assert (same.name, same.unit, same.value) == ("export_control", "dB", 200)
    with pytest.raises(ValueError, match="argument 2"):
        control.noise(outputs[:1], outputs)


def test_a_control_names_the_stratum_that_broke() -> None:
    found, _ = control.resolve(_control(np.array([1e-4, np.nan, 1e-2])), np.ones(3), 80, 20)
    assert np.isnan(found.value)  # type: ignore[arg-type]
    assert found.where == "timestep 5"


def test_a_control_has_to_lie_under_the_error_that_it_resolves() -> None:
    """At the stratum with least room: 50 dB are enough under an error of 25 dB, and 60 are not under one of 45."""
    noise = _control(np.array([1e-5, 1e-6]))
    found, least = control.resolve(noise, np.array([10**-2.5, 10**-4.5]), 80, 20)
    assert (found.value, least) == (pytest.approx(60), 65)
    found, least = control.resolve(noise, np.array([10**-2.5, 10**-3.5]), 80, 20)
    assert (found.value, least) == (pytest.approx(50), 45)
    mixed = _control(np.array([10**-8.1, 1e-6]))
    found, least = control.resolve(mixed, np.array([1e-9, 10**-3.5]), 80, 20)
    assert (found.value, least) == (pytest.approx(60), 55)
    assert control.resolve(mixed, np.ones(2), 60, 20)[1] == 60
    assert control.resolve(noise, np.array([np.nan, 0]), 80, 20)[1] == 80
    assert control.resolve(noise, np.array([np.inf, np.inf]), 80, 20)[1] == 0
    assert control.resolve(noise, np.array([1.0, 1.0]), 80, np.inf)[1] == 80


def _control(error: np.ndarray) -> control.Control:
    return control.Control("export_control", error, tuple(range(len(error))), (9.0, 5.0, 2.0, 1.0)[: len(error)])


def test_a_quantizer_that_did_nothing_is_seen_by_probe_and_arm() -> None:
    """Two probes of three are as they were; one that is not finite is not the same."""
    a = _arms()
    a["q1"][:2] = a["f1"][:2]
    a["q0"][0] = a["f0"][0]
    a["q0"][1, 1, 0, 0, 0] = np.nan
    found = {m.arm: m for m in control.noop(effect.energies(**{name: x[:3] for name, x in a.items()}))}
    assert found["adapted"].value == found["adapted"].low == pytest.approx(2 / 3)
    assert found["base"].value == pytest.approx(1 / 3)


def test_student_bounds_cover_the_mean_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(5)
    found = [bounds(rng.normal(1.0, 2.0, 8), 0.05) for _ in range(4000)]
    assert np.mean([high >= 1.0 for _, _, high in found]) == pytest.approx(0.95, abs=0.012)
    assert np.mean([low <= 1.0 for _, low, _ in found]) == pytest.approx(0.95, abs=0.012)


def test_values_too_large_for_their_spread_are_broken() -> None:
    values = np.array([1e200, -1e200, 1.0, 2.0])
    sample = Sample("effect_survival", "adapted", values)
    assert all(np.isnan(one) for one in bounds(values, 0.05))
    assert measure(sample, Limit(low=0.8, high=1.2), 0.05).p == 0
    assert np.isnan(measure(sample, None, 0.05).value)


def test_a_mean_too_far_from_its_limit_for_a_float_lies_beyond_it() -> None:
    values = np.array([1.0, 1.0 + 1e-15])
    assert measure(Sample("effect_survival", "adapted", values), Limit(low=1e308, high=None), 0.05).p == 0


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_bounds_enclose_the_mean_and_widen_with_confidence(values: list[float]) -> None:
    mean, low, high = bounds(np.array(values), 0.05)
    assert low <= mean <= high
    _, lower, higher = bounds(np.array(values), 0.05 / 8)
    assert lower <= low
    assert higher >= high


@settings(max_examples=100)
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=12), st.floats(-100, 100), st.floats(0.001, 0.4))
def test_the_p_value_is_below_alpha_exactly_where_the_bound_is_beyond_the_limit(
    values: list[float], limit: float, alpha: float
) -> None:
    array = np.array(values)
    found = measure(Sample("psnr", "base", array), Limit(high=limit), alpha)
    mean, low, _ = bounds(array, alpha)
    if abs(low - limit) > 1e-6 * (1 + abs(mean)) and array.std() > 1e-3:
        assert (found.p <= alpha) == (low > limit)  # type: ignore[operator]


def test_a_value_that_is_not_finite_or_never_varies_has_a_certain_p_value() -> None:
    odd = Sample("psnr", "base", np.array([1.0, np.nan, 1.0]))
    still = Sample("psnr", "base", np.ones(4))
    assert measure(odd, Limit(high=5.0), 0.05).p == 0
    assert measure(still, Limit(high=5.0), 0.05).p == 1
    assert measure(still, Limit(low=2.0), 0.05).p == 0
    edge = Sample("psnr", "base", np.array([[1.0, 5.0]] * 4), ("on its limit", "beyond it"))
    assert measure(edge, Limit(high=1.0), 0.05).p == 0
    assert measure(still, None, 0.05).p is None


def test_what_is_measured_at_full_precision_has_its_value_for_bounds_and_no_p_value() -> None:
    half, moved = control.weakened_survival(np.array([0.4, 0.6]), 0.5), control.another_seed("base", 1.2)
    assert (half.name, half.arm, half.value, half.low, half.high) == ("weakened_survival", "adapted", 0.5, 0.5, 0.5)
    assert (moved.name, moved.arm, moved.value, moved.low, moved.high) == ("another_seed", "base", 1.2, 1.2, 1.2)
    assert half.p is moved.p is None


def test_a_timestep_at_which_the_adapter_does_nothing_is_no_place_of_its_survival() -> None:
    ones = np.ones((4, 3))
    asleep = ones * [1.0, 0.0, 1.0]
    e = effect.Energies(f1=ones, f0=ones, effect=asleep, kept=0.9 * asleep, error1=ones, error0=ones)
    (sample,) = effect.samples(e, np.zeros(3), (9.0, 5.0, 1.0))["stratum_survival"]
    assert sample.places == ("timestep 9", "timestep 1")
    assert sample.values == pytest.approx(0.9)
    assert effect.survival(e) == pytest.approx(0.9)
