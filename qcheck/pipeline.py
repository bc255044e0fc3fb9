"""The story on one page: reference -> ranges -> artifacts -> build -> traces -> measurements -> verdict -> report."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qcheck import artifact, recipe, summary, trace
from qcheck.artifact import TWIN, Artifact, Ranges
from qcheck.backend import tensorrt
from qcheck.backend.onnxruntime import OnnxRunner
from qcheck.errors import UserError
from qcheck.job import Job
from qcheck.measurement import Measurement
from qcheck.metric import control, effect, endpoint, spectrum
from qcheck.model.arms import SIDES, Side
from qcheck.progress import Progress
from qcheck.quantize import plan
from qcheck.quantize.ranges import AbsoluteMaximum, observed
from qcheck.report import contact
from qcheck.report.contact import Sheet
from qcheck.report.model import Build, Case, Report
from qcheck.scheme import Order, Scheme
from qcheck.trace import Setup, Trace
from qcheck.verdict import judge
from qcheck.work import Work, matched, prepare

Traces = Mapping[Side, Trace]


def check(job: Job, folder: Path, progress: Progress) -> Report:
    """Run ``job``, writing artifacts, pictures and report.json below ``folder``.

    Raises:
        UserError: bad input, or an adapter whose effect on these probes is too small to judge.
    """
    torch.set_num_threads(job.threads)
    work = prepare(job, folder, progress)
    reference = trace_reference(work)
    size = require_effect(work, reference)
    if np.isfinite(size):
        ranges = find_ranges(work)
        found = [pair for scheme in job.schemes for pair in run_scheme(work, scheme, reference, ranges)]
    else:
        found = [broken_case(work, scheme, order, reference) for scheme in job.schemes for order in job.orders]
    report = summary.assemble(work, [case for case, _ in found], size)
    contact.draw([sheet for _, sheet in found], folder / "contact.png")
    (folder / "report.json").write_text(report.to_json(), "utf-8")
    return report


def trace_reference(work: Work) -> Traces:
    """f1 walks freely; f0 is asked at f1's states and walks too."""
    setup, folder = work.setup, work.folder / "traces"
    with work.timed("reference", 2 * setup.free_forwards + setup.forced_forwards) as advance:
        f1 = trace.reference(setup, work.runner("adapted"), work.hidden["adapted"], folder / "f1", advance)
        f0 = trace.arm(setup, f1, work.runner("base"), work.hidden["base"], folder / "f0", advance)
    return {"base": f0, "adapted": f1}


def require_effect(work: Work, reference: Traces) -> float:
    """Mean |Df| / |f1| over the probes; not finite where the reference is not.

    Raises:
        UserError: it is negligible, so there is nothing whose survival could be judged.
    """
    f0, f1 = reference["base"].outputs(), reference["adapted"].outputs()
    if not np.isfinite(reference["base"].finals()).all():
        raise UserError(
            "the base's own output is not finite on these probes", "Check the base in float32, and the guidance scale."
        )
    size = float(effect.effect_size(f0, f1, work.weights).mean())
    limit = work.job.limits.negligible_effect
    if size < limit:
        raise UserError(
            f"the adapter changes the denoiser's output by only {size:.2g} of its size on these probes "
            f"(weight {work.job.weight:g}; at least {limit:g} is needed to judge)",
            "Use prompts that wake it (its trigger word, by --probes), a larger --weight, or the base it was made for.",
        )
    return size


def find_ranges(work: Work) -> Ranges:
    """Input ranges of every layer for both arms, at the same states: those of f1 on the calibration prompts."""
    job = work.job
    chosen = recipe.calibration(job.recipe, job.probes, job.trigger)
    setup, hidden = matched(work.arms, job, chosen, job.recipe.strata)
    folder = work.folder / "traces" / "calibration"
    layers = dict(plan.linear_layers(work.arms.base.denoiser))
    found: dict[Side, dict[str, float]] = {}
    with work.timed("calibration", setup.free_forwards + 2 * setup.forced_forwards) as advance:
        reached = trace.reference(setup, work.runner("adapted"), hidden["adapted"], folder, advance)
        for side in SIDES:
            seen = AbsoluteMaximum()
            with observed(layers, [seen]):
                trace.forced(setup, reached, work.runner(side), hidden[side], folder / side, advance)
            found[side] = seen.values
    return found


def run_scheme(work: Work, scheme: Scheme, reference: Traces, ranges: Ranges) -> list[tuple[Case, Sheet]]:
    """q0 once, then q1 in every order."""
    with work.timed(f"{scheme.name}: base artifact", 1) as advance:
        content = artifact.base_content(work.arms, scheme, work.job.recipe, ranges)
        path = work.folder / "artifacts" / scheme.name / "q0.twin.onnx"
        work.exporter.quantized(content, TWIN, scheme.opset, path, {"scheme": scheme.name, "arm": "base"})
        advance(1)
    floor, controls = run_controls(work, scheme, reference["adapted"])
    q0 = trace_artifact(work, f"{scheme.name}: base probes", path, "base", reference["adapted"])
    ground = Ground(reference, ranges, q0, floor, controls)
    return [run_case(work, scheme, order, ground) for order in work.job.orders]


@dataclass(frozen=True)
class Ground:
    """What every order of a scheme is made from and compared with. ``floor`` is the compute type's own error, [T]."""

    reference: Traces
    ranges: Ranges
    q0: Trace
    floor: np.ndarray
    controls: list[Measurement]


def run_case(work: Work, scheme: Scheme, order: Order, ground: Ground) -> tuple[Case, Sheet]:
    """One scheme in one order: artifact, build, traces, measurements, verdict."""
    start = time.monotonic()
    title = f"{scheme.name} {order}"
    with work.timed(f"{title}: artifact", 1) as advance:
        root = work.folder / "artifacts"
        made = artifact.write(work.arms, work.exporter, scheme, work.job.recipe, order, ground.ranges, root)
        advance(1)
    builds = [build(work, title, made)]
    q1 = trace_artifact(work, f"{title}: probes", made.twin, "adapted", ground.reference["adapted"])
    quantized: Traces = {"base": ground.q0, "adapted": q1}
    measured, energies = measure(work.setup, work.weights, ground.reference, quantized, ground.floor)
    bad = effect.bad_probes(energies, work.weights, *work.job.limits.tail)
    refusals = [made.detail for made in builds if made.status == "refused"]
    verdict = judge([*ground.controls, *measured], bad, work.job.limits, refusals)
    case = summary.case(work, scheme, order, verdict, made, builds, energies, time.monotonic() - start)
    return case, summary.sheet(work, title, ground.reference, quantized)


def broken_case(work: Work, scheme: Scheme, order: Order, reference: Traces) -> tuple[Case, Sheet]:
    """A scheme that need not be built: f1 itself is not finite, and that is the verdict."""
    seen = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    case = summary.case(work, scheme, order, judge(seen, [], work.job.limits), None, [], None, 0.0)
    return case, summary.sheet(work, f"{scheme.name} {order}", reference, reference)


def build(work: Work, title: str, made: Artifact) -> Build:
    """Compile q1 for the target's proxy, if a builder is here."""
    capability = work.job.target.proxy.value
    proxy = capability != work.job.target.capability.value
    reason = "switched off by --no-build" if not work.job.build else tensorrt.available()
    if reason is not None:
        return Build(builder=tensorrt.MODULE, capability=capability, proxy=proxy, status="not run", detail=reason)
    sample, hidden = list(work.setup.latents.shape[1:]), list(work.hidden["adapted"].shape[2:])
    shapes = {
        "sample": ([1, *sample], [2, *sample], [2, *sample]),
        "encoder_hidden_states": ([1, *hidden], [2, *hidden], [2, *hidden]),
    }
    engine = made.folder / f"model.sm{capability.replace('.', '')}.engine"
    with work.timed(f"{title}: build for SM {capability}", 1) as advance:
        built = tensorrt.build(made.deployed, capability, shapes, engine)
        advance(1)
    return Build(
        builder=built.builder,
        capability=capability,
        proxy=proxy,
        status="built" if built.engine else "refused",
        detail=built.detail,
        bytes=built.engine.stat().st_size if built.engine else None,
        seconds=round(built.seconds, 1),
        peak_memory_mb=round(built.peak_memory_mb),
    )


def run_controls(work: Work, scheme: Scheme, reached: Trace) -> tuple[np.ndarray, list[Measurement]]:
    """f1 against itself: through the exporter, and in the compute type. The latter is the floor [T] of all errors."""
    if scheme.compute not in work.controls:
        timesteps = work.setup.timesteps()
        noise = {compute: _control(work, compute, reached) for compute in (TWIN, scheme.compute)}
        floor = np.nan_to_num(noise[scheme.compute], nan=0.0, posinf=0.0)
        work.controls[scheme.compute] = (
            floor,
            [
                control.measure("export_control", noise[TWIN], timesteps),
                control.measure("compute_control", noise[scheme.compute], timesteps),
            ],
        )
    return work.controls[scheme.compute]


def _control(work: Work, compute: str, reached: Trace) -> np.ndarray:
    """Relative error power [T] of the exported f1 in ``compute``, run by ONNX Runtime."""
    name = f"f1.{compute}"
    with work.timed(f"control {compute}", work.setup.forced_forwards) as advance:
        path = work.exporter.full("adapted", compute, work.folder / "artifacts" / "full-precision" / f"{name}.onnx")
        folder = work.folder / "traces" / name
        runner = OnnxRunner(path, work.job.threads)
        outputs = trace.forced(work.setup, reached, runner, work.hidden["adapted"], folder, advance)
    return control.noise(outputs, reached.outputs())


def trace_artifact(work: Work, title: str, path: Path, side: Side, reached: Trace) -> Trace:
    """A quantized arm in ONNX Runtime: at f1's states, then free."""
    with work.timed(title, work.setup.forced_forwards + work.setup.free_forwards) as advance:
        folder = work.folder / "traces" / title.replace(" ", "-").replace(":", "")
        runner = OnnxRunner(path, work.job.threads)
        return trace.arm(work.setup, reached, runner, work.hidden[side], folder, advance)


def measure(
    setup: Setup, weights: np.ndarray, reference: Traces, quantized: Traces, floor: np.ndarray
) -> tuple[list[Measurement], effect.Energies]:
    """Every measurement of the four arms, which must be matched.

    Raises:
        MismatchError: they are not.
    """
    f0, f1, q0, q1 = reference["base"], reference["adapted"], quantized["base"], quantized["adapted"]
    trace.require_matched(f1, f0, q0, q1)
    energies = effect.energies(f0.outputs(), f1.outputs(), q0.outputs(), q1.outputs())
    return [
        *effect.measure(energies, weights, floor, setup.timesteps()),
        *endpoint.measure(f0.finals(), f1.finals(), q0.finals(), q1.finals(), float(np.sqrt(floor.max()))),
        spectrum.hf_energy("base", q0.finals(), f0.finals()),
        spectrum.hf_energy("adapted", q1.finals(), f1.finals()),
        *endpoint.reference_health(f0.finals(), f1.finals()),
    ], energies
