"""From samples to the verdict: errors beside another seed's distance, and an instrument that cannot see a loss."""

from collections.abc import Callable

import numpy as np
import pytest

from qcheck.measure import control, effect, registry
from qcheck.measure.control import Control
from qcheck.measure.sample import Sample
from qcheck.result.verdict import Verdict
from qcheck.spec import limits
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.limits import Limits
from qcheck.tasks.decide import Instrument, beside_seeds, broken, decide, held_against
from tests.measure.test_laws import TIMES, Drawn, view

LIMITS = limits.find("default").computing("float16")
WIDTH = np.resize([-0.01, 0.01], 8)  # of eight probes: an interval of .01 around the mean
NAN = np.array([*[0.1] * 7, np.nan])


class Seeds:
    """Stands for a run with other seeds: what it was asked for, and how far they move every arm."""

    def __init__(self, distance: float | None) -> None:
        self.distance, self.asked = distance, list[Side]()

    def __call__(self, side: Side) -> float | None:
        self.asked.append(side)
        return self.distance


def _beside(
    seeds: Seeds, base: float | np.ndarray, adapted: float | np.ndarray, chosen: Limits = LIMITS
) -> tuple[dict[Side, float | None], list[tuple[str, float | None]]]:
    """The limits of endpoint_error by arm and the distances, of such errors of eight probes."""
    values = {"base": WIDTH + base, "adapted": WIDTH + adapted}
    allowed, distances = beside_seeds(chosen, [Sample("endpoint_error", side, values[side]) for side in SIDES], seeds)
    highs = {side: gate.high for side in SIDES if (gate := allowed.gate("endpoint_error", side)) is not None}
    assert {one.name for one in distances} <= {"another_seed"}
    return highs, [(one.arm, one.value) for one in distances]


@pytest.mark.parametrize(
    ("base", "adapted", "asked"),
    [
        (0.1, 0.48, []),
        (0.1, 0.5, ["adapted"]),
        (0.8, 0.2, ["base"]),
        (0.495, 0.8, ["base", "adapted"]),
        (NAN, 0.1, []),
        (0.6, NAN, ["base"]),
    ],
)
def test_another_seed_is_asked_for_only_where_an_error_is_finite_and_not_inside_its_limit(
    base: float | np.ndarray, adapted: float | np.ndarray, asked: list[Side]
) -> None:
    seeds = Seeds(1.3)
    highs, distances = _beside(seeds, base, adapted)
    assert seeds.asked == asked
    assert highs == {side: 0.65 if side in asked else 0.5 for side in SIDES}
    assert distances == [(side, 1.3) for side in asked]


@pytest.mark.parametrize(
    ("distance", "high"), [(None, 0.5), (0.4, 0.5), (1.0, 0.5), (1.2, 0.6), (1.219, 0.6), (1.4, 0.7)]
)
def test_an_error_is_allowed_its_share_of_another_seeds_distance_and_never_less_than_its_limit(
    distance: float | None, high: float
) -> None:
    highs, distances = _beside(Seeds(distance), 0.1, 0.6)
    assert highs == {"base": 0.5, "adapted": high}
    assert distances == ([] if distance is None else [("adapted", distance)])


def test_what_was_not_sampled_and_a_limit_of_its_own_ask_for_no_seed() -> None:
    alone, seeds = (
        LIMITS.model_copy(update={"gates": [g for g in LIMITS.gates if g.name != "endpoint_error"]}),
        Seeds(9),
    )
    fixed = [gate.model_copy(update={"of_seed": None}) for gate in LIMITS.gates]
    assert _beside(seeds, 0.8, 0.8, alone) == ({}, [])
    assert _beside(seeds, 0.8, 0.8, LIMITS.model_copy(update={"gates": fixed})) == ({"base": 0.5, "adapted": 0.5}, [])
    assert beside_seeds(LIMITS, [], seeds) == (LIMITS, [])
    assert seeds.asked == []


def _decided(
    drawn: Drawn,
    weakened: Callable[[float], np.ndarray] = lambda _: np.full(8, 0.45),
    distance: float | None = None,
    chosen: Limits = LIMITS,
) -> Verdict:
    """The verdict on drawn outputs, with an export and a compute type that err by nothing."""
    silent = [Control(name, np.zeros(3), (0, 1, 2), TIMES) for name in ("export_control", "compute_control")]
    instrument = Instrument(silent, weakened, Seeds(distance))
    return decide(chosen, instrument, registry.samples(view(drawn)), effect.energies(*drawn.arms), [])


@pytest.mark.parametrize(("survival", "outcome"), [(0.45, "PASS"), (0.8, "PASS"), (0.81, "INVALID"), (1.0, "INVALID")])
def test_where_a_weakened_adapter_would_pass_for_all_of_it_nothing_is_said(survival: float, outcome: str) -> None:
    found = _decided(Drawn(0, 8, 0.01), lambda _: np.full(8, survival))
    assert found.outcome == outcome
    (seen,) = [one for one in found.measurements if one.name == "weakened_survival"]
    assert seen.value == pytest.approx(survival)
    assert outcome == "PASS" or "of the LoRA's weight would pass for all of it" in found.reasons[0]


@pytest.mark.parametrize(
    ("survivals", "shares", "outcome"),
    [
        ({0.5: 0.45}, [0.5], "PASS"),
        ({0.5: 0.9, 0.25: 0.6}, [0.5, 0.25], "PASS"),
        ({0.5: 0.95, 0.25: 0.9, 0.125: 0.7}, [0.5, 0.25, 0.125], "PASS"),
        ({0.5: 1.0, 0.25: 0.95, 0.125: 0.9}, [0.5, 0.25, 0.125], "INVALID"),
        ({0.5: np.nan, 0.25: np.nan, 0.125: np.nan}, [0.5, 0.25, 0.125], "INVALID"),
    ],
)
def test_an_adapter_is_weakened_only_as_far_as_a_loss_is_seen(
    survivals: dict[float, float], shares: list[float], outcome: str
) -> None:
    asked: list[float] = []

    def weakened(share: float) -> np.ndarray:
        asked.append(share)
        return np.full(8, survivals[share])

    found = _decided(Drawn(0, 8, 0.01), weakened)
    assert (asked, found.outcome) == (shares, outcome)
    (seen,) = [one for one in found.measurements if one.name == "weakened_survival"]
    assert seen.where == f"{shares[-1]:g} of the weight"


def test_without_its_gate_no_weakened_adapter_is_measured() -> None:
    gates = [gate for gate in LIMITS.gates if gate.name != "weakened_survival"]
    chosen = LIMITS.model_copy(update={"gates": gates})
    found = _decided(Drawn(0, 8, 0.01), lambda _: pytest.fail("measured"), chosen=chosen)
    assert found.outcome == "PASS"


@pytest.mark.parametrize(("distance", "outcome"), [(None, "FAIL-RECIPE"), (1.1, "FAIL-RECIPE"), (1.6, "PASS")])
def test_an_error_beyond_its_limit_passes_where_another_seed_moves_pictures_twice_as_far(
    distance: float | None, outcome: str
) -> None:
    """Final latents of both arms are off by .7 of their size; the outputs that they are judged by otherwise are not."""
    drawn = Drawn(0, 8, 0.01)
    gates = [g for g in LIMITS.gates if g.role == "control" or g.name in {"effect_survival", "endpoint_error"}]
    turned = drawn.changed(lambda x: x, "q0 q1")
    off = 0.7 * np.sqrt(np.mean(drawn.f0[:, -1] ** 2)) * np.random.default_rng(1).standard_normal(drawn.f0[:, -1].shape)
    for name in ("q0", "q1"):
        outputs = getattr(turned, name).copy()
        outputs[:, -1] += off
        setattr(turned, name, outputs)
    found = _decided(turned, distance=distance, chosen=LIMITS.model_copy(update={"gates": gates}))
    assert found.outcome == outcome
    moved = {(one.arm, one.value, one.status) for one in found.measurements if one.name == "another_seed"}
    assert moved == ({(side, distance, "reported") for side in SIDES} if distance else set())
    limited = {one.limit.high for one in found.measurements if one.name == "endpoint_error" and one.limit is not None}
    assert limited == {0.8 if distance == 1.6 else 0.55 if distance else 0.5}


def test_a_control_has_to_reach_what_its_gate_asks_and_nothing_without_one() -> None:
    heard = Control("export_control", np.full(3, 1e-6), (0, 1, 2), TIMES)
    quiet = np.full(3, 1e-9)  # an error so far below that the margin asks for more than the gate
    _, asked = held_against([heard], quiet, LIMITS)
    gate = asked.gate("export_control", "adapted")
    assert (gate is not None, gate and gate.low) == (True, 80.0)
    alone = LIMITS.model_copy(update={"gates": []})
    assert held_against([heard], quiet, alone)[1] == alone


def test_an_adapter_that_is_broken_at_full_precision_is_judged_by_its_health_alone() -> None:
    found = broken(LIMITS.alone(), [Sample("reference_deviation", "adapted", NAN)])
    assert found.outcome == "FAIL-ADAPTER"
    assert [one.name for one in found.measurements] == ["reference_deviation"]


@pytest.mark.parametrize("distance", [float("nan"), float("inf")])
def test_a_run_of_another_seed_that_is_not_finite_raises_no_limit_and_says_so(distance: float) -> None:
    high, _ = _beside(Seeds(distance), 0.8, 0.8)
    assert high == _beside(Seeds(None), 0.8, 0.8)[0]
    shown = control.another_seed("base", distance)
    assert (shown.value, shown.where) == (None, "the run with other seeds is not finite")
