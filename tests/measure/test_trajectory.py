import numpy as np
import pytest
import torch

from qcheck.measure import trajectory
from qcheck.sampling.trajectory import Trajectory
from tests import views

COUNT, CALLS, SHAPE = 6, 10, (4, 8, 8)


def _run(noise: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs that turn slowly, with fresh noise at every call."""
    rng = np.random.default_rng(seed)
    first, second = np.random.default_rng(1).standard_normal((2, COUNT, *SHAPE))
    seen, x = Trajectory(), torch.zeros(COUNT, *SHAPE)
    for call in range(CALLS):
        angle = 0.1 * call
        output = np.cos(angle) * first + np.sin(angle) * second + noise * rng.standard_normal(first.shape)
        seen.add(x, torch.from_numpy(output))
        x = x - torch.from_numpy(output) / CALLS
    return {name: values.numpy() for name, values in seen.scalars(x).items()}


def test_a_trajectory_keeps_a_few_scalars_of_each_call() -> None:
    found = _run(0.0)
    assert {name: values.shape for name, values in found.items()} == {
        "turns": (COUNT, CALLS - 1),
        "lengths": (COUNT, CALLS),
        "chord": (COUNT, 1),
        "moments": (COUNT, CALLS + 1, 2, SHAPE[0]),
    }
    assert found["turns"].mean() == pytest.approx(1 - np.cos(0.1), rel=0.1)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_jitter_reads_the_noise_of_every_step(noise: float) -> None:
    """Two unit vectors with independent noise of relative size s have cosine 1 / (1 + s^2)."""
    turns = [_run(n)["turns"] for n in (0.0, 0.0, 0.0, noise)]
    turns[3][:, 6] += 0.001
    odd = views.only("turns", [*turns[:3], turns[0] + np.eye(CALLS - 1)[6]])
    assert trajectory.step_jitter(odd)[1].places == ("step 7",)
    found = {s.arm: s.values.mean() for s in trajectory.step_jitter(views.only("turns", turns))}
    assert found["base"] == 0
    assert found["adapted"] == pytest.approx(1 - 1 / (1 + noise**2), rel=0.15)
    assert found["both"] == found["adapted"]
    assert trajectory.profile(turns[3], turns[1]) == pytest.approx([noise**2 / (1 + noise**2)] * (CALLS - 1), rel=0.4)


def test_a_detour_of_a_quantized_run_lowers_its_straightness() -> None:
    straight = np.zeros((COUNT, 3, 1, 1, 1)) + np.arange(3.0)[:, None, None, None]
    detour = straight.copy()
    detour[:, 1] = 5
    found = {
        (name, s.arm): s.values.mean()
        for name, arms in {"base": (detour, straight), "adapted": (straight, detour)}.items()
        for s in trajectory.straightness_of(views.view(straight, straight, *arms))
    }
    assert found["base", "base"] == found["adapted", "adapted"] == pytest.approx(2 / 8 - 1)
    assert found["base", "adapted"] == found["adapted", "base"] == 0


def test_jitter_that_only_full_precision_has_is_hidden() -> None:
    calm, rough = _run(0.0)["turns"], _run(0.5)["turns"]
    (lost,), (kept,) = (trajectory.hidden_jitter(views.only("turns", [calm, rough, calm, q1])) for q1 in (calm, rough))
    assert lost.values.min() > 0.1
    assert kept.values == pytest.approx(0)


def test_a_run_of_one_call_has_no_jitter() -> None:
    nothing = np.empty((COUNT, 0))
    assert (trajectory.jitter(nothing) == 0).all()
    assert trajectory.profile(nothing, nothing) == []
    assert trajectory.step_jitter(views.only("turns", [nothing] * 4))[0].places == ()


def test_a_straight_trajectory_is_as_long_as_its_chord() -> None:
    seen, x = Trajectory(), torch.zeros(1, *SHAPE)
    for _ in range(4):
        seen.add(x, torch.ones_like(x))
        x = x + 0.5
    found = seen.scalars(x)
    assert trajectory.straightness(found["chord"].numpy(), found["lengths"].numpy()) == pytest.approx([1.0])
    crooked = _run(0.5)
    assert (trajectory.straightness(crooked["chord"], crooked["lengths"]) < 0.95).all()


def test_divergence_reads_the_rate_at_which_runs_part() -> None:
    places = np.array([0, 2, 4, 7])
    apart = np.where(places > 0, 0.01 * np.exp(0.3 * places), 0.0)
    assert trajectory.divergence([apart, 5 * apart, 0 * apart], places) == pytest.approx([0.3, 0.3, 0.0])
