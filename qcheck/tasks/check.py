"""The story on one page: reference -> ranges -> artifacts -> build -> traces -> measurements -> verdict -> report.

Probes are added look by look until each case has a verdict; the cache makes every step cost what is new in it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from qcheck.build import gate
from qcheck.calibrate import inputs as calibrate
from qcheck.core.errors import UserError
from qcheck.core.progress import Progress
from qcheck.diagnose import alignment, curves, sensitivity, ungated
from qcheck.diagnose.sensitivity import Scores
from qcheck.diagnose.sheet import Sheet
from qcheck.judge.verdict import judge
from qcheck.measure import control, distribution, effect, endpoint, registry, trajectory
from qcheck.measure.interval import measure_all
from qcheck.measure.registry import Run, View
from qcheck.measure.sample import Sample
from qcheck.model import lora
from qcheck.quantize import artifact
from qcheck.quantize import given as foreign
from qcheck.quantize.artifact import TWIN, Making
from qcheck.quantize.given import Foreign
from qcheck.report import contact, html, junit, markdown
from qcheck.result.build import Build
from qcheck.result.evidence import Seen
from qcheck.result.measurement import Measurement
from qcheck.result.report import Case, Report
from qcheck.result.verdict import Verdict
from qcheck.sampling import sampler
from qcheck.sampling.setup import Setup, Subject, forwards
from qcheck.sampling.store import Trace, require_matched
from qcheck.spec import measurement
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import Job
from qcheck.spec.limits import Limits
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import assemble, workload
from qcheck.tasks.work import Traces, Work, prepare


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
    report = assemble.assemble(work, [result.case for result in found], size)
    contact.draw([result.sheet for result in found], folder / "contact.png")
    curves.store(work, [(result.seen, result.sheet) for result in found], aligned, folder)
    (folder / "report.json").write_text(report.to_json(), "utf-8")
    (folder / "report.md").write_text(markdown.render(report), "utf-8")
    (folder / "junit.xml").write_text(junit.render(report), "utf-8")
    with work.timed("report", 1) as advance:
        html.write(folder)
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
        with work.timed(f"reference, {count} probes", forwards(setup, 2, 1, count)) as advance:
            f1 = sampler.reference(setup, work.full("adapted"), probes, work.store, advance)
            f0 = sampler.arm(setup, f1, work.full("base"), probes, work.store, advance)
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
    sheet = assemble.sheet(work, title, verdict, reference, quantized)
    prompts = [asked.prompt for asked in work.probes[:count]]
    worst = ungated.worst_prompt(energies, work.setup.weights, ground.floor, prompts)
    also = ungated.measure(reference, quantized, sheet, SIDES, limits.alpha)
    verdict = replace(verdict, measurements=(*verdict.measurements, worst, *also))
    case = assemble.case(
        work, scheme, order, verdict, made, builds, energies, steps, time.monotonic() - start, ground.scores.get(order)
    )
    seen = curves.gather(reference, quantized, energies, work.setup.weights, SIDES, (scheme.name, order))
    arrived, why = curves.arrivals(work, scheme, order, made)
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
        samples = [s for s in samples if not measurement.find(s.name).compares(s.arm)]
        verdict = decide(limits, work.setup.weights, [], samples, energies, builds)
        if verdict.outcome != "INCONCLUSIVE":
            break
    steps = along(reference, quantized, ["adapted"])
    sheet = assemble.sheet(work, given.name, verdict, reference, quantized)
    also = ungated.measure(reference, quantized, sheet, ["adapted"], limits.alpha)
    verdict = replace(verdict, measurements=(*verdict.measurements, *also))
    case = assemble.foreign_case(work, given, verdict, builds, energies, steps, time.monotonic() - start)
    seen = curves.gather(reference, quantized, energies, work.setup.weights, ["adapted"], (given.name, foreign.ORDER))
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
    case = assemble.case(work, scheme, order, verdict, None, [], None, {}, 0.0)
    return Result(case, assemble.sheet(work, f"{scheme.name} {order}", verdict, reference, reference))


def broken_foreign(work: Work, given: Foreign, reference: Traces) -> Result:
    """As ``broken_case``, for a file of someone else's."""
    limits = work.job.limits.alone()
    seen = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    verdict = judge(measure_all(seen, limits.ranges, limits.alpha), [], limits)
    case = assemble.foreign_case(work, given, verdict, [], None, {}, 0.0)
    return Result(case, assemble.sheet(work, given.name, verdict, reference, reference))


def run_controls(work: Work, scheme: Scheme) -> tuple[np.ndarray, list[Measurement]]:
    """f1 against itself: through the exporter, and in the compute type. The latter is the floor [T] of all errors."""
    if scheme.compute not in work.controls:
        timesteps = work.setup.timesteps()
        noise = {compute: _control(work, compute) for compute in (TWIN, scheme.compute)}
        floor = np.nan_to_num(noise[scheme.compute], nan=0.0, posinf=0.0)
        work.controls[scheme.compute] = (
            floor,
            [
                control.export_control(noise[TWIN], timesteps),
                control.compute_control(noise[scheme.compute], timesteps),
            ],
        )
    return work.controls[scheme.compute]


def _control(work: Work, compute: str) -> np.ndarray:
    """Relative error power [T] of f1 in ``compute`` on the first look's probes."""
    probes = work.probes[: work.job.limits.looks[0]]
    reached = trace_reference(work, len(probes))["adapted"]
    with work.timed(f"control: reference in {compute}", forwards(work.setup, 0, 1, len(probes))) as advance:
        subject = work.computing("adapted", compute)
        traced = sampler.forced(work.setup, reached, subject, probes, work.store, advance)
    return control.noise(traced.outputs(), reached.outputs())


def trace_artifact(work: Work, subject: Subject, reached: Trace) -> Trace:
    """A quantized arm in ONNX Runtime: at f1's states, then free."""
    count = len(reached.paths)
    with work.timed(f"{subject.name}, {count} probes", forwards(work.setup, 1, 1, count)) as advance:
        return sampler.arm(work.setup, reached, subject, work.probes[:count], work.store, advance)


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
    scalars = {name: trace.way(name) for name in ("turns", "lengths", "chord", "moments", "apart")}
    return Run(outputs=trace.outputs(), finals=trace.finals(), **scalars)


def along(reference: Traces, quantized: Traces, sides: Sequence[Side]) -> dict[str, list[float]]:
    """step_jitter [calls - 1] and latent_kl_excess [calls + 1] of an arm at every step of its free runs."""
    found = {}
    for side in sides:
        q, f = quantized[side], reference[side]
        found[f"step_jitter {side}"] = trajectory.profile(q.way("turns"), f.way("turns"))
        found[f"latent_kl_excess {side}"] = distribution.profile(q.way("moments"), f.way("moments"))
    return found
