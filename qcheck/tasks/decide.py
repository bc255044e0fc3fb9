"""From samples to the verdict: measurements beside limits, and limits beside what the instrument can tell."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qcheck.judge.verdict import judge
from qcheck.measure import control, effect, groups
from qcheck.measure.control import Control
from qcheck.measure.interval import measure, measure_all
from qcheck.measure.sample import BROKEN, Sample
from qcheck.result.build import Build
from qcheck.result.measurement import Judged, Measurement, Status
from qcheck.result.report import GroupSurvival
from qcheck.result.verdict import Verdict
from qcheck.spec.arm import SIDES, Arm, Side
from qcheck.spec.limits import Gate, Limits
from qcheck.spec.measurement import Limit


@dataclass(frozen=True)
class Instrument:
    """What a case's measurements are held against: the controls of its scheme, and changes of known size.

    ``weakened`` gives the survival [n] at a share of the adapter's weight, and ``another_seed`` how far another seed
    moves the final latents of an arm, each None where that is not known. Both may take a run, and are called only if
    needed.
    """

    controls: Sequence[Control]
    weakened: Callable[[float], np.ndarray | None]
    another_seed: Callable[[Side], float | None]


@BROKEN
def decide(
    limits: Limits,
    instrument: Instrument,
    samples: Sequence[Sample],
    energies: effect.Energies,
    builds: list[Build],
    group_of: Sequence[str] = (),
) -> Verdict:
    """The verdict on the probes so far; ``group_of`` has the name of each probe's group of prompts, if any.

    It is the last one where there are as many probes as the last look of the limits has.
    """
    in_groups, limits = by_group(limits, samples, group_of)
    limits, distances = beside_seeds(limits, samples, instrument.another_seed)
    measurements = measure_all(samples, limits.ranges, limits.alpha)
    controlled, limits = held_against(instrument.controls, control.judged_error(energies), limits)
    noop = [m for m in control.noop(energies) if (m.name, m.arm) in limits.ranges]
    weakened = positive_control(limits, instrument.weakened)
    bad_probes = effect.bad_probes(energies, *limits.tail)
    every = [*controlled, *noop, *weakened, *measurements, *in_groups, *distances]
    return judge(every, bad_probes, limits, builds, last=len(energies.f1) >= limits.looks[-1])


def by_group(limits: Limits, samples: Sequence[Sample], names: Sequence[str]) -> tuple[list[Measurement], Limits]:
    """The survival in the worst group of prompts, and the limits with one for it; neither where there is no group."""
    gate, every = _each_group(limits, samples, names)
    if gate is None or not gate.each_group or not every:
        return [], limits
    words = {side: f"in this group of prompts {said}" for side in ("below", "above") if (said := getattr(gate, side))}
    update = {"name": "group_survival", "each_group": False, **words}
    return [groups.group_survival(every, gate.limit)], limits.with_gate(gate.model_copy(update=update))


def grouped(limits: Limits, samples: Sequence[Sample], names: Sequence[str]) -> list[GroupSurvival]:
    """The survival in every group of prompts; ``names`` has the group of each probe."""
    gate, every = _each_group(limits, samples, names)
    if gate is None or not every:
        return []
    (values,) = [one.values.reshape(-1).tolist() for one in samples if one.name == "effect_survival"]
    survivals = []
    for one in every:
        probes = [number for number, name in enumerate(names[: len(values)], 1) if name == one.where]
        survival = Judged(**one.model_dump(), limit=gate.limit, status=_status(one, gate.limit, limits.alpha))
        outside = [number for number in probes if not gate.limit.holds(*[values[number - 1]] * 2)]
        survivals.append(GroupSurvival(name=one.where, survival=survival, probes=probes, outside=outside))
    return survivals


def _each_group(
    limits: Limits, samples: Sequence[Sample], names: Sequence[str]
) -> tuple[Gate | None, list[Measurement]]:
    """The gate of effect_survival, and its measurement in every group; none where there is no group or no gate."""
    gate = limits.gate("effect_survival", "adapted")
    sample = next((one for one in samples if one.name == "effect_survival"), None)
    if gate is None or sample is None:
        return None, []
    return gate, groups.each(sample, names[: len(sample.values)], gate.limit, limits.alpha)


def _status(one: Measurement, limit: Limit, alpha: float) -> Status:
    """Of a group beside the others: ``p`` is held to the look's alpha."""
    if limit.holds(one.low, one.high):
        return "pass"
    return "fail" if one.p is not None and one.p <= alpha else "undecided"


def broken(limits: Limits, samples: Sequence[Sample]) -> Verdict:
    """The verdict where f1 itself is not finite, from the ``samples`` of its health: nothing else was run."""
    return judge(measure_all(samples, limits.ranges, limits.alpha), [], limits)


SHARES = (0.5, 0.25, 0.125)


def positive_control(limits: Limits, weakened: Callable[[float], np.ndarray | None]) -> list[Measurement]:
    """The survival of an adapter that is weakened on purpose, where it has a limit; without a run it is not measured.

    It is taken at half of the weight, or less for an adapter of which half does nearly as much as all of it.
    """
    gate = limits.gate("weakened_survival", "adapted")
    if gate is None:
        return []
    for share in SHARES:
        survival = control.weakened_survival(weakened(share), share)
        if gate.holds(survival.low, survival.high):
            break
    return [survival]


def held_against(controls: Sequence[Control], judged: np.ndarray, limits: Limits) -> tuple[list[Measurement], Limits]:
    """The controls as measurements, and the limits with what they have to reach beside the ``judged`` error [T]."""
    measurements, least = list[Measurement](), dict[tuple[str, Arm], float]()
    for one in controls:
        gate = limits.gate(one.name, "adapted")
        low = 0.0 if gate is None or gate.low is None else gate.low
        margin = math.inf if gate is None or gate.margin is None else gate.margin
        measured_control, required = control.resolve(one, judged, low, margin)
        measurements.append(measured_control)
        least[one.name, "adapted"] = required
    return measurements, limits.requiring(least)


def beside_seeds(
    limits: Limits, samples: Sequence[Sample], another_seed: Callable[[Side], float | None]
) -> tuple[Limits, list[Measurement]]:
    """The limits with errors allowed up to their share of what another seed does, and these distances.

    Nothing is asked for an arm whose error is inside its limit anyway, or is not finite. A distance that is not finite
    is not measured, and raises no limit.
    """
    raised, distances = dict[tuple[str, Arm], float](), list[Measurement]()
    for side in SIDES:
        gate = limits.gate("endpoint_error", side)
        sample = next((one for one in samples if (one.name, one.arm) == ("endpoint_error", side)), None)
        if gate is None or gate.of_seed is None or gate.high is None or sample is None:
            continue
        error = measure(sample, gate.limit, limits.alpha)
        if error.value is None or not math.isfinite(error.value) or gate.holds(error.low, error.high):
            continue
        if (distance := another_seed(side)) is None:
            continue
        distances.append(control.another_seed(side, distance))
        if math.isfinite(distance):
            raised["endpoint_error", side] = max(gate.high, math.floor(100 * gate.of_seed * distance) / 100)
    return limits.allowing(raised), distances
