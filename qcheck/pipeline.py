"""The story on one page: reference -> ranges -> artifacts -> build -> traces -> measurements -> verdict -> report.

Probes are added look by look until each case has a verdict; the cache makes every step cost what is new in it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qcheck import artifact, cache, files, gate, recipe, summary, trace
from qcheck.artifact import TWIN, Making, Ranges
from qcheck.backend.torch import TorchRunner
from qcheck.errors import UserError
from qcheck.job import Job
from qcheck.limits import Limits
from qcheck.measurement import Measurement
from qcheck.metric import control, effect, endpoint, spectrum
from qcheck.metric.statistics import Sample, measure_all
from qcheck.model import lora
from qcheck.model.arms import SIDES, Side
from qcheck.probe import ProbeSet
from qcheck.progress import Progress
from qcheck.quantize import plan, ranges
from qcheck.quantize.plan import Input
from qcheck.quantize.ranges import Histogram, Seen, observed
from qcheck.report import contact
from qcheck.report.contact import Sheet
from qcheck.report.model import Build, Case, Report
from qcheck.scheme import Order, Scheme, Smoothing
from qcheck.trace import Setup, Subject, Trace
from qcheck.verdict import Verdict, judge
from qcheck.work import Traces, Work, matched, prepare


def check(job: Job, folder: Path, progress: Progress) -> Report:
    """Run ``job``, writing artifacts, pictures and report.json below ``folder``.

    Raises:
        UserError: bad input, or an adapter whose effect on these probes is too small to judge.
    """
    torch.set_num_threads(job.threads)
    work = prepare(job, folder, progress)
    reference = trace_reference(work, job.limits.looks[0])
    size = require_effect(work, reference)
    if np.isfinite(size):
        seen = find_ranges(work)
        found = [pair for scheme in job.schemes for pair in run_scheme(work, scheme, seen)]
    else:
        found = [broken_case(work, scheme, order, reference) for scheme in job.schemes for order in job.orders]
    report = summary.assemble(work, [case for case, _ in found], size)
    contact.draw([sheet for _, sheet in found], folder / "contact.png")
    (folder / "report.json").write_text(report.to_json(), "utf-8")
    return report


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


def find_ranges(work: Work) -> Mapping[Side, Mapping[str, Seen]]:
    """Inputs of every layer for both arms, at the same states: those of f1 on the calibration prompts.

    One pass, whatever the method that reads ranges from it.
    """
    job, arms = work.job, work.arms
    chosen = recipe.calibration(job.recipe, job.probes, job.trigger)
    contents = (arms.content("base"), arms.content("adapted"))
    key = cache.key("ranges", *contents, repr(job.recipe.strata), files.digest_value(chosen))
    about = f"{arms.base.source}, prompts {chosen.name}"
    folder = work.store.obtain("ranges", key, about, lambda place: ranges.save(_observe(work, chosen), place))
    return {side: ranges.load(folder, side) for side in SIDES}


def _observe(work: Work, chosen: ProbeSet) -> dict[Side, dict[str, Seen]]:
    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    layers = dict(plan.linear_layers(work.arms.base.denoiser))
    found: dict[Side, dict[str, Seen]] = {}
    with work.timed("calibration", trace.forwards(setup, 1, 2, len(probes))) as advance:
        reached = trace.reference(setup, work.full("adapted"), probes, work.store, advance)
        for side in SIDES:
            seen = Histogram()
            with observed(layers, [seen]):
                trace.visit(setup, reached, work.full(side).runner(), side, probes, advance)
            found[side] = seen.seen()
        if odd := [layer for layer, inputs in found["adapted"].items() if not np.isfinite(inputs.absmax)]:
            raise UserError(
                f"layer {odd[0]} receives values that are not finite on the calibration prompts, at full precision",
                "The adapter or the base breaks on them: lower --weight or --guidance, or take another --recipe.",
            )
    return found


def find_factors(work: Work, scheme: Scheme, side: Side) -> dict[str, Input]:
    """Factors of SmoothQuant or AWQ for an arm, on the states that ranges come from; none where the scheme has none."""
    smoothing, job = scheme.smoothing, work.job
    if smoothing is None:
        return {}
    chosen = recipe.calibration(job.recipe, job.probes, job.trigger)
    values = (files.digest_value(scheme), files.digest_value(job.recipe), files.digest_value(chosen))
    key = cache.key("factors", work.arms.content("base"), work.arms.content("adapted"), side, *values)
    about = f"{work.arms.base.source}, {scheme.name}, {side}"
    folder = work.store.obtain(
        "factors", key, about, lambda place: ranges.save_inputs(_smooth(work, scheme, smoothing, side, chosen), place)
    )
    return ranges.load_inputs(folder)


_SEARCHED = 4  # AWQ's search costs some seventeen forwards a state, so it sees a fourth of the prompts


def _smooth(work: Work, scheme: Scheme, smoothing: Smoothing, side: Side, chosen: ProbeSet) -> dict[str, Input]:
    from qcheck.quantize import modelopt  # an extra that only its schemes need

    setup, probes = matched(work.arms, work.job, chosen, work.job.recipe.strata)
    if not any(rule.activations for rule in scheme.rules):  # else the factors come with the range of what they yield
        probes = probes[: max(1, len(probes) // _SEARCHED)]
    reached = trace.reference(setup, work.full("adapted"), probes, work.store, lambda _: None)
    unet = work.arms.use(side).unet
    with work.timed(
        f"{scheme.name}: {smoothing.method} of {side}", trace.forwards(setup, 0, 1, len(probes))
    ) as advance:

        def run(model: nn.Module) -> None:
            trace.visit(setup, reached, TorchRunner(model), side, probes, advance)

        return modelopt.smoothed(unet, plan.chosen_layers(unet, scheme, work.job.recipe), smoothing, run)


@dataclass(frozen=True)
class Ground:
    """What every order of a scheme is made from and compared with. ``floor`` is the compute type's own error, [T].

    ``bases`` holds q0's traces by the number of their probes.
    """

    making: Making
    q0: Subject
    bases: dict[int, Trace]
    floor: np.ndarray
    controls: list[Measurement]


def run_scheme(work: Work, scheme: Scheme, seen: Mapping[Side, Mapping[str, Seen]]) -> list[tuple[Case, Sheet]]:
    """q0 once, then q1 in every order."""
    numbers = plan.input_formats(work.arms.base.denoiser, scheme)
    cut: Ranges = {
        side: ranges.clips(seen[side], numbers, work.job.recipe) | find_factors(work, scheme, side) for side in SIDES
    }
    making = Making(work.arms, work.exporter, work.store, scheme, work.job.recipe, cut)
    with work.timed(f"{scheme.name}: base artifact", 1) as advance:
        base = artifact.write_base(making)
        advance(1)
    floor, controls = run_controls(work, scheme)
    q0 = work.quantized(f"q0 {scheme.name}", "base", base)
    ground = Ground(making, q0, {}, floor, controls)
    return [run_case(work, order, ground) for order in work.job.orders]


def run_case(work: Work, order: Order, ground: Ground) -> tuple[Case, Sheet]:
    """One scheme in one order: artifact, build, then looks at more and more probes until there is a verdict."""
    start, scheme = time.monotonic(), ground.making.scheme
    title, limits = f"{scheme.name} {order}", work.job.limits.computing(scheme.compute)
    with work.timed(f"{title}: artifact", 1) as advance:
        made = artifact.write(ground.making, order, work.folder / "artifacts")
        advance(1)
    builds = [gate.build(work, title, scheme, made)]
    q1 = work.quantized(f"q1 {title}", "adapted", made.runs)
    for count in limits.looks:
        reference = trace_reference(work, count)
        if count not in ground.bases:
            ground.bases[count] = trace_artifact(work, ground.q0, reference["adapted"])
        quantized: Traces = {
            "base": ground.bases[count],
            "adapted": trace_artifact(work, q1, reference["adapted"]),
        }
        samples, energies = measure(work.setup, reference, quantized, ground.floor)
        verdict = decide(limits, work.setup.weights, ground.controls, samples, energies, builds)
        if verdict.outcome != "INCONCLUSIVE":
            break
    case = summary.case(work, scheme, order, verdict, made, builds, energies, time.monotonic() - start)
    return case, summary.sheet(work, title, verdict, reference, quantized)


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
    bad = effect.bad_probes(energies, weights, *limits.tail)
    return judge([*controls, *measured], bad, limits, builds)


def broken_case(work: Work, scheme: Scheme, order: Order, reference: Traces) -> tuple[Case, Sheet]:
    """A scheme that need not be built: f1 itself is not finite, and that is the verdict."""
    limits = work.job.limits.computing(scheme.compute)
    seen = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    verdict = judge(measure_all(seen, limits.ranges, limits.alpha), [], limits)
    case = summary.case(work, scheme, order, verdict, None, [], None, 0.0)
    return case, summary.sheet(work, f"{scheme.name} {order}", verdict, reference, reference)


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
    with work.timed(f"control {compute}", trace.forwards(work.setup, 0, 1, len(probes))) as advance:
        subject = work.computing("adapted", compute)
        traced = trace.forced(work.setup, reached, subject, probes, work.store, advance)
    return control.noise(traced.outputs(), reached.outputs())


def trace_artifact(work: Work, subject: Subject, reached: Trace) -> Trace:
    """A quantized arm in ONNX Runtime: at f1's states, then free."""
    count = len(reached.paths)
    with work.timed(f"{subject.name}, {count} probes", trace.forwards(work.setup, 1, 1, count)) as advance:
        return trace.arm(work.setup, reached, subject, work.probes[:count], work.store, advance)


def measure(
    setup: Setup, reference: Traces, quantized: Traces, floor: np.ndarray
) -> tuple[list[Sample], effect.Energies]:
    """Every sampled measurement of the four arms, which must be matched.

    Raises:
        MismatchError: they are not.
    """
    f0, f1, q0, q1 = reference["base"], reference["adapted"], quantized["base"], quantized["adapted"]
    trace.require_matched(f1, f0, q0, q1)
    energies = effect.energies(f0.outputs(), f1.outputs(), q0.outputs(), q1.outputs())
    return [
        *effect.samples(energies, setup.weights, floor, setup.timesteps()),
        *endpoint.samples(f0.finals(), f1.finals(), q0.finals(), q1.finals(), float(np.sqrt(floor.max()))),
        spectrum.hf_energy("base", q0.finals(), f0.finals()),
        spectrum.hf_energy("adapted", q1.finals(), f1.finals()),
        *endpoint.reference_health(f0.finals(), f1.finals()),
    ], energies
