"""Laws of every public measurement of latents: identity, scale, order of probes, and what is not a number."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcheck.judge.verdict import judge
from qcheck.measure import classifier, effect, endpoint, picture, registry
from qcheck.measure.interval import measure, measure_all
from qcheck.measure.registry import View
from qcheck.measure.sample import Sample
from qcheck.result.measurement import Measurement
from qcheck.spec import measurement
from qcheck.spec.arm import Arm
from qcheck.spec.limits import find
from tests import views

LIMITS = find("default")
TIMES = (900.0, 500.0, 100.0)


class Drawn:
    """Four arms of guided outputs [n, T, C, h, w]; finals, moments and turns of their runs follow from them."""

    def __init__(self, seed: int, count: int, noise: float) -> None:
        rng = np.random.default_rng(seed)
        self.f0 = rng.standard_normal((count, 3, 2, 8, 8))
        self.f1 = self.f0 + 0.3 * rng.standard_normal(self.f0.shape)
        self.q0, self.q1 = (f + noise * rng.standard_normal(f.shape) for f in (self.f0, self.f1))

    @property
    def arms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.f0, self.f1, self.q0, self.q1

    def changed(self, change: Callable[[np.ndarray], np.ndarray], only: str = "f0 f1 q0 q1") -> "Drawn":
        """A copy whose named arms went through ``change``."""
        other = Drawn.__new__(Drawn)
        for name in ("f0", "f1", "q0", "q1"):
            setattr(other, name, change(getattr(self, name)) if name in only.split() else getattr(self, name))
        return other


def view(drawn: Drawn) -> View:
    """What a check measures of such arms."""
    return views.view(*drawn.arms, timesteps=TIMES)


def every(drawn: Drawn) -> dict[tuple[str, Arm], Sample]:
    """All samples that a check takes of such arms."""
    return {(s.name, s.arm): s for s in registry.samples(view(drawn))}


def _values(drawn: Drawn) -> dict[tuple[str, Arm], Measurement]:
    return {key: measure(sample, None, 0.05) for key, sample in every(drawn).items()}


draws = st.builds(Drawn, st.integers(0, 10**6), st.integers(3, 9), st.floats(0.01, 0.5))
laws = settings(max_examples=15, deadline=None)


@laws
@given(draws)
def test_identity_is_perfect(drawn: Drawn) -> None:
    """As measurements.toml says; what it leaves out is of the adapter, or undefined where nothing errs."""
    same = Drawn.__new__(Drawn)
    same.f0, same.f1, same.q0, same.q1 = drawn.f0, drawn.f1, drawn.f0, drawn.f1
    e = effect.energies(*same.arms)
    assert effect.stratum_excess(e, np.full(3, 1e-6)).mean() == pytest.approx(10 * np.log10(e.f1 / e.f0).mean())
    with np.errstate(all="ignore"):
        for (name, arm), found in _values(same).items():
            perfect = measurement.find(name).perfect
            assert perfect is None or found.value == pytest.approx(perfect, abs=1e-9), (name, arm)


@laws
@given(draws, st.floats(0.1, 10))
def test_the_unit_of_the_latents_matters_only_beside_real_pictures(drawn: Drawn, scale: float) -> None:
    louder = _values(drawn.changed(lambda x: scale * x))
    for key, found in _values(drawn).items():
        if key[0] != "reference_deviation":
            assert louder[key].value == pytest.approx(found.value, rel=1e-6, abs=1e-7), key
    f0, f1 = (scale * arm[:, -1] for arm in (drawn.f0, drawn.f1))
    (sample,), (same,) = endpoint.reference_health(f0, f1), endpoint.reference_health(f0, f0)
    alone = 10 * np.log10(f1.var((1, 2, 3)).mean() / f0.var((1, 2, 3)).mean())
    assert min(alone, 0) - 0.1 <= sample.values.mean() <= max(alone, 0) + 0.1  # but for its bias of order 1/n
    assert np.abs(same.values).max() < 1e-9


@laws
@given(draws, st.integers(0, 2), st.floats(0.01, 100))
def test_no_stratum_weighs_more_for_the_size_of_its_outputs(drawn: Drawn, stratum: int, scale: float) -> None:
    """Outputs of epsilon, v and flow models differ in size by timestep; the survival of every probe is the same."""
    factor = np.where(np.arange(3) == stratum, scale, 1.0)[:, None, None, None]
    louder = effect.survival(effect.energies(*drawn.changed(lambda x: factor * x).arms))
    assert louder == pytest.approx(effect.survival(effect.energies(*drawn.arms)), rel=1e-9, abs=1e-9)


@laws
@given(draws, st.randoms(use_true_random=False))
def test_the_order_of_the_probes_does_not_matter(drawn: Drawn, random: object) -> None:
    order = np.arange(len(drawn.f0))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = _values(drawn.changed(lambda x: x[order]))
    for key, found in _values(drawn).items():
        loose = {"abs": 2e-3} if key[0] == "latent_kl_excess" and len(order) > 8 else {"rel": 1e-6, "abs": 1e-9}
        assert mixed[key].value == pytest.approx(found.value, **loose), key


@laws
@given(draws)
def test_both_is_the_difference_of_the_arms(drawn: Drawn) -> None:
    found = every(drawn)
    for name in ("lattice_amplitude", "step_jitter", "latent_kl_excess"):
        difference = found[name, "adapted"].values - found[name, "base"].values
        assert found[name, "both"].values == pytest.approx(difference)


@settings(max_examples=30, deadline=None)
@given(draws, st.sampled_from(["q0", "q1", "f1"]), st.sampled_from([np.nan, np.inf]), st.integers(0, 10**6))
def test_what_is_not_a_number_is_never_inside_a_limit(drawn: Drawn, arm: str, odd: float, seed: int) -> None:
    """In the last output of one probe, from which everything that a run ends with follows."""

    def broken(x: np.ndarray) -> np.ndarray:
        found = x.copy()
        rng = np.random.default_rng(seed)
        found[rng.integers(len(x)), -1, rng.integers(2), rng.integers(8), rng.integers(8)] = odd
        return found

    with np.errstate(all="ignore"):
        found = every(drawn.changed(broken, arm))
    measured = measure_all(list(found.values()), LIMITS.ranges, LIMITS.alpha)
    judged = {(m.name, m.arm): m for m in judge(measured, [], LIMITS).measurements}
    others: set[Arm] = {"q0": {"adapted"}, "q1": {"base"}, "f1": {"base"}}[arm]  # type: ignore[assignment]
    for (name, of), seen in judged.items():
        touched = of not in others and (name, arm) not in {("reference_deviation", "q1"), ("adapter_shift", "q1")}
        if touched and seen.limit is not None and not (arm == "q0" and name == "reference_deviation"):
            assert seen.status == "fail", (name, of, seen.value)
        if touched and seen.limit is None:
            assert not np.isfinite(seen.value), (name, of)  # type: ignore[arg-type]


@settings(max_examples=5, deadline=None)
@given(draws, st.floats(0.1, 10))
def test_a_classifier_tells_nothing_from_itself_and_no_unit(drawn: Drawn, scale: float) -> None:
    ours, theirs = drawn.q1[:, -1], drawn.f1[:, -1]
    assert classifier.measure("adapted", ours, ours, 0.05).value == 0.5
    found = classifier.measure("adapted", ours, theirs, 0.05).value
    assert classifier.measure("adapted", scale * ours, scale * theirs, 0.05).value == pytest.approx(found)
    broken = ours.copy()
    broken[0, 0, 0, 0] = np.nan
    assert np.isnan(classifier.measure("adapted", broken, theirs, 0.05).value or 0.0)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.3), st.randoms(use_true_random=False))
def test_pictures_are_equal_to_themselves_closer_under_less_noise_and_in_any_order(
    seed: int, noise: float, random: object
) -> None:
    rng = np.random.default_rng(seed)
    full = rng.uniform(0.3, 0.7, (3, 16, 16, 3))
    change, order = rng.uniform(-1, 1, full.shape), np.arange(3)
    random.shuffle(order)  # type: ignore[attr-defined]

    def compared(quantized: np.ndarray, against: np.ndarray = full) -> dict[str, Sample]:
        return {s.name: s for s in (picture.psnr("base", quantized, against), picture.ssim("base", quantized, against))}

    exact = {name: sample.values for name, sample in compared(full).items()}
    near, far = ({name: s.values for name, s in compared(full + n * change).items()} for n in (noise / 4, noise))
    mixed = {name: s.values for name, s in compared((full + noise * change)[order], full[order]).items()}
    assert exact["psnr"] == pytest.approx(200)
    assert exact["ssim"] == pytest.approx(1)
    broken = full.copy()
    broken[1, 3, 3, 1] = np.nan
    for name, values in far.items():
        assert (near[name] > values).all()
        assert mixed[name] == pytest.approx(values[order])
        assert not np.isfinite(measure(compared(broken)[name], None, 0.05).value or 0.0)
