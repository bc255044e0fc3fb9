"""The work ahead of a check: cases, probes, denoiser calls, and how long those take."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from qcheck.calibration.inputs import origins_of
from qcheck.diagnose import alignment, sensitivity
from qcheck.quantize.artifact import TWIN
from qcheck.sampling import subject
from qcheck.sampling.setup import STRATA, Steps, choose_strata, forwards
from qcheck.spec import sampling
from qcheck.spec.check import CheckSpec
from qcheck.tasks.session import Session


@dataclass(frozen=True)
class Workload:
    """The number of cases; probes and denoiser calls if every case ends at the first look, and if at the last.

    A call is one probe at one step, all branches of guidance included.
    """

    cases: int
    probes: tuple[int, int]
    calls: tuple[int, int]

    def text(self, seconds: float | None, busy: bool = False) -> str:
        """The workload in words; ``seconds`` is the time of one call, None where the reference is in the cache.

        ``busy`` is whether the machine did other work while it was taken.
        """
        counts = (
            f"{self.cases} {'case' if self.cases == 1 else 'cases'}, {_span(*self.probes)} probes each, "
            f"{_span(*self.calls)} denoiser calls"
        )
        if seconds is None:
            return f"{counts}, less what the cache holds"
        duration = " to ".join(dict.fromkeys(_duration(seconds * calls) for calls in self.calls))
        other = " beside other work, without which it may be far less" if busy else ""
        return (
            f"{counts}; at {seconds:.2g} s each, as measured now{other}, {duration}; artifacts and builds come on top"
        )


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Length:
    """The number of a run's calls, and the indices of those that arms are compared at."""

    calls: int
    strata: tuple[int, ...]


def steps_of(spec: CheckSpec) -> Length:
    """The length of a request's runs where the solver takes one call a step: no model is loaded."""
    return Length(spec.probes.steps, choose_strata(spec.probes.steps, STRATA))


def plan(spec: CheckSpec, setup: Steps) -> Workload:
    """The work of a request with an empty cache, without SmoothQuant and AWQ, whose search varies in length."""
    schemes, files = len(spec.schemes), len(spec.artifacts)
    cases = schemes * len(spec.orders) + files
    calibrated = any(rule.activations for scheme in spec.schemes for rule in scheme.rules)
    computes = {TWIN, *(scheme.compute for scheme in spec.schemes)} if schemes else set()
    weakened = schemes > 0 and spec.bounds.gate("weakened_survival", "adapted") is not None
    fixed_calls = forwards(setup, 0, len(computes) + weakened, spec.bounds.looks[0])
    fixed_calls += forwards(setup, 0, 1, min(alignment.PROBES, spec.bounds.looks[0]))
    fixed_calls += _calibration(spec, setup) if calibrated else 0
    states = min(sensitivity.STATES, spec.bounds.looks[0] * len(setup.strata))
    fixed_calls += states * sum(not s.control and s.exported for s in spec.schemes)

    def calls(probes: int) -> int:
        """Calls of f1's run, of f0 at f1's states and in its own run, and the latter two for each q0 and each case."""
        return forwards(setup, 2 + schemes + cases, 1 + schemes + cases, probes) + fixed_calls

    ends = spec.bounds.looks[0], spec.bounds.looks[-1]
    return Workload(cases, ends, (calls(ends[0]), calls(ends[1])))


def _calibration(spec: CheckSpec, setup: Steps) -> int:
    """Calls of both arms at the states of one run; shared ranges take a run of the base too."""
    strata = min(spec.recipe.strata, setup.calls)
    shared = "shared" in origins_of(spec.orders)
    return spec.recipe.samples * ((1 + shared) * setup.calls + (2 + shared) * strata)


def sampling_origin(spec: CheckSpec) -> str | None:
    """Where steps and guidance are from, in words; None where the request or its probe set names them."""
    own = sampling.of_base(Path(spec.base)) if spec.probes.of_base else None
    if own is None:
        return None
    return f"{own[0].steps} steps at guidance {own[0].guidance:g}, by {own[1]}; --steps and --guidance change that"


def announce(session: Session) -> None:
    """Report the workload; its duration is estimated from one timed call, unless the reference is in the cache."""
    sampler, f1 = session.sampler, subject.full(session.arms, "adapted")
    seconds = None if sampler.known(f1) else sampler.seconds(f1)
    if origin := sampling_origin(session.spec):
        session.watch.note(origin)
    session.watch.note(plan(session.spec, sampler.setup).text(seconds, _busy()))


def _busy() -> bool:
    """Whether more processes than the machine has cores wanted to run in the last minute."""
    load: float = psutil.getloadavg()[0]
    return load > (psutil.cpu_count() or 1) + 0.5
