"""How much a check is going to run: cases, probes, denoiser calls, and how long those take."""

from dataclasses import dataclass

from qcheck.calibration.inputs import origins_of
from qcheck.diagnose import alignment, sensitivity
from qcheck.quantize.artifact import TWIN
from qcheck.sampling import subject
from qcheck.sampling.setup import Setup, forwards
from qcheck.spec.check import CheckSpec
from qcheck.tasks.session import Session


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


def plan(spec: CheckSpec, setup: Setup) -> Workload:
    """What the request needs with an empty cache; factors of SmoothQuant and AWQ, whose search varies, not included."""
    schemes, given = len(spec.schemes), len(spec.artifacts)
    cases = schemes * len(spec.orders) + given
    calibrated = any(rule.activations for scheme in spec.schemes for rule in scheme.rules)
    computed = {TWIN, *(scheme.compute for scheme in spec.schemes)} if schemes else set()
    once = forwards(setup, 0, len(computed), spec.bounds.looks[0])
    once += forwards(setup, 0, 1, min(alignment.PROBES, spec.bounds.looks[0]))
    once += _calibration(spec, setup) if calibrated else 0
    states = min(sensitivity.STATES, spec.bounds.looks[0] * len(setup.strata))
    once += states * sum(not s.control and s.exported for s in spec.schemes)

    def calls(probes: int) -> int:
        """f1's run, f0 at its states and its own run, then the same for each q0 and each case."""
        return forwards(setup, 2 + schemes + cases, 1 + schemes + cases, probes) + once

    ends = spec.bounds.looks[0], spec.bounds.looks[-1]
    return Workload(cases, ends, (calls(ends[0]), calls(ends[1])))


def _calibration(spec: CheckSpec, setup: Setup) -> int:
    """Both arms at the states of one run; what adapters share comes from the base's own run."""
    asked = min(spec.recipe.strata, setup.calls)
    shared = "shared" in origins_of(spec.orders)
    return spec.recipe.samples * ((1 + shared) * setup.calls + (2 + shared) * asked)


def announce(session: Session) -> None:
    """Say what is ahead; how long it takes comes from one timed call, where the reference is not known already."""
    sampler, f1 = session.sampler, subject.full(session.arms, "adapted")
    seconds = None if sampler.known(f1) else sampler.seconds(f1)
    session.watch.note(plan(session.spec, sampler.setup).text(seconds))
