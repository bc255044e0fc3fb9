"""How much a check is going to run: cases, probes, denoiser calls, and how long those take."""

from dataclasses import dataclass

from qcheck.diagnose import alignment, sensitivity
from qcheck.quantize.artifact import TWIN
from qcheck.sampling import sampler
from qcheck.sampling.setup import Setup, forwards
from qcheck.spec.check import Job
from qcheck.tasks.work import Work


@dataclass(frozen=True)
class Workload:
    """Cases, probes of the first and of the last look, and denoiser calls if every case ends at the one or the other.

    A call is one probe at one step, all branches of guidance included.
    """

    cases: int
    probes: tuple[int, int]
    calls: tuple[int, int]

    def text(self, seconds: float | None) -> str:
        """In words; ``seconds`` of one call, None where the reference is there already."""
        counted = (
            f"{self.cases} {'case' if self.cases == 1 else 'cases'}, {_span(*self.probes)} probes each, "
            f"{_span(*self.calls)} denoiser calls"
        )
        if seconds is None:
            return f"{counted}, less what the cache holds"
        taken = " to ".join(dict.fromkeys(_duration(seconds * calls) for calls in self.calls))
        return f"{counted}; at {seconds:.2g} s each, as measured now, {taken}, and artifacts and builds"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan(job: Job, setup: Setup) -> Workload:
    """What the job needs with an empty cache; factors of SmoothQuant and AWQ, whose search varies, not included."""
    schemes, given = len(job.schemes), len(job.artifacts)
    cases = schemes * len(job.orders) + given
    calibrated = any(rule.activations for scheme in job.schemes for rule in scheme.rules)
    computed = {TWIN, *(scheme.compute for scheme in job.schemes)} if schemes else set()
    once = forwards(setup, 0, len(computed), job.limits.looks[0])
    once += forwards(setup, 0, 1, min(alignment.PROBES, job.limits.looks[0]))
    once += _calibration(job, setup) if calibrated else 0
    states = min(sensitivity.STATES, job.limits.looks[0] * len(setup.strata))
    once += states * sum(not s.control and s.exported for s in job.schemes)

    def calls(probes: int) -> int:
        """f1's walk, f0 at its states and its own walk, then the same for each q0 and each case."""
        return forwards(setup, 2 + schemes + cases, 1 + schemes + cases, probes) + once

    ends = job.limits.looks[0], job.limits.looks[-1]
    return Workload(cases, ends, (calls(ends[0]), calls(ends[1])))


def _calibration(job: Job, setup: Setup) -> int:
    """Both arms at the states of one walk; what adapters share comes from the base's own walk."""
    asked = min(job.recipe.strata, setup.calls)
    shared = "refit" in job.orders
    return job.recipe.samples * ((1 + shared) * setup.calls + (2 + shared) * asked)


def announce(work: Work) -> None:
    """Say what is ahead; how long it takes comes from one timed call, where the reference is not known already."""
    setup, subject, first = work.setup, work.full("adapted"), work.probes[0]
    known = sampler.known(setup, subject, first, work.store)
    work.progress.note(plan(work.job, setup).text(None if known else sampler.seconds(setup, subject, first)))
