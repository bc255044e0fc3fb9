"""The story on one page: reference -> ranges -> artifacts -> build -> traces -> measurements -> verdict -> report."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from qcheck import artifact, files, probe, provenance, recipe, trace
from qcheck.artifact import Artifacts, Ranges, Templates
from qcheck.backend import tensorrt
from qcheck.backend.onnxruntime import OnnxRunner
from qcheck.backend.torch import TorchRunner
from qcheck.errors import UserError
from qcheck.job import Job
from qcheck.measurement import Measurement, NotMeasured
from qcheck.metric import control, effect, endpoint, spectrum
from qcheck.model import arms, base, lora
from qcheck.model.arms import Arms, Side
from qcheck.probe import ProbeSet
from qcheck.progress import Progress
from qcheck.quantize import plan
from qcheck.quantize.ranges import AbsoluteMaximum, observed
from qcheck.report import contact
from qcheck.report.contact import Sheet
from qcheck.report.model import ArtifactFile, Build, Case, Input, Probing, Report
from qcheck.scheme import Order, Scheme
from qcheck.trace import Setup, Trace
from qcheck.verdict import judge

ORDER: Order = "merge-quantize"
SIDES: tuple[Side, Side] = ("base", "adapted")
Hidden = dict[Side, np.ndarray]


@dataclass
class Work:
    """One check under way: the arms, what all arms share, where files go, and the time each stage took."""

    job: Job
    arms: Arms
    setup: Setup
    hidden: Hidden
    folder: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, title: str, total: int) -> Iterator[trace.Advance]:
        """A progress stage whose duration is kept for the report."""
        start = time.monotonic()
        with self.progress.stage(title, total) as advance:
            yield advance
        self.seconds[title] = round(time.monotonic() - start, 2)

    def runner(self, side: Side) -> TorchRunner:
        """The full-precision denoiser of an arm."""
        return TorchRunner(self.arms.use(side).unet)


def check(job: Job, folder: Path, progress: Progress) -> Report:
    """Run ``job``, writing artifacts, pictures and report.json below ``folder``.

    Raises:
        UserError: bad input, or an adapter whose effect on these probes is too small to judge.
    """
    torch.set_num_threads(job.threads)
    work = prepare(job, folder, progress)
    reference = trace_reference(work)
    size = require_effect(work, reference)
    if np.isnan(size):
        cases = [broken_case(work, scheme, reference) for scheme in job.schemes]
    else:
        ranges = find_ranges(work)
        templates = Templates(work.arms, work.setup.latents.shape, torch.Size(work.hidden["base"].shape[1:]))
        cases = [run_case(work, templates, scheme, reference, ranges) for scheme in job.schemes]
    report = assemble(work, [case for case, _ in cases], size)
    contact.draw([sheet for _, sheet in cases], folder / "contact.png")
    (folder / "report.json").write_text(report.to_json(), "utf-8")
    return report


def prepare(job: Job, folder: Path, progress: Progress) -> Work:
    """Load base and adapter, and draw the probes' noise and text embeddings for both arms."""
    adapter = lora.read(job.adapter, job.weight)
    with progress.stage("load base and adapter", 1) as advance:
        loaded = base.load(job.base)
        both = arms.apply(loaded, adapter)
        advance(1)
    setup, hidden = matched(both, job.probes, 8, job)
    return Work(job, both, setup, hidden, folder, progress)


def matched(both: Arms, chosen: ProbeSet, strata: int, job: Job) -> tuple[Setup, Hidden]:
    """The shared set-up of a probe set, and each arm's own embeddings [n, 1 or 2, L, D]."""
    asked = probe.probes(chosen, job.weight)
    started = [arms.start(both.base.pipe, p) for p in asked]
    hidden: Hidden = {}
    for side in SIDES:
        pipe = both.use(side)
        hidden[side] = torch.stack([arms.embed(pipe, p) for p in asked]).numpy()
    setup = Setup(
        probes=asked,
        scheduler=both.base.pipe.scheduler,
        latents=torch.cat([latents for latents, _ in started]),
        generators=tuple(generator.get_state() for _, generator in started),
        strata=trace.choose_strata(chosen.steps, strata),
        batch=job.batch,
    )
    return setup, hidden


def trace_reference(work: Work) -> dict[Side, Trace]:
    """f1 walks freely; f0 is asked at f1's states and walks too."""
    setup, folder = work.setup, work.folder / "traces"
    total = 2 * setup.free_forwards + setup.forced_forwards
    with work.timed("reference", total) as advance:
        f1 = trace.reference(setup, work.runner("adapted"), work.hidden["adapted"], folder / "f1", advance)
        f0 = trace.arm(setup, f1, work.runner("base"), work.hidden["base"], folder / "f0", advance)
    return {"base": f0, "adapted": f1}


def require_effect(work: Work, reference: dict[Side, Trace]) -> float:
    """Mean |Df| / |f1| over the probes; NaN where the reference is not finite.

    Raises:
        UserError: it is negligible, so there is nothing whose survival could be judged.
    """
    weights = _weights(work.setup)
    size = float(effect.effect_size(reference["base"].outputs(), reference["adapted"].outputs(), weights).mean())
    limit = work.job.limits.negligible_effect
    if size < limit:
        raise UserError(
            f"the adapter changes the denoiser's output by only {size:.2g} of its size on these probes "
            f"(weight {work.job.weight:g}; at least {limit:g} is needed to judge)",
            "Use prompts that wake it (its trigger word, by --probes), a larger --weight, or the base it was made for.",
        )
    return size


def _weights(setup: Setup) -> np.ndarray:
    found: np.ndarray = trace.coefficients(setup.scheduler, setup.steps)[list(setup.strata)] ** 2
    return found


def find_ranges(work: Work) -> dict[Side, dict[str, float]]:
    """Input ranges of every layer for both arms, at the same states: those of f1 on the calibration prompts."""
    job = work.job
    chosen = recipe.calibration(job.recipe, job.probes)
    setup, hidden = matched(work.arms, chosen, job.recipe.strata, job)
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


def run_case(
    work: Work, templates: Templates, scheme: Scheme, reference: dict[Side, Trace], ranges: Ranges
) -> tuple[Case, Sheet]:
    """One scheme: artifacts of both arms, build, controls, traces, measurements, verdict."""
    start = time.monotonic()
    with work.timed(f"{scheme.name}: artifacts", 1) as advance:
        made = artifact.write(work.arms, templates, scheme, work.job.recipe, ORDER, ranges, work.folder / "artifacts")
        advance(1)
    builds = [build(work, scheme, made)]
    floor, controls = run_controls(work, scheme, reference["adapted"], made)
    quantized = trace_artifacts(work, scheme, reference["adapted"], made)
    measured, energies = measure(work.setup, reference, quantized, floor)
    limits = work.job.limits
    verdict = judge([*controls, *measured], effect.bad_probes(energies, _weights(work.setup), *limits.tail), limits)
    case = Case(
        scheme=scheme.name,
        order=ORDER,
        verdict=verdict.outcome,
        reasons=list(verdict.reasons),
        probes_used=len(work.setup.probes),
        measurements=list(verdict.measurements),
        stratum_sqnr={
            "base": effect.stratum_profile(energies.f0, energies.error0),
            "adapted": effect.stratum_profile(energies.f1, energies.error1),
        },
        quantized_layers=len(made.layers),
        kept_layers=[name for name, _ in plan.linear_layers(work.arms.base.denoiser) if name not in made.layers],
        artifact=[
            _describe(work, made.deployed, "adapted", scheme.compute),
            *(_describe(work, path, side, artifact.TWIN) for side, path in made.twins.items()),
        ],
        full_precision_bytes=made.full[scheme.compute].stat().st_size,
        builds=builds,
        seconds=round(time.monotonic() - start, 1),
    )
    return case, _sheet(work, scheme, reference, quantized)


def broken_case(work: Work, scheme: Scheme, reference: dict[Side, Trace]) -> tuple[Case, Sheet]:
    """A scheme that need not be built: f1 itself is not finite, and that is the verdict."""
    seen = endpoint.reference_health(reference["base"].finals(), reference["adapted"].finals())
    verdict = judge(seen, [], work.job.limits)
    case = Case(
        scheme=scheme.name,
        order=ORDER,
        verdict=verdict.outcome,
        reasons=list(verdict.reasons),
        probes_used=len(work.setup.probes),
        measurements=list(verdict.measurements),
        stratum_sqnr={},
        quantized_layers=0,
        kept_layers=[],
        artifact=[],
        full_precision_bytes=0,
        builds=[],
        seconds=0.0,
    )
    return case, _sheet(work, scheme, reference, reference)


def build(work: Work, scheme: Scheme, made: Artifacts) -> Build:
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
    with work.timed(f"{scheme.name}: build for SM {capability}", 1) as advance:
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


def run_controls(work: Work, scheme: Scheme, reached: Trace, made: Artifacts) -> tuple[np.ndarray, list[Measurement]]:
    """f1 against itself: through the exporter, and in the compute type. The latter is the floor [T] of all errors."""
    relative = {}
    with work.timed(f"{scheme.name}: controls", 2 * work.setup.forced_forwards) as advance:
        for compute, path in made.full.items():
            runner = OnnxRunner(path, work.job.threads)
            folder = work.folder / "traces" / f"control-{compute}"
            trace.forced(work.setup, reached, runner, work.hidden["adapted"], folder, advance)
            relative[compute] = control.noise(np.load(folder / "outputs.npy", mmap_mode="r"), reached.outputs())
    timesteps = work.setup.timesteps()
    floor = np.nan_to_num(relative[scheme.compute], nan=0.0, posinf=0.0)
    return floor, [
        control.measure("export_control", relative[artifact.TWIN], timesteps),
        control.measure("compute_control", relative[scheme.compute], timesteps),
    ]


def trace_artifacts(work: Work, scheme: Scheme, reached: Trace, made: Artifacts) -> dict[Side, Trace]:
    """q0 and q1 in ONNX Runtime: at f1's states, then free."""
    setup, traces = work.setup, work.folder / "traces" / scheme.name
    found: dict[Side, Trace] = {}
    with work.timed(f"{scheme.name}: probes", 2 * (setup.forced_forwards + setup.free_forwards)) as advance:
        for side, twin in made.twins.items():
            runner = OnnxRunner(twin, work.job.threads)
            found[side] = trace.arm(setup, reached, runner, work.hidden[side], traces / side, advance)
    return found


def measure(
    setup: Setup, reference: Mapping[Side, Trace], quantized: Mapping[Side, Trace], floor: np.ndarray
) -> tuple[list[Measurement], effect.Energies]:
    """Every measurement of the four arms, which must be matched.

    Raises:
        MismatchError: they are not.
    """
    f0, f1, q0, q1 = reference["base"], reference["adapted"], quantized["base"], quantized["adapted"]
    trace.require_matched(f1, f0, q0, q1)
    energies = effect.energies(f0.outputs(), f1.outputs(), q0.outputs(), q1.outputs())
    coefficient = np.sqrt(_weights(setup))
    return [
        *effect.measure(energies, coefficient, floor, setup.timesteps()),
        *endpoint.measure(f0.finals(), f1.finals(), q0.finals(), q1.finals()),
        spectrum.hf_energy("base", q0.finals(), f0.finals()),
        spectrum.hf_energy("adapted", q1.finals(), f1.finals()),
        *endpoint.reference_health(f0.finals(), f1.finals()),
    ], energies


def _describe(work: Work, path: Path, arm: Side, compute: str) -> ArtifactFile:
    where = path.relative_to(work.folder).as_posix()
    return ArtifactFile(path=where, arm=arm, compute=compute, digest=files.digest(path), bytes=path.stat().st_size)


def _sheet(work: Work, scheme: Scheme, reference: dict[Side, Trace], quantized: dict[Side, Trace]) -> Sheet:
    pipe = work.arms.use("base")
    rows = slice(0, contact.ROWS)

    def pictures(found: Trace) -> np.ndarray:
        decoded = arms.decode(pipe, torch.from_numpy(np.array(found.finals()[rows])))
        return decoded.permute(0, 2, 3, 1).numpy()

    return Sheet(
        scheme=scheme.name,
        prompts=tuple(p.prompt for p in work.setup.probes[rows]),
        reference={side: pictures(reference[side]) for side in SIDES},
        quantized={side: pictures(quantized[side]) for side in SIDES},
    )


def assemble(work: Work, cases: list[Case], size: float) -> Report:
    """The report of a finished check."""
    job, adapter = work.job, work.arms.adapter
    return Report(
        base=Input(source=job.base, digest=work.arms.base.digest),
        adapters=[
            Input(source=job.adapter, digest=adapter.digest, weight=adapter.weight, layers=len(work.arms.layers))
        ],
        target=job.target.name,
        probes=Probing(
            name=job.probes.name,
            digest=files.digest_value(job.probes),
            prompts=list(job.probes.prompts),
            steps=job.probes.steps,
            guidance=job.probes.guidance,
            seed=job.probes.seed,
            timesteps=list(work.setup.timesteps()),
        ),
        effect_size=size,
        limits_calibrated=job.limits.calibrated,
        cases=cases,
        not_measured=_not_measured(work, cases),
        provenance=provenance.collect(job, work.seconds),
    )


def _not_measured(work: Work, cases: list[Case]) -> list[NotMeasured]:
    title = work.job.target.title
    found = [
        NotMeasured(name="latency", reason=f"needs the device ({title}); nothing here ran on it"),
        NotMeasured(name="device numerics", reason="outputs come from the float32 twin in ONNX Runtime on this CPU"),
        NotMeasured(name="realised precision", reason="this version does not read the built engine's operand types"),
        NotMeasured(name="other components", reason="text encoder and VAE stay in full precision in every arm"),
    ]
    return found + [
        NotMeasured(name=f"build of {case.scheme}", reason=made.detail)
        for case in cases
        for made in case.builds
        if made.status == "not run"
    ]
