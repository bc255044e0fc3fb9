"""Two full-precision runs that differ by the noise of float arithmetic alone are never taken for a damaged adapter."""

from collections import Counter

import pytest

from qcheck.judge.verdict import judge
from qcheck.measure import effect
from qcheck.measure.interval import measure_all
from qcheck.result.measurement import Measurement
from qcheck.spec import limits
from tests.measure.test_laws import Drawn, every

LIMITS = limits.find("default")
GATES = [gate for gate in LIMITS.gates if gate.role != "control"]


def _outcome(drawn: Drawn) -> str:
    """The verdict on the first look; what only a control could say, that nothing was quantized, is left out."""
    chosen = LIMITS.model_copy(update={"gates": GATES})
    seen: list[Measurement] = measure_all(list(every(drawn).values()), chosen.ranges, chosen.alpha)
    energies = effect.energies(*drawn.arms)
    return judge(seen, effect.bad_probes(energies, *chosen.tail), chosen).outcome


@pytest.mark.parametrize("trials", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_float_noise_is_never_needs_qat(trials: int) -> None:
    """From the noise of float16 to that of float32."""
    outcomes = Counter(_outcome(Drawn(seed, LIMITS.looks[0], 10.0 ** -(3 + seed % 5))) for seed in range(trials))
    assert outcomes == {"PASS": trials}


def test_noise_as_loud_as_the_adapter_is_not_passed() -> None:
    """The counterpart: the simulation does see noise that is no rounding of floats."""
    assert Counter(_outcome(Drawn(seed, LIMITS.looks[0], 0.6)) for seed in range(20))["PASS"] == 0
