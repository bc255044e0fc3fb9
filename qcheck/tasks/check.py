"""The whole check: reference -> ranges -> artifacts -> build -> traces -> measurements -> verdict -> report.

Probes are added look by look until each case has a verdict. Results are cached: a step that is repeated costs only the
probes that are new.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcheck.core.cache import Cache
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.diagnose import alignment, arrival, curves, judges, sensitivity, ungated
from qcheck.diagnose.scores import Scores
from qcheck.diagnose.sheet import Sheet
from qcheck.diagnose.ungated import Ungated
from qcheck.judge.looks import until_decided
from qcheck.measure import distribution, effect, endpoint, registry, trajectory
from qcheck.measure.interval import measure_all
from qcheck.measure.registry import Run, View
from qcheck.measure.sample import Sample
from qcheck.model import lora
from qcheck.quantize import artifact, given
from qcheck.quantize.artifact import Artifact, ArtifactSources
from qcheck.quantize.given import Given
from qcheck.report import write
from qcheck.report.write import SharedEvidence
from qcheck.result.build import Build
from qcheck.result.evidence import CaseEvidence
from qcheck.result.measurement import Measurement
from qcheck.result.report import Case, Report
from qcheck.result.verdict import Outcome, Verdict
from qcheck.sampling.setup import Setup, Subject, forwards
from qcheck.sampling.store import Trace, require_matched
from qcheck.spec import measurement
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import CheckSpec
from qcheck.spec.limits import Limits
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import assemble, basis, controls, trust, workload
from qcheck.tasks import session as sessions
from qcheck.tasks.assemble import CaseOutcome
from qcheck.tasks.decide import Instrument, broken, decide, grouped
from qcheck.tasks.session import Session, Traces, Warm


def check(spec: CheckSpec, folder: Path, cache: Cache, progress: Progress, warm: Warm | None = None) -> Report:
    """Carry out ``spec``, writing artifacts, evidence, report.json and the page below ``folder``.

    ``warm`` may hold the base already.

    Raises:
        UserError: bad input, or an adapter whose effect on these probes is too small to judge.
    """
    files = [given.read(Path(path), spec.execution.threads) for path in spec.artifacts]
    with sessions.opened(spec, cache, progress, warm) as session:
        given_files = [_given_file(session, file) for file in files]
        workload.announce(session)
        reference = session.reference.take(spec.bounds.looks[0])
        size = require_effect(session, reference)
        alignments: dict[str, float] = {}
        if np.isfinite(size):
            alignments = alignment.find(session.arms, session.sampler, reference["adapted"], session.watch)
            results = [result for scheme in spec.schemes for result in run_scheme(session, scheme, folder)]
            results += [run_given(session, file) for file in given_files]
        else:
            results = [
                broken_case(session, scheme, order, reference) for scheme in spec.schemes for order in spec.orders
            ]
            results += [broken_given(session, file, reference) for file in given_files]
        report = assemble.assemble(session, [result.case for result in results], size)
        steps = [index + 1 for index in session.sampler.setup.strata]
        evidence = SharedEvidence(steps, (session.shape[2], session.shape[3]), alignments)
        with session.watch.stage("report", 1) as advance:
            write.write(report, [(result.case, result.seen, result.sheet) for result in results], evidence, folder)
            advance(1)
    return report


@dataclass(frozen=True)
class Result:
    """One case with its contact sheet and its evidence ``seen``, which is None where nothing was run."""

    case: Case
    sheet: Sheet
    seen: CaseEvidence | None = None


def _given_file(session: Session, file: given.File) -> Given:
    setup = session.sampler.setup
    fitted = given.fitted(
        file, session.example, setup.family.latent, setup.all_timesteps(), session.spec.execution.threads
    )
    given.require_runs(fitted, session.example, setup.family.latent, setup.family.fixed)
    return fitted


def require_effect(session: Session, reference: Traces) -> float:
    """Mean |Df| / |f1| over the probes, Df = f1 - f0; not finite where the reference is not.

    Raises:
        UserError: the effect is negligible, so its survival cannot be judged.
    """
    f0, f1 = reference["base"], reference["adapted"]
    size = float(effect.effect_size(f0.outputs(), f1.outputs(), session.sampler.setup.weights).mean())
    limit = session.spec.bounds.negligible_effect
    if size < limit:
        weights = ", ".join(f"{adapter.weight:g}" for adapter in session.spec.adapters)
        words = [word for adapter in session.arms.adapters for word in lora.trigger_words(adapter)]
        hint = f"its file names {', '.join(map(repr, words[:5]))}, by --trigger" if words else "by --trigger"
        raise UserError(
            f"the adapter changes the denoiser's output by only {size:.2g} of its size on these probes "
            f"(weight {weights}; at least {limit:g} is needed to judge)",
            f"Use a larger --weight, prompts that wake it (its trigger word: {hint}), or the base it was made for.",
        )
    return size


@dataclass(frozen=True)
class QuantizedBase:
    """The quantized base of one scheme, from which the artifacts of all its orders are made.

    ``floor`` [T] is the relative error power of the compute type alone; ``scores`` are the layers' costs in each order.
    """

    sources: ArtifactSources
    q0: Subject
    floor: np.ndarray
    instrument: Instrument
    scores: Mapping[Order, Scores]


def run_scheme(session: Session, scheme: Scheme, folder: Path) -> list[Result]:
    """Quantize and judge a scheme: q0 once, then q1 in every order; artifacts go below ``folder``."""
    quantized_base = prepare_scheme(session, scheme)
    return [run_case(make(session, order, quantized_base, folder)) for order in session.spec.orders]


def prepare_scheme(session: Session, scheme: Scheme) -> QuantizedBase:
    """Prepare a scheme: its ranges, the quantized base, controls and the sensitivity of layers."""
    quantized_base = quantize_base(session, scheme)
    f1 = session.reference.take(session.spec.bounds.looks[0])["adapted"]
    scores = sensitivity.find(
        session.arms, quantized_base.sources, session.sampler, f1, session.spec.orders, session.watch
    )
    return replace(quantized_base, scores=scores)


def quantize_base(session: Session, scheme: Scheme) -> QuantizedBase:
    """The ranges of a scheme, the quantized base and controls, without the sensitivity of layers."""
    sources = session.sources(scheme)
    with session.watch.stage(f"{scheme.name}: base artifact", 1) as advance:
        base = artifact.write_base(sources)
        advance(1)
    floor, instrument = controls.run(session, scheme)
    q0 = session.quantized(f"{scheme.name}: base (q0)", "base", base, scheme)
    return QuantizedBase(sources, q0, floor, instrument, {})


@dataclass(frozen=True)
class Quantization:
    """One scheme in one order: its quantized base, its artifact below ``folder``, its builds, and q1 ready to run."""

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
    """Quantize by the session's first scheme in its first order, below a new folder in ``folder``."""
    place = folder / f"{len(list(folder.iterdir()))}"
    return make(session, session.spec.orders[0], prepare_scheme(session, session.spec.schemes[0]), place)


def make(session: Session, order: Order, quantized_base: QuantizedBase, folder: Path) -> Quantization:
    """Write the artifact and build it."""
    title = f"{quantized_base.sources.scheme.name} {order}"
    with session.watch.stage(f"{title}: artifact", 1) as advance:
        case_artifact = artifact.write(quantized_base.sources, order, folder / "artifacts")
        advance(1)
    builds = [session.gate.build(title, quantized_base.sources.scheme, case_artifact)]
    q1 = session.quantized(f"{title}: LoRA (q1)", "adapted", case_artifact.runs, quantized_base.sources.scheme)
    return Quantization(session, order, quantized_base, folder, case_artifact, builds, q1)


@dataclass(frozen=True)
class Look:
    """All four arms on some probes, and the samples of every measurement."""

    reference: Traces
    quantized: Traces
    samples: list[Sample]
    energies: effect.Energies


def look(quantization: Quantization, count: int) -> Look:
    """Run and measure the first ``count`` probes."""
    session = quantization.session
    reference = session.reference.take(count)
    arms: dict[Side, Subject] = {"base": quantization.ground.q0, "adapted": quantization.q1}
    quantized = {side: trace_artifact(session, arm, reference["adapted"]) for side, arm in arms.items()}
    calibrated = bool(session.spec.references)
    samples, energies = measure(session.sampler.setup, reference, quantized, quantization.ground.floor, calibrated)
    return Look(reference, quantized, samples, energies)


def measured(quantization: Quantization, count: int) -> list[Measurement]:
    """All measurements that are sampled, over the first ``count`` probes."""
    limits = quantization.session.spec.bounds.computing(quantization.scheme.compute)
    return measure_all(look(quantization, count).samples, limits.ranges, limits.alpha)


def judged(quantization: Quantization) -> Case:
    """The case as the report shows it."""
    return run_case(quantization).case


def run_case(quantization: Quantization) -> Result:
    """Measure one scheme in one order on more and more probes until there is a verdict."""
    start, session, scheme = time.monotonic(), quantization.session, quantization.scheme
    limits, floor = session.spec.bounds.computing(scheme.compute), quantization.ground.floor
    record = basis.Record(quantization.ground.instrument)
    instrument = record.instrument

    def judge_at(count: int) -> tuple[Outcome, tuple[Verdict, Look]]:
        current = look(quantization, count)
        verdict = decide(
            limits, instrument, current.samples, current.energies, quantization.builds, session.spec.probes.groups
        )
        return verdict.outcome, (verdict, current)

    _, _, (verdict, final) = until_decided(limits.looks, judge_at)
    sheet = assemble.sheet(session, quantization.title, verdict, final.reference, final.quantized)
    prompts = [probe.prompt for probe in session.sampler.probes[: len(final.energies.f1)]]
    worst = ungated.worst_prompt(final.energies, floor, prompts)
    extra = reported(session, quantization.q1, final.reference, final.quantized, sheet, SIDES)
    simulation = controls.simulation_warnings(
        session, scheme, quantization.title, quantization.artifact.deployed, final.quantized["adapted"]
    )
    precision = controls.precision_warnings(session, final.quantized["adapted"])
    warnings = (*verdict.warnings, *simulation, *precision)
    verdict = replace(verdict, measurements=(*verdict.measurements, worst, *extra.measurements), warnings=warnings)
    steps = along(final.reference, final.quantized, SIDES)
    group_of = session.spec.probes.groups
    trusted = trust.of(verdict, limits, instrument, final.samples, final.energies, quantization.builds, group_of)
    survivals = grouped(limits, final.samples, group_of)
    kept = basis.of(final.samples, final.energies, floor, record, extra.samples, extra.scores)
    spent = time.monotonic() - start
    outcome = CaseOutcome(verdict, quantization.builds, final.energies, steps, spent, trusted, survivals, kept)
    scores = quantization.ground.scores.get(quantization.order)
    case = assemble.case(
        session, scheme, quantization.order, outcome, quantization.artifact, quantization.folder, scores
    )
    evidence = curves.gather(final.reference, final.quantized, final.energies, SIDES, (scheme.name, quantization.order))
    arrivals, reason = arrival.arrivals(session.arms, scheme, quantization.order, quantization.artifact)
    return Result(case, sheet, evidence.model_copy(update={"arrivals": arrivals, "no_arrivals": reason}))


def run_given(session: Session, file: Given) -> Result:
    """Measure a file that qcheck did not write, as q1.

    There is no q0: Dq is q1 - f0, and no error is attributed to the base.
    """
    start, limits, setup = time.monotonic(), session.spec.bounds.alone(), session.sampler.setup
    builds = [session.gate.build_given(file, session.example, setup.family.latent)]
    q1 = session.stored(f"{file.name}: LoRA (q1)", "adapted", file.path, file.digest)
    floor, record = np.zeros(len(setup.strata)), basis.Record(controls.yardsticks(session))
    instrument = record.instrument

    def judge_at(count: int) -> tuple[Outcome, tuple[Verdict, Look]]:
        reference = session.reference.take(count)
        quantized: Traces = {"base": reference["base"], "adapted": trace_artifact(session, q1, reference["adapted"])}
        samples, energies = measure(setup, reference, quantized, floor)
        alone = [sample for sample in samples if not measurement.find(sample.name).compares(sample.arm)]
        verdict = decide(limits, instrument, alone, energies, builds, session.spec.probes.groups)
        return verdict.outcome, (verdict, Look(reference, quantized, alone, energies))

    _, _, (verdict, final) = until_decided(limits.looks, judge_at)
    reference, quantized, energies = final.reference, final.quantized, final.energies
    steps = along(reference, quantized, ["adapted"])
    sheet = assemble.sheet(session, file.name, verdict, reference, quantized)
    extra = reported(session, q1, reference, quantized, sheet, ["adapted"])
    warnings = (*verdict.warnings, *controls.precision_warnings(session, quantized["adapted"]))
    verdict = replace(verdict, measurements=(*verdict.measurements, *extra.measurements), warnings=warnings)
    group_of = session.spec.probes.groups
    trusted = trust.of(verdict, limits, instrument, final.samples, energies, builds, group_of)
    survivals = grouped(limits, final.samples, group_of)
    kept = basis.of(final.samples, energies, floor, record, extra.samples, extra.scores)
    outcome = CaseOutcome(verdict, builds, energies, steps, time.monotonic() - start, trusted, survivals, kept)
    case = assemble.given_case(session, file, outcome)
    evidence = curves.gather(reference, quantized, energies, ["adapted"], (file.name, given.ORDER))
    return Result(case, sheet, evidence.model_copy(update={"no_arrivals": "the file does not say how it was made"}))


def reported(
    session: Session, q1: Subject, reference: Traces, quantized: Traces, sheet: Sheet, sides: Sequence[Side]
) -> Ungated:
    """Everything without a limit, with the exam on the user's own pictures where there are any."""
    alpha = session.spec.bounds.alpha
    extra = ungated.measure(reference, quantized, sheet, sides, alpha)
    asked = session.spec.judges
    looks = [one for judge in asked for one in judges.look(judge, sheet.arms(sides))]
    for one in [*looks, *judges.absent(asked, sides)]:
        extra = extra.beside(one, alpha)
    return extra if session.exam is None else extra.beside(session.exam.measure(q1), alpha)


def broken_case(session: Session, scheme: Scheme, order: Order, reference: Traces) -> Result:
    """A scheme that is not built: f1 itself is not finite, and that decides the verdict."""
    outcome = _broken(session.spec.bounds.computing(scheme.compute), reference)
    sheet = assemble.sheet(session, f"{scheme.name} {order}", outcome.verdict, reference, reference)
    return Result(assemble.case(session, scheme, order, outcome), sheet)


def broken_given(session: Session, file: Given, reference: Traces) -> Result:
    """As ``broken_case``, for a file that qcheck did not write."""
    outcome = _broken(session.spec.bounds.alone(), reference)
    sheet = assemble.sheet(session, file.name, outcome.verdict, reference, reference)
    return Result(assemble.given_case(session, file, outcome), sheet)


def _broken(limits: Limits, reference: Traces) -> CaseOutcome:
    samples = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    return CaseOutcome(broken(limits, samples), basis=basis.of_broken(samples))


def trace_artifact(session: Session, subject: Subject, f1: Trace) -> Trace:
    """Evaluate a quantized arm at the latents f1 visited, then sample it from the same noise."""
    sampler = session.sampler.take(len(f1.paths))
    calls = forwards(sampler.setup, 1, 1, len(sampler.probes))
    with session.watch.stage(f"{subject.name}, {len(sampler.probes)} probes", calls) as advance:
        return sampler.arm(subject, f1, advance)


def measure(
    setup: Setup, reference: Traces, quantized: Traces, floor: np.ndarray, calibrated: bool = False
) -> tuple[list[Sample], effect.Energies]:
    """The samples of every measurement of the four arms; ``calibrated`` says that q1 holds a calibrated adapter.

    Raises:
        MismatchError: the arms were traced on different probes or states.
    """
    f0, f1, q0, q1 = reference["base"], reference["adapted"], quantized["base"], quantized["adapted"]
    require_matched(f1, f0, q0, q1)
    arms = (_run(f0), _run(f1), _run(q0), _run(q1))
    view = View(*arms, floor, setup.timesteps(), setup.strata, calibrated)
    return registry.samples(view), view.once(effect.energies_of)


def _run(trace: Trace) -> Run:
    """The parts of a trace that measurements read."""
    scalars = {name: trace.scalars(name) for name in ("turns", "lengths", "chord", "moments")}
    apart = trace.apart() if trace.reference else ()
    return Run(outputs=trace.outputs(), finals=trace.finals(), apart=apart, **scalars)


def along(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> dict[str, list[float]]:
    """step_jitter [calls - 1] and latent_kl_excess [calls + 1] of an arm at every step of its free runs."""
    profiles = {}
    for side in sides:
        q, f = quantized[side], reference[side]
        profiles[f"step_jitter {side}"] = trajectory.profile(q.scalars("turns"), f.scalars("turns"))
        profiles[f"latent_kl_excess {side}"] = distribution.profile(q.scalars("moments"), f.scalars("moments"))
    return profiles
