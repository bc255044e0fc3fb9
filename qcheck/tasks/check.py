"""The story on one page: reference -> ranges -> artifacts -> build -> traces -> measurements -> verdict -> report.

Probes are added look by look until each case has a verdict; the cache makes every step cost what is new in it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.diagnose import alignment, arrival, curves, sensitivity, ungated
from qcheck.diagnose.sensitivity import Scores
from qcheck.diagnose.sheet import Sheet
from qcheck.judge.verdict import judge
from qcheck.measure import control, distribution, effect, endpoint, registry, trajectory
from qcheck.measure.interval import measure_all
from qcheck.measure.registry import Run, View
from qcheck.measure.sample import Sample
from qcheck.model import lora
from qcheck.quantize import artifact, given
from qcheck.quantize.artifact import TWIN, Artifact, ArtifactSources
from qcheck.quantize.given import Given
from qcheck.report import write
from qcheck.report.write import SharedEvidence
from qcheck.result.build import Build
from qcheck.result.evidence import CaseEvidence
from qcheck.result.measurement import Measurement
from qcheck.result.report import Case, Report
from qcheck.result.verdict import Verdict
from qcheck.sampling.setup import Setup, Subject, forwards
from qcheck.sampling.store import Trace, require_matched
from qcheck.spec import measurement
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import CheckSpec
from qcheck.spec.limits import Limits
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import assemble, workload
from qcheck.tasks import session as sessions
from qcheck.tasks.assemble import CaseOutcome
from qcheck.tasks.session import Session, Traces


def check(spec: CheckSpec, folder: Path, cache: Cache, progress: Progress) -> Report:
    """Carry out ``spec``, writing artifacts, evidence, report.json and the page below ``folder``.

    Raises:
        UserError: bad input, or an adapter whose effect on these probes is too small to judge.
    """
    files = [given.read(Path(path), spec.execution.threads) for path in spec.artifacts]
    with sessions.opened(spec, cache, progress) as session:
        others = [_fitted(session, file) for file in files]
        workload.announce(session)
        reference = session.reference.take(spec.bounds.looks[0])
        size = require_effect(session, reference)
        aligned: dict[str, float] = {}
        if np.isfinite(size):
            aligned = alignment.find(session.arms, session.sampler, reference["adapted"], session.watch)
            found = [result for scheme in spec.schemes for result in run_scheme(session, scheme, folder)]
            found += [run_given(session, file) for file in others]
        else:
            found = [broken_case(session, scheme, order, reference) for scheme in spec.schemes for order in spec.orders]
            found += [broken_given(session, file, reference) for file in others]
        report = assemble.assemble(session, [result.case for result in found], size)
        steps = [index + 1 for index in session.sampler.setup.strata]
        shown = SharedEvidence(steps, (session.shape[2], session.shape[3]), aligned)
        with session.watch.stage("report", 1) as advance:
            write.write(report, [(result.case, result.seen, result.sheet) for result in found], shown, folder)
            advance(1)
    return report


@dataclass(frozen=True)
class Result:
    """One case with what is shown of it; ``seen`` None where nothing was run."""

    case: Case
    sheet: Sheet
    seen: CaseEvidence | None = None


def _fitted(session: Session, file: given.File) -> Given:
    setup = session.sampler.setup
    return given.fitted(
        file, session.example, setup.family.latent, setup.all_timesteps(), session.spec.execution.threads
    )


def require_effect(session: Session, reference: Traces) -> float:
    """Mean |Df| / |f1| over the probes; not finite where the reference is not.

    Raises:
        UserError: it is negligible, so there is nothing whose survival could be judged.
    """
    f0, f1 = reference["base"], reference["adapted"]
    size = float(effect.effect_size(f0.outputs(), f1.outputs(), session.sampler.setup.weights).mean())
    limit = session.spec.bounds.negligible_effect
    if size < limit:
        used = ", ".join(f"{adapter.weight:g}" for adapter in session.spec.adapters)
        words = [word for adapter in session.arms.adapters for word in lora.trigger_words(adapter)]
        named = f"its file names {', '.join(map(repr, words[:5]))}, by --trigger" if words else "by --trigger"
        raise UserError(
            f"the adapter changes the denoiser's output by only {size:.2g} of its size on these probes "
            f"(weight {used}; at least {limit:g} is needed to judge)",
            f"Use a larger --weight, prompts that wake it (its trigger word: {named}), or the base it was made for.",
        )
    return size


@dataclass(frozen=True)
class QuantizedBase:
    """What every order of a scheme is made from and compared with.

    ``floor`` is the compute type's own error, [T]; ``scores`` are what each order's layers cost.
    """

    sources: ArtifactSources
    q0: Subject
    floor: np.ndarray
    controls: list[Measurement]
    scores: Mapping[Order, Scores]


def run_scheme(session: Session, scheme: Scheme, folder: Path) -> list[Result]:
    """q0 once, then q1 in every order; artifacts go below ``folder``."""
    ground = prepare_scheme(session, scheme)
    return [run_case(make(session, order, ground, folder)) for order in session.spec.orders]


def prepare_scheme(session: Session, scheme: Scheme) -> QuantizedBase:
    """Ranges, the quantized base, controls and the sensitivity of layers."""
    spec, first = session.spec, session.spec.bounds.looks[0]
    ranges = session.calibrator.inputs(scheme)
    sources = ArtifactSources(session.shipped, session.exporter, session.store, scheme, spec.recipe, ranges)
    with session.watch.stage(f"{scheme.name}: base artifact", 1) as advance:
        base = artifact.write_base(sources)
        advance(1)
    floor, controls = run_controls(session, scheme)
    q0 = session.quantized(f"{scheme.name}: base (q0)", "base", base)
    f1 = session.reference.take(first)["adapted"]
    scores = sensitivity.find(session.arms, sources, session.sampler, f1, spec.orders, session.watch)
    return QuantizedBase(sources, q0, floor, controls, scores)


@dataclass(frozen=True)
class Quantization:
    """One scheme in one order, made: what it stands on, its artifact below ``folder``, its build, and q1 as it runs."""

    session: Session
    order: Order
    ground: QuantizedBase
    folder: Path
    artifact: Artifact
    builds: list[Build]
    q1: Subject

    @property
    def scheme(self) -> Scheme:
        """The scheme."""
        return self.ground.sources.scheme

    @property
    def title(self) -> str:
        """Scheme and order."""
        return f"{self.scheme.name} {self.order}"


def quantize(session: Session, folder: Path) -> Quantization:
    """The session's first scheme in its first order, below a folder of its own in ``folder``."""
    place = folder / f"{len(list(folder.iterdir()))}"
    return make(session, session.spec.orders[0], prepare_scheme(session, session.spec.schemes[0]), place)


def make(session: Session, order: Order, ground: QuantizedBase, folder: Path) -> Quantization:
    """Write the artifact and build it."""
    title = f"{ground.sources.scheme.name} {order}"
    with session.watch.stage(f"{title}: artifact", 1) as advance:
        made = artifact.write(ground.sources, order, folder / "artifacts")
        advance(1)
    builds = [session.gate.build(title, ground.sources.scheme, made)]
    q1 = session.quantized(f"{title}: LoRA (q1)", "adapted", made.runs)
    return Quantization(session, order, ground, folder, made, builds, q1)


@dataclass(frozen=True)
class Look:
    """All four arms on some probes, and every sample of them."""

    reference: Traces
    quantized: Traces
    samples: list[Sample]
    energies: effect.Energies


def look(made: Quantization, count: int) -> Look:
    """Run and measure the first ``count`` probes."""
    session = made.session
    reference = session.reference.take(count)
    arms: dict[Side, Subject] = {"base": made.ground.q0, "adapted": made.q1}
    quantized = {side: trace_artifact(session, arm, reference["adapted"]) for side, arm in arms.items()}
    calibrated = bool(session.spec.references)
    samples, energies = measure(session.sampler.setup, reference, quantized, made.ground.floor, calibrated)
    return Look(reference, quantized, samples, energies)


def measured(made: Quantization, count: int) -> list[Measurement]:
    """Every sampled measurement over ``count`` probes."""
    limits = made.session.spec.bounds.computing(made.scheme.compute)
    return measure_all(look(made, count).samples, limits.ranges, limits.alpha)


def judged(made: Quantization) -> Case:
    """The case as the report shows it."""
    return run_case(made).case


def run_case(made: Quantization) -> Result:
    """One scheme in one order: looks at more and more probes until there is a verdict."""
    start, session, scheme = time.monotonic(), made.session, made.scheme
    limits, weights = session.spec.bounds.computing(scheme.compute), session.sampler.setup.weights
    for count in limits.looks:
        seen = look(made, count)
        verdict = decide(limits, weights, made.ground.controls, seen.samples, seen.energies, made.builds)
        if verdict.outcome != "INCONCLUSIVE":
            break
    sheet = assemble.sheet(session, made.title, verdict, seen.reference, seen.quantized)
    prompts = [asked.prompt for asked in session.sampler.probes[:count]]
    worst = ungated.worst_prompt(seen.energies, weights, made.ground.floor, prompts)
    also = ungated.measure(seen.reference, seen.quantized, sheet, SIDES, limits.alpha)
    verdict = replace(verdict, measurements=(*verdict.measurements, worst, *also))
    steps = along(seen.reference, seen.quantized, SIDES)
    told = CaseOutcome(verdict, made.builds, seen.energies, steps, time.monotonic() - start)
    scores = made.ground.scores.get(made.order)
    case = assemble.case(session, scheme, made.order, told, made.artifact, made.folder, scores)
    shown = curves.gather(seen.reference, seen.quantized, seen.energies, weights, SIDES, (scheme.name, made.order))
    arrived, why = arrival.arrivals(session.arms, scheme, made.order, made.artifact)
    return Result(case, sheet, shown.model_copy(update={"arrivals": arrived, "no_arrivals": why}))


def run_given(session: Session, file: Given) -> Result:
    """A file of someone else's: q1 on the same probes. With no q0, Dq is q1 - f0, and nothing is laid to the base."""
    start, limits, setup = time.monotonic(), session.spec.bounds.alone(), session.sampler.setup
    builds = [session.gate.build_given(file, session.example, setup.family.latent)]
    q1 = session.stored(f"{file.name}: LoRA (q1)", "adapted", file.path, file.digest)
    for count in limits.looks:
        reference = session.reference.take(count)
        quantized: Traces = {
            "base": reference["base"],
            "adapted": trace_artifact(session, q1, reference["adapted"]),
        }
        samples, energies = measure(setup, reference, quantized, np.zeros(len(setup.strata)))
        samples = [s for s in samples if not measurement.find(s.name).compares(s.arm)]
        verdict = decide(limits, setup.weights, [], samples, energies, builds)
        if verdict.outcome != "INCONCLUSIVE":
            break
    steps = along(reference, quantized, ["adapted"])
    sheet = assemble.sheet(session, file.name, verdict, reference, quantized)
    also = ungated.measure(reference, quantized, sheet, ["adapted"], limits.alpha)
    verdict = replace(verdict, measurements=(*verdict.measurements, *also))
    case = assemble.given_case(session, file, CaseOutcome(verdict, builds, energies, steps, time.monotonic() - start))
    seen = curves.gather(reference, quantized, energies, setup.weights, ["adapted"], (file.name, given.ORDER))
    return Result(case, sheet, seen.model_copy(update={"no_arrivals": "the file does not say how it was made"}))


def decide(
    limits: Limits,
    weights: np.ndarray,
    controls: list[Measurement],
    samples: list[Sample],
    energies: effect.Energies,
    builds: list[Build],
) -> Verdict:
    """The verdict on the probes so far; ``weights`` [T] are those of the strata."""
    measured = measure_all(samples, limits.ranges, limits.alpha)
    noop = [seen for seen in control.noop(energies) if (seen.name, seen.arm) in limits.ranges]
    bad = effect.bad_probes(energies, weights, *limits.tail)
    return judge([*controls, *noop, *measured], bad, limits, builds)


def broken_case(session: Session, scheme: Scheme, order: Order, reference: Traces) -> Result:
    """A scheme that need not be built: f1 itself is not finite, and that is the verdict."""
    verdict = _broken(session.spec.bounds.computing(scheme.compute), reference)
    sheet = assemble.sheet(session, f"{scheme.name} {order}", verdict, reference, reference)
    return Result(assemble.case(session, scheme, order, CaseOutcome(verdict)), sheet)


def broken_given(session: Session, file: Given, reference: Traces) -> Result:
    """As ``broken_case``, for a file of someone else's."""
    verdict = _broken(session.spec.bounds.alone(), reference)
    sheet = assemble.sheet(session, file.name, verdict, reference, reference)
    return Result(assemble.given_case(session, file, CaseOutcome(verdict)), sheet)


def _broken(limits: Limits, reference: Traces) -> Verdict:
    seen = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    return judge(measure_all(seen, limits.ranges, limits.alpha), [], limits)


def run_controls(session: Session, scheme: Scheme) -> tuple[np.ndarray, list[Measurement]]:
    """f1 against itself: through the exporter, and in the compute type. The latter is the floor [T] of all errors."""
    timesteps = session.sampler.setup.timesteps()
    noise = {compute: _control(session, compute) for compute in (TWIN, scheme.compute)}
    floor = np.nan_to_num(noise[scheme.compute], nan=0.0, posinf=0.0)
    return floor, [
        control.export_control(noise[TWIN], timesteps),
        control.compute_control(noise[scheme.compute], timesteps),
    ]


def _control(session: Session, compute: str) -> np.ndarray:
    """Relative error power [T] of f1 in ``compute`` on the first look's probes."""
    sampler = session.sampler.take(session.spec.bounds.looks[0])
    reached = session.reference.take(len(sampler.probes))["adapted"]
    calls = forwards(sampler.setup, 0, 1, len(sampler.probes))
    with session.watch.stage(f"control: reference in {compute}", calls) as advance:
        traced = sampler.forced(session.computing("adapted", compute), reached, advance)
    return control.noise(traced.outputs(), reached.outputs())


def trace_artifact(session: Session, subject: Subject, reached: Trace) -> Trace:
    """A quantized arm in ONNX Runtime: at f1's states, then free."""
    sampler = session.sampler.take(len(reached.paths))
    calls = forwards(sampler.setup, 1, 1, len(sampler.probes))
    with session.watch.stage(f"{subject.name}, {len(sampler.probes)} probes", calls) as advance:
        return sampler.arm(subject, reached, advance)


def measure(
    setup: Setup, reference: Traces, quantized: Traces, floor: np.ndarray, calibrated: bool = False
) -> tuple[list[Sample], effect.Energies]:
    """Every sampled measurement of the four arms, which must be matched; ``calibrated``: q1 holds an adapter that was.

    Raises:
        MismatchError: they are not.
    """
    f0, f1, q0, q1 = reference["base"], reference["adapted"], quantized["base"], quantized["adapted"]
    require_matched(f1, f0, q0, q1)
    arms = (_run(f0), _run(f1), _run(q0), _run(q1))
    view = View(*arms, setup.weights, floor, setup.timesteps(), setup.strata, calibrated)
    return registry.samples(view), view.once(effect.energies_of)


def _run(trace: Trace) -> Run:
    """What measurements read of a trace."""
    scalars = {name: trace.scalars(name) for name in ("turns", "lengths", "chord", "moments", "apart")}
    return Run(outputs=trace.outputs(), finals=trace.finals(), **scalars)


def along(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> dict[str, list[float]]:
    """step_jitter [calls - 1] and latent_kl_excess [calls + 1] of an arm at every step of its free runs."""
    found = {}
    for side in sides:
        q, f = quantized[side], reference[side]
        found[f"step_jitter {side}"] = trajectory.profile(q.scalars("turns"), f.scalars("turns"))
        found[f"latent_kl_excess {side}"] = distribution.profile(q.scalars("moments"), f.scalars("moments"))
    return found
