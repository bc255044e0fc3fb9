"""The verdict on pictures from the numbers of each pair, without a model: for the one who judges, and who audits."""

from collections.abc import Sequence
from dataclasses import replace

from qcheck.judge import verdict as verdicts
from qcheck.measure import interval
from qcheck.measure.sample import Sample
from qcheck.result.measurement import Measurement
from qcheck.result.verdict import Verdict
from qcheck.spec.picture_limits import PictureLimits


def decide(limits: PictureLimits, others: Sequence[Measurement], samples: Sequence[Sample], count: int) -> Verdict:
    """The verdict on ``count`` pairs, by ``others``, which are no samples, and ``samples``.

    Fewer pairs than ``limits.least`` never decide.
    """
    given = limits.limits
    measurements = [*others, *interval.measure_all(samples, given.ranges, given.alpha)]
    decided = verdicts.judge(measurements, (), given)
    if count >= limits.least or decided.outcome in ("INVALID", "INCONCLUSIVE"):
        return decided
    few = f"{count} pairs are too few: at least {limits.least} decide"
    return replace(decided, outcome="INCONCLUSIVE", reasons=(few,))
