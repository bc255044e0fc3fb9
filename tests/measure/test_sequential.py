"""Looks at 8, 16, 32 and 64 probes: how often a whole run is wrong, and how many probes it takes."""

import numpy as np
import pytest

from qcheck.judge.looks import until_decided
from qcheck.judge.verdict import judge
from qcheck.measure.interval import measure_all
from qcheck.measure.sample import Sample
from qcheck.result.verdict import Outcome
from qcheck.spec import limits, measurement
from qcheck.spec.limits import Gate, Limits

LIMITS = limits.find("default").model_copy(
    update={"gates": [Gate(name="effect_survival", arm="adapted", role="adapter", high=3.0)]}
)


def _runs(distance: float, count: int, chosen: Limits = LIMITS, gates: int = 1) -> tuple[dict[str, float], float]:
    """Shares of the outcomes and the mean number of probes of runs whose truth lies ``distance`` sd below the limit."""
    rng = np.random.default_rng(3)
    outcomes: dict[str, float] = {}
    used = 0
    for _ in range(count):
        values = rng.normal(3.0 - distance, 1.0, (gates, chosen.looks[-1]))

        def look(probes: int, drawn: np.ndarray = values) -> tuple[Outcome, None]:
            rows = zip(chosen.gates, drawn[:, :probes], strict=True)
            samples = [Sample(gate.name, gate.arm, row) for gate, row in rows]
            return judge(measure_all(samples, chosen.ranges, chosen.alpha), [], chosen).outcome, None

        probes, outcome, _ = until_decided(chosen.looks, look)
        outcomes[outcome] = outcomes.get(outcome, 0.0) + 1 / count
        used += probes
    return outcomes, used / count


def test_at_the_boundary_each_wrong_decision_is_made_once_in_twenty() -> None:
    """On the limit itself both decisions are wrong."""
    found, _ = _runs(0.0, 3000)
    assert found["PASS"] == pytest.approx(0.05, abs=0.013)
    assert found["NEEDS-QAT"] == pytest.approx(0.05, abs=0.013)


@pytest.mark.parametrize(("distance", "probes"), [(1.5, 8.8), (1.0, 12.1), (0.75, 17.5), (0.5, 31.5)])
def test_the_further_from_the_limit_the_fewer_probes(distance: float, probes: float) -> None:
    passing, used = _runs(distance, 600)
    failing, used_failing = _runs(-distance, 600)
    assert used == pytest.approx(probes, rel=0.1)
    assert used_failing == pytest.approx(probes, rel=0.1)
    assert passing["PASS"] > 0.9
    assert failing["NEEDS-QAT"] > 0.9


def test_holm_holds_the_error_when_many_gates_are_on_their_limits() -> None:
    """Ten gates on their limits: without a correction some run in three would be blamed."""
    plain = [one for one in measurement.every().values() if one.worst_place is None]
    keys = [(one.name, arm) for one in plain for arm in one.arms][:10]
    many = [Gate(name=name, arm=arm, role="adapter", high=3.0) for name, arm in keys]
    found, _ = _runs(0.0, 500, LIMITS.model_copy(update={"gates": many}), gates=10)
    assert found.get("NEEDS-QAT", 0.0) < 0.09
    assert found.get("PASS", 0.0) < 0.01
