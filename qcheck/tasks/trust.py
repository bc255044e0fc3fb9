"""How far a verdict can be trusted: the loss that it would have caught, and how often a rerun would say the same."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qcheck.device import student
from qcheck.judge.looks import until_decided
from qcheck.measure.effect import Energies
from qcheck.measure.sample import Sample
from qcheck.result.build import Build
from qcheck.result.report import Trust
from qcheck.result.verdict import Outcome, Verdict
from qcheck.spec.limits import Limits
from qcheck.spec.measurement import Limit
from qcheck.tasks.decide import Instrument, decide

POWER = 0.8
RERUNS = 100


def of(
    verdict: Verdict,
    limits: Limits,
    instrument: Instrument,
    samples: Sequence[Sample],
    energies: Energies,
    builds: list[Build],
    group_of: Sequence[str] = (),
) -> Trust:
    """Both, of a verdict on these samples."""
    survivals = next(sample.values for sample in samples if sample.name == "effect_survival")
    gate = limits.gate("effect_survival", "adapted")
    finite = all(np.isfinite(sample.values).all() for sample in samples if (sample.name, sample.arm) in limits.ranges)
    return Trust(
        detectable_loss=None if gate is None else detectable_loss(survivals, gate.limit, limits.alpha),
        rerun_stability=rerun_stability(verdict.outcome, limits, instrument, samples, energies, builds, group_of)
        if finite
        else None,
    )


def detectable_loss(survivals: np.ndarray, limit: Limit, alpha: float) -> float | None:
    """The smallest share of an adapter's effect whose loss would have kept these probes from PASS, ``POWER`` of times.

    ``survivals`` [n], n >= 2. A check passes where the mean less t(1 - alpha) standard errors is above ``limit.low``,
    so a true survival of low + (t(1 - alpha) - t(POWER)) standard errors fails to with that probability, if a loss
    leaves the spread as it is. None where nothing bounds a loss, or a value is not finite.
    """
    count = len(survivals)
    with np.errstate(all="ignore"):
        error = float(survivals.std(ddof=1)) / np.sqrt(count)
    if limit.low is None or not np.isfinite(error):
        return None
    above = (student.quantile(1 - alpha, count - 1) - student.quantile(POWER, count - 1)) * error
    return float(min(max(1 - (limit.low + above), 0.0), 1.0))


def rerun_stability(
    outcome: Outcome,
    limits: Limits,
    instrument: Instrument,
    samples: Sequence[Sample],
    energies: Energies,
    builds: list[Build],
    group_of: Sequence[str] = (),
) -> float:
    """Share of ``RERUNS`` checks on other probes that would end as this one did, by drawing its probes again.

    Each rerun draws probes of this check with replacement, as many as the last look has, and looks at them in order. It
    knows the spread between these probes only: prompts of another kind may do what none of these does.
    """
    draws, count = np.random.default_rng(0), len(energies.f1)
    gated = [sample for sample in samples if (sample.name, sample.arm) in limits.ranges]
    same = 0
    for _ in range(RERUNS):
        rows = draws.integers(count, size=limits.looks[-1])

        def judge_at(size: int, rows: np.ndarray = rows) -> tuple[Outcome, None]:
            chosen = rows[:size]
            again = [dataclasses.replace(sample, values=sample.values[chosen]) for sample in gated]
            sums = Energies(**{name: values[chosen] for name, values in vars(energies).items()})
            names = [group_of[row] for row in chosen] if group_of else ()
            return decide(limits, instrument, again, sums, builds, names).outcome, None

        same += until_decided(limits.looks, judge_at)[1] == outcome
    return same / RERUNS
