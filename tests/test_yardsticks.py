"""Changes of known size to the demo's arms read what they are."""

import pytest

from qcheck.core.cache import Cache
from qcheck.core.progress import Silent, Stopwatch
from qcheck.model.arms import Arms
from qcheck.sampling import subject
from qcheck.sampling.sampler import Sampler
from qcheck.sampling.yardsticks import Yardsticks
from qcheck.spec.arm import Side
from tests.faults import CHOSEN
from tests.test_trace import quiet

SIDES: tuple[Side, ...] = ("base", "adapted")


@pytest.fixture(scope="module")
def yardsticks(demo_arms: Arms, tmp_path_factory: pytest.TempPathFactory) -> Yardsticks:
    """Of the adapter "flat", on two probes; the prompts are not encoded yet when a yardstick asks for them."""
    asked, store = CHOSEN.model_copy(update={"prompts": CHOSEN.prompts[:2]}), Cache(tmp_path_factory.mktemp("cache"))
    sampler = Sampler.of(demo_arms, asked, 4, 2, store)
    f1 = sampler.reference(subject.full(demo_arms, "adapted"), quiet)
    traces = {"base": sampler.arm(subject.full(demo_arms, "base"), f1, quiet), "adapted": f1}
    fresh = Sampler.of(demo_arms, asked, 4, 2, store)
    return Yardsticks(demo_arms, asked, fresh, traces, Stopwatch(Silent()))


def test_an_adapter_at_half_of_its_weight_keeps_about_half_of_its_effect(yardsticks: Yardsticks) -> None:
    assert yardsticks.weakened(1.0) == pytest.approx(1)
    assert 0.35 < yardsticks.weakened(0.5).mean() < 0.65
    assert 0.05 < yardsticks.weakened(0.125).mean() < 0.25


@pytest.mark.parametrize("side", SIDES)
def test_another_seed_is_another_picture(yardsticks: Yardsticks, side: Side) -> None:
    assert yardsticks.another_seed(side) > 0.02  # few pixels: the demo has one picture for a prompt
    assert yardsticks.another_seed(side) == yardsticks.another_seed(side)
