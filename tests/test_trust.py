"""What a report says of how far a verdict can be trusted is what happens when the check is done again."""

import numpy as np
import pytest

from qcheck.measure import effect, registry
from qcheck.measure.interval import bounds
from qcheck.result.report import Trust
from qcheck.spec import limits
from qcheck.spec.measurement import Limit
from qcheck.tasks import trust
from qcheck.tasks.decide import Instrument, decide
from tests.measure.test_laws import Drawn, view

LIMITS = limits.find("default").computing("float16")

SURVIVAL = Limit(low=0.8, high=1.2)


def test_without_spread_a_loss_down_to_the_limit_is_caught() -> None:
    assert trust.detectable_loss(np.ones(8), SURVIVAL, 0.0165) == pytest.approx(0.2)
    assert trust.detectable_loss(np.array([1.0, np.nan]), SURVIVAL, 0.0165) is None
    assert trust.detectable_loss(np.ones(8), Limit(high=1.2), 0.0165) is None


def test_what_was_not_measured_says_so() -> None:
    words = Trust(detectable_loss=None, rerun_stability=None).text()
    assert words.count("not measured") == 2


@pytest.mark.parametrize(("stability", "suggested"), [(0.0, True), (0.89, True), (0.9, False), (1.0, False)])
def test_a_verdict_that_reruns_often_change_says_how_to_ask_again(stability: float, suggested: bool) -> None:
    """By options that exist: of a PASS at the first look --max-probes would change nothing."""
    words = Trust(detectable_loss=None, rerun_stability=stability).text()
    assert ("--seed random" in words and "`looks` in a limits file" in words) == suggested


def test_an_adapter_that_lost_that_much_fails_to_pass_four_times_of_five() -> None:
    draws, spread = np.random.default_rng(3), 0.05
    losses = [trust.detectable_loss(1 + spread * draws.standard_normal(8), SURVIVAL, 0.0165) for _ in range(400)]
    loss = float(np.mean(np.array(losses, float)))
    lost = 1 - loss + spread * draws.standard_normal((4000, 8))
    passed = np.mean([bounds(values, 0.0165)[1] >= 0.8 for values in lost])
    assert 0.1 < passed < 0.3


@pytest.mark.parametrize("noise", [0.01, 3.0])
def test_clear_cases_stay_what_they_are_on_other_probes(noise: float) -> None:
    drawn = Drawn(0, 8, noise)
    gates = [gate for gate in LIMITS.gates if gate.role != "control"]
    chosen = LIMITS.model_copy(update={"gates": gates, "looks": (8,)})
    instrument = Instrument([], lambda _: np.full(8, 0.5), lambda _: None)
    samples, energies = registry.samples(view(drawn)), effect.energies(*drawn.arms)
    verdict = decide(chosen, instrument, samples, energies, [])
    found = trust.of(verdict, chosen, instrument, samples, energies, [])
    assert found.rerun_stability is not None
    assert found.rerun_stability > 0.9
    assert f"{100 * found.rerun_stability:.0f} % of reruns" in found.text()
