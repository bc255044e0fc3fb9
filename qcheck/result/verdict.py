"""The words of a verdict: what a case is called, and how a build of it ended."""

from dataclasses import dataclass
from typing import Literal

from qcheck.result.measurement import Judged

BuildStatus = Literal["built", "fell back", "refused", "crashed", "not run"]
Outcome = Literal["PASS", "NEEDS-QAT", "FAIL-RECIPE", "FAIL-ADAPTER", "INCONCLUSIVE", "INVALID"]
CURABLE: tuple[Outcome, ...] = ("NEEDS-QAT", "FAIL-RECIPE", "FAIL-ADAPTER", "INCONCLUSIVE")  # what advice is for


@dataclass(frozen=True)
class Verdict:
    """The outcome, the sentences that led to it, every measurement beside its limit, and what decides nothing."""

    outcome: Outcome
    reasons: tuple[str, ...]
    measurements: tuple[Judged, ...]
    warnings: tuple[str, ...] = ()
