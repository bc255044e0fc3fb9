"""The story on one page: reference -> ranges -> artifacts -> build -> traces -> measurements -> verdict -> report.

Probes are added look by look until each case has a verdict; the cache makes every step cost what is new in it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from qcheck import (
    alignment,
    artifact,
    calibrate,
    evidence,
    foreign,
    gate,
    reported,
    sensitivity,
    summary,
    trace,
    workload,
)
from qcheck.artifact import TWIN, Making
from qcheck.errors import UserError
from qcheck.foreign import Foreign
from qcheck.job import Job
from qcheck.limits import Limits
from qcheck.measurement import Measurement, needs_base
from qcheck.metric import control, distribution, effect, endpoint, lattice, spectrum, way
from qcheck.metric.statistics import Sample, measure_all
from qcheck.model import lora
from qcheck.model.arms import SIDES, Side
from qcheck.progress import Progress
from qcheck.report import contact, junit, markdown, page
from qcheck.report.contact import Sheet
from qcheck.report.evidence import Seen
from qcheck.report.model import Build, Case, Report
from qcheck.scheme import Order, Scheme
from qcheck.sensitivity import Scores
from qcheck.trace import Setup, Subject, Trace
from qcheck.verdict import Verdict, judge
from qcheck.work import Traces, Work, prepare


def check(job: Job, folder: Path, progress: Progress) -> Report:
    """Run ``job``, writing artifacts, evidence, report.json and the page below ``folder``.

    Raises:
        UserError: bad input, or an adapter whose effect on these probes is too small to judge.
    """
    torch.set_num_threads(job.threads)
    given = [foreign.read(path, job.threads) for path in job.artifacts]
    work = prepare(job, folder, progress)
    others = [foreign.fitted(work, file) for file in given]
    workload.announce(work)
    reference = trace_reference(work, job.limits.looks[0])
    size = require_effect(work, reference)
    aligned: dict[str, float] = {}
    if np.isfinite(size):
        aligned = alignment.find(work, reference["adapted"])
        found = [result for scheme in job.schemes for result in run_scheme(work, scheme)]
        found += [run_foreign(work, given) for given in others]
    else:
        found = [broken_case(work, scheme, order, reference) for scheme in job.schemes for order in job.orders]
        found += [broken_foreign(work, given, reference) for given in others]
    report = summary.assemble(work, [result.case for result in found], size)
    contact.draw([result.sheet for result in found], folder / "contact.png")
    evidence.store(work, [(result.seen, result.sheet) for result in found], aligned, folder)
    (folder / "report.json").write_text(report.to_json(), "utf-8")
    (folder / "report.md").write_text(markdown.render(report), "utf-8")
    (folder / "junit.xml").write_text(junit.render(report), "utf-8")
    with work.timed("report", 1) as advance:
        page.write(folder)
        advance(1)
    return report


@dataclass(frozen=True)
class Result:
    """One case with what is shown of it; ``seen`` None where nothing was run."""

    case: Case
    sheet: Sheet
    seen: Seen | None = None


def trace_reference(work: Work, count: int) -> Traces:
    """f1 walks freely; f0 is asked at f1's states and walks too. ``count`` probes; those known already cost nothing."""
    if count not in work.references:
        probes, setup = work.probes[:count], work.setup
        with work.timed(f"reference, {count} probes", trace.forwards(setup, 2, 1, count)) as advance:
            f1 = trace.reference(setup, work.full("adapted"), probes, work.store, advance)
            f0 = trace.arm(setup, f1, work.full("base"), probes, work.store, advance)
        if not all(np.isfinite(final).all() for final in f0.finals()):
            raise UserError(
                "the base's own output is not finite on these probes",
                "Check the base in float32, and the guidance scale.",
            )
        work.references[count] = {"base": f0, "adapted": f1}
    return work.references[count]


def require_effect(work: Work, reference: Traces) -> float:
    """Mean |Df| / |f1| over the probes; not finite where the reference is not.

    Raises:
        UserError: it is negligible, so there is nothing whose survival could be judged.
    """
    f0, f1 = reference["base"], reference["adapted"]
    size = float(effect.effect_size(f0.outputs(), f1.outputs(), work.setup.weights).mean())
    limit = work.job.limits.negligible_effect
    if size < limit:
        used = ", ".join(f"{adapter.weight:g}" for adapter in work.job.adapters)
        words = [word for adapter in work.arms.adapters for word in lora.trigger_words(adapter)]
        named = f"its file names {', '.join(map(repr, words[:5]))}, by --trigger" if words else "by --trigger"
        raise UserError(
            f"the adapter changes the denoiser's output by only {size:.2g} of its size on these probes "
            f"(weight {used}; at least {limit:g} is needed to judge)",
            f"Use a larger --weight, prompts that wake it (its trigger word: {named}), or the base it was made for.",
        )
    return size


@dataclass(frozen=True)
class Ground:
    """What every order of a scheme is made from and compared with. ``floor`` is the compute type's own error, [T].

    ``bases`` holds q0's traces by the number of their probes, ``scores`` what each order's layers cost.
    """

    making: Making
    q0: Subject
    bases: dict[int, Trace]
    floor: np.ndarray
    controls: list[Measurement]
    scores: Mapping[Order, Scores]


def run_scheme(work: Work, scheme: Scheme) -> list[Result]:
    """q0 once, then q1 in every order."""
    inputs = calibrate.inputs(work, scheme)
    making = Making(work.shipped, work.exporter, work.store, scheme, work.job.recipe, inputs)
    with work.timed(f"{scheme.name}: base artifact", 1) as advance:
        base = artifact.write_base(making)
        advance(1)
    floor, controls = run_controls(work, scheme)
    q0 = work.quantized(f"{scheme.name}: base (q0)", "base", base)
    scores = sensitivity.find(work, making, trace_reference(work, work.job.limits.looks[0])["adapted"])
    ground = Ground(making, q0, {}, floor, controls, scores)
    return [run_case(work, order, ground) for order in work.job.orders]


def run_case(work: Work, order: Order, ground: Ground) -> Result:
    """One scheme in one order: artifact, build, then looks at more and more probes until there is a verdict."""
    start, scheme = time.monotonic(), ground.making.scheme
    title, limits = f"{scheme.name} {order}", work.job.limits.computing(scheme.compute)
    with work.timed(f"{title}: artifact", 1) as advance:
        made = artifact.write(ground.making, order, work.folder / "artifacts")
        advance(1)
    builds = [gate.build(work, title, scheme, made)]
    q1 = work.quantized(f"{title}: LoRA (q1)", "adapted", made.runs)
    for count in limits.looks:
        reference = trace_reference(work, count)
        if count not in ground.bases:
            ground.bases[count] = trace_artifact(work, ground.q0, reference["adapted"])
        quantized: Traces = {
            "base": ground.bases[count],
            "adapted": trace_artifact(work, q1, reference["adapted"]),
        }
        samples, energies = measure(work.setup, reference, quantized, ground.floor, bool(work.job.references))
        verdict = decide(limits, work.setup.weights, ground.controls, samples, energies, builds)
        if verdict.outcome != "INCONCLUSIVE":
            break
    steps = along(reference, quantized, SIDES)
    sheet = summary.sheet(work, title, verdict, reference, quantized)
    prompts = [asked.prompt for asked in work.probes[:count]]
    worst = reported.worst_prompt(energies, work.setup.weights, ground.floor, prompts)
    also = reported.measure(reference, quantized, sheet, SIDES, limits.alpha)
    verdict = replace(verdict, measurements=(*verdict.measurements, worst, *also))
    case = summary.case(
        work, scheme, order, verdict, made, builds, energies, steps, time.monotonic() - start, ground.scores.get(order)
    )
    seen = evidence.gather(reference, quantized, energies, work.setup.weights, SIDES, (scheme.name, order))
    arrived, why = evidence.arrivals(work, scheme, order, made)
    return Result(case, sheet, seen.model_copy(update={"arrivals": arrived, "no_arrivals": why}))


def run_foreign(work: Work, given: Foreign) -> Result:
    """A file of someone else's: q1 on the same probes. With no q0, Dq is q1 - f0, and nothing is laid to the base."""
    start, limits = time.monotonic(), work.job.limits.alone()
    builds = [foreign.build(work, given)]
    q1 = work.stored(f"{given.name}: LoRA (q1)", "adapted", given.path, given.digest)
    for count in limits.looks:
        reference = trace_reference(work, count)
        quantized: Traces = {
            "base": reference["base"],
            "adapted": trace_artifact(work, q1, reference["adapted"]),
        }
        samples, energies = measure(work.setup, reference, quantized, np.zeros(len(work.setup.strata)))
        samples = [sample for sample in samples if not needs_base(sample.name, sample.arm)]
        verdict = decide(limits, work.setup.weights, [], samples, energies, builds)
        if verdict.outcome != "INCONCLUSIVE":
            break
    steps = along(reference, quantized, ["adapted"])
    sheet = summary.sheet(work, given.name, verdict, reference, quantized)
    also = reported.measure(reference, quantized, sheet, ["adapted"], limits.alpha)
    verdict = replace(verdict, measurements=(*verdict.measurements, *also))
    case = summary.foreign_case(work, given, verdict, builds, energies, steps, time.monotonic() - start)
    seen = evidence.gather(reference, quantized, energies, work.setup.weights, ["adapted"], (given.name, foreign.ORDER))
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


def broken_case(work: Work, scheme: Scheme, order: Order, reference: Traces) -> Result:
    """A scheme that need not be built: f1 itself is not finite, and that is the verdict."""
    limits = work.job.limits.computing(scheme.compute)
    seen = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    verdict = judge(measure_all(seen, limits.ranges, limits.alpha), [], limits)
    case = summary.case(work, scheme, order, verdict, None, [], None, {}, 0.0)
    return Result(case, summary.sheet(work, f"{scheme.name} {order}", verdict, reference, reference))


def broken_foreign(work: Work, given: Foreign, reference: Traces) -> Result:
    """As ``broken_case``, for a file of someone else's."""
    limits = work.job.limits.alone()
    seen = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    verdict = judge(measure_all(seen, limits.ranges, limits.alpha), [], limits)
    case = summary.foreign_case(work, given, verdict, [], None, {}, 0.0)
    return Result(case, summary.sheet(work, given.name, verdict, reference, reference))


def run_controls(work: Work, scheme: Scheme) -> tuple[np.ndarray, list[Measurement]]:
    """f1 against itself: through the exporter, and in the compute type. The latter is the floor [T] of all errors."""
    if scheme.compute not in work.controls:
        timesteps = work.setup.timesteps()
        noise = {compute: _control(work, compute) for compute in (TWIN, scheme.compute)}
        floor = np.nan_to_num(noise[scheme.compute], nan=0.0, posinf=0.0)
        work.controls[scheme.compute] = (
            floor,
            [
                control.measure("export_control", noise[TWIN], timesteps),
                control.measure("compute_control", noise[scheme.compute], timesteps),
            ],
        )
    return work.controls[scheme.compute]


def _control(work: Work, compute: str) -> np.ndarray:
    """Relative error power [T] of f1 in ``compute`` on the first look's probes."""
    probes = work.probes[: work.job.limits.looks[0]]
    reached = trace_reference(work, len(probes))["adapted"]
    with work.timed(f"control: reference in {compute}", trace.forwards(work.setup, 0, 1, len(probes))) as advance:
        subject = work.computing("adapted", compute)
        traced = trace.forced(work.setup, reached, subject, probes, work.store, advance)
    return control.noise(traced.outputs(), reached.outputs())


def trace_artifact(work: Work, subject: Subject, reached: Trace) -> Trace:
    """A quantized arm in ONNX Runtime: at f1's states, then free."""
    count = len(reached.paths)
    with work.timed(f"{subject.name}, {count} probes", trace.forwards(work.setup, 1, 1, count)) as advance:
        return trace.arm(work.setup, reached, subject, work.probes[:count], work.store, advance)


def measure(
    setup: Setup, reference: Traces, quantized: Traces, floor: np.ndarray, calibrated: bool = False
) -> tuple[list[Sample], effect.Energies]:
    """Every sampled measurement of the four arms, which must be matched; ``calibrated``: q1 holds an adapter that was.

    Raises:
        MismatchError: they are not.
    """
    f0, f1, q0, q1 = reference["base"], reference["adapted"], quantized["base"], quantized["adapted"]
    trace.require_matched(f1, f0, q0, q1)
    energies = effect.energies(f0.outputs(), f1.outputs(), q0.outputs(), q1.outputs(), calibrated)
    return [
        *effect.samples(energies, setup.weights, floor, setup.timesteps()),
        *endpoint.samples(f0.finals(), f1.finals(), q0.finals(), q1.finals(), float(np.sqrt(floor.max()))),
        *spectrum.samples("base", q0.finals(), f0.finals()),
        *spectrum.samples("adapted", q1.finals(), f1.finals()),
        *lattice.samples(lattice.read(q0.finals(), f0.finals()), lattice.read(q1.finals(), f1.finals())),
        *way.jitter_samples(*(arm.way("turns") for arm in (f0, f1, q0, q1))),
        *way.straightness_samples(*((arm.way("chord"), arm.way("lengths")) for arm in (f0, f1, q0, q1))),
        Sample("divergence_slope", "adapted", "1/step", way.divergence(q1.way("apart"), np.array(setup.strata))),
        *distribution.kl_samples(*(arm.way("moments") for arm in (f0, f1, q0, q1))),
        *endpoint.reference_health(f0.finals(), f1.finals()),
    ], energies


def along(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> dict[str, list[float]]:
    """step_jitter [calls - 1] and latent_kl_excess [calls + 1] of an arm at every step of its free runs."""
    found = {}
    for side in sides:
        q, f = quantized[side], reference[side]
        found[f"step_jitter {side}"] = way.profile(q.way("turns"), f.way("turns"))
        found[f"latent_kl_excess {side}"] = distribution.profile(q.way("moments"), f.way("moments"))
    return found
