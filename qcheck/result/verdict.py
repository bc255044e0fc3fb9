"""The words of a verdict: what a case is called, and how a build of it ended."""

from dataclasses import dataclass
from typing import Literal

from qcheck.core.values import Value
from qcheck.result.measurement import Judged
from qcheck.spec.arm import Arm

BuildStatus = Literal["built", "fell back", "refused", "crashed", "not run"]
Outcome = Literal["PASS", "NEEDS-QAT", "FAIL-RECIPE", "FAIL-ADAPTER", "INCONCLUSIVE", "INVALID"]
CURABLE: tuple[Outcome, ...] = ("NEEDS-QAT", "FAIL-RECIPE", "FAIL-ADAPTER", "INCONCLUSIVE")  # what advice is for


class Deciding(Value):
    """Which measurement of which arm a verdict rests on."""

    name: str
    arm: Arm


@dataclass(frozen=True)
class Verdict:
    """The outcome, the sentences that led to it, every measurement with its limit, and warnings, which decide nothing.

    ``deciding`` is None where no measurement decided, e.g. a build that was refused.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    measurements: tuple[Judged, ...]
    warnings: tuple[str, ...] = ()
    deciding: Deciding | None = None
