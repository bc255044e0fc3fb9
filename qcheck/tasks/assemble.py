"""The values of the report, from a finished check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from qcheck.build import profile
from qcheck.core.digest import digest_of, digest_of_value, file_digest, joined
from qcheck.device.arithmetic import decibels
from qcheck.diagnose import flip_map, judges
from qcheck.diagnose.scores import Scores, block, kind
from qcheck.diagnose.sheet import ROWS, Sheet
from qcheck.judge.next_step import among, next_step
from qcheck.measure import effect
from qcheck.model.device import Device
from qcheck.model.lora import Adapter
from qcheck.quantize import bound, plan
from qcheck.quantize.artifact import TWIN, Artifact
from qcheck.quantize.given import ORDER, Given
from qcheck.result.basis import Basis
from qcheck.result.build import Build
from qcheck.result.estimate import Estimate
from qcheck.result.manifest import model_files
from qcheck.result.measurement import NotMeasured
from qcheck.result.report import ArtifactFile, Case, GroupSurvival, Input, LayerShare, Probing, Report, Trust
from qcheck.result.verdict import Verdict
from qcheck.sampling.store import Trace
from qcheck.spec import order as orders
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import CheckSpec
from qcheck.spec.order import ORDERS, Order
from qcheck.spec.scheme import Scheme
from qcheck.spec.use import Use
from qcheck.tasks import controls, provenance
from qcheck.tasks.session import Session


@dataclass(frozen=True)
class CaseOutcome:
    """The outcome of one case: its verdict, builds, energies of the look that decided, and values at every step.

    ``energies`` is None where nothing was run.
    """

    verdict: Verdict
    builds: list[Build] = field(default_factory=list)
    energies: effect.Energies | None = None
    steps: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    trust: Trust | None = None
    groups: list[GroupSurvival] = field(default_factory=list)
    basis: Basis | None = None

    def probes(self, spec: CheckSpec) -> int:
        """The number of probes that were used; that of the first look where the reference itself is broken."""
        return spec.bounds.looks[0] if self.energies is None else len(self.energies.f1)


def case(
    session: Session,
    scheme: Scheme,
    order: Order,
    outcome: CaseOutcome,
    artifact: Artifact | None = None,
    folder: Path = Path(),
    scores: Scores | None = None,
) -> Case:
    """One scheme in one order as the report shows it; ``artifact`` is None where the reference itself is broken."""
    verdict, energies = outcome.verdict, outcome.energies
    layers = {layer.name for layer in artifact.manifest.layers} if artifact is not None else set()
    profiles = {} if energies is None else _profiles(energies)
    files = _files(folder, scheme, artifact) if artifact is not None else []
    full = session.exporter.full("adapted", scheme.compute) if artifact is not None and scheme.exported else None
    deployed = files[0].path if files and "tensorrt" in scheme.runs else None
    return Case(
        scheme=scheme.name,
        order=order,
        verdict=verdict.outcome,
        deciding=verdict.deciding,
        reasons=list(verdict.reasons),
        next=next_step(verdict.outcome, order, deployed, outcome.builds),
        warnings=[*session.spec.target.warns(scheme), *session.cut_prompts, *verdict.warnings],
        probes_used=outcome.probes(session.spec),
        measurements=list(verdict.measurements),
        stratum_sqnr=profiles,
        steps=outcome.steps,
        quantized_layers=len(layers),
        kept_layers=[
            name for name, _ in plan.linear_layers(session.arms.base.denoiser) if artifact and name not in layers
        ],
        layers=[] if scores is None else _shares(scores),
        artifact=files,
        ran_as=scheme.ran_as if session.runs_files or not scheme.exported else "simulation",
        control=scheme.control,
        compute=scheme.compute,
        full_precision_bytes=_bytes(full) if full is not None else None,
        estimate=_estimate(session, scheme, artifact),
        builds=outcome.builds,
        seconds=round(outcome.seconds, 1),
        trust=outcome.trust,
        groups=outcome.groups,
        basis=outcome.basis,
    )


def _shares(scores: Scores) -> list[LayerShare]:
    parts = (scores.weight_costs / scores.total, scores.activation_costs / scores.total)
    shares = [
        LayerShare(
            name=layer,
            block=block(layer),
            kind=kind(layer),
            share=share,
            standard_error=error,
            weight=weight,
            activation=activation,
        )
        for layer, (share, error, weight, activation) in zip(
            scores.layers, np.stack((scores.shares, scores.standard_errors(), *parts), 1).tolist(), strict=True
        )
    ]
    return sorted(shares, key=lambda layer: -layer.share)


def given_case(session: Session, file: Given, outcome: CaseOutcome) -> Case:
    """A file that qcheck did not write, as the report shows it: properties that are not known are left out."""
    verdict, energies = outcome.verdict, outcome.energies
    artifact_file = ArtifactFile(
        path=str(file.path),
        arm="adapted",
        compute=file.compute,
        digest=file.digest,
        bytes=file.bytes(),
        sha256={str(part): file_digest(part).hex() for part in file.parts},
    )
    return Case(
        scheme=file.name,
        order=ORDER,
        verdict=verdict.outcome,
        deciding=verdict.deciding,
        reasons=list(verdict.reasons),
        next=next_step(verdict.outcome, ORDER, str(file.path), outcome.builds),
        warnings=[
            "no base artifact: whether the scheme or the adapter causes the error cannot be told",
            *session.cut_prompts,
            *verdict.warnings,
        ],
        probes_used=outcome.probes(session.spec),
        measurements=list(verdict.measurements),
        stratum_sqnr={} if energies is None else {"adapted": effect.stratum_profile(energies.f1, energies.error1)},
        steps=outcome.steps,
        quantized_layers=None,
        kept_layers=[],
        artifact=[artifact_file],
        ran_as="artifact",
        control=False,
        compute=file.compute,
        full_precision_bytes=None,
        estimate=None,
        builds=outcome.builds,
        seconds=round(outcome.seconds, 1),
        trust=outcome.trust,
        groups=outcome.groups,
        basis=outcome.basis,
    )


def _estimate(session: Session, scheme: Scheme, artifact: Artifact | None) -> Estimate | None:
    if artifact is None or artifact.deployed is None or "tensorrt" not in scheme.runs:
        return None
    return profile.estimated(
        session.needs, session.spec.target, _bytes(artifact.deployed), artifact.manifest.layers, scheme.compute
    )


def _profiles(energies: effect.Energies) -> dict[str, list[float]]:
    return {
        "base": effect.stratum_profile(energies.f0, energies.error0),
        "adapted": effect.stratum_profile(energies.f1, energies.error1),
    }


def _files(folder: Path, scheme: Scheme, artifact: Artifact) -> list[ArtifactFile]:
    paths = ((artifact.deployed, scheme.compute), (artifact.runs.path, TWIN))
    return [_file(folder, path, compute, path == artifact.deployed) for path, compute in paths if path is not None]


def _file(folder: Path, path: Path, compute: str, deployed: bool) -> ArtifactFile:
    """A file of the artifact; with the one that is ``deployed`` goes the adapter, where it takes one as inputs."""
    parts = {part: file_digest(part).hex() for part in model_files(path)}
    beside = path.with_name(bound.ADAPTER)
    others = {beside: file_digest(beside).hex()} if deployed and beside.exists() else {}
    return ArtifactFile(
        path=path.relative_to(folder).as_posix(),
        arm="adapted",
        compute=compute,
        digest=joined(parts.values()),
        bytes=_bytes(path),
        sha256={part.relative_to(folder).as_posix(): digest for part, digest in (parts | others).items()},
    )


def _bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in model_files(path))


def sheet(
    session: Session, title: str, verdict: Verdict, reference: Mapping[Side, Trace], quantized: Mapping[Side, Trace]
) -> Sheet:
    """Decoded pictures of the first probes, before and after quantization."""
    rows = min(ROWS, len(reference["base"].paths))
    before, after = (
        {side: session.decoder.pictures(traces[side], rows) for side in SIDES} for traces in (reference, quantized)
    )
    return Sheet(
        scheme=_caption(title, verdict),
        prompts=tuple(p.prompt for p in session.sampler.probes[:rows]),
        reference=before,
        quantized=after,
        flips={side: flip_map.maps(after[side], before[side]) for side in SIDES},
    )


def _caption(title: str, verdict: Verdict) -> str:
    survivals = [m.value for m in verdict.measurements if m.name == "effect_survival" and m.value is not None]
    return f"{title} {verdict.outcome}" + (f" survival {survivals[0]:.2f}" if survivals else "")


def _inputs(
    uses: Sequence[Use], adapters: Sequence[Adapter], arms: Literal["adapted", "both", "reference"]
) -> list[Input]:
    return [
        Input(source=use.source, digest=adapter.digest, weight=use.weight, arms=arms)
        for use, adapter in zip(uses, adapters, strict=True)
    ]


def assemble(session: Session, cases: list[Case], size: float) -> Report:
    """The report of a finished check."""
    spec, arms = session.spec, session.arms
    most = max(case.probes_used for case in cases)
    return Report(
        spec=spec,
        base=Input(source=spec.base, digest=arms.base.digest),
        adapters=[
            *_inputs(spec.adapters, session.shipped.adapters, "adapted"),
            *_inputs(spec.references, arms.adapters if spec.references else (), "reference"),
            *_inputs(spec.common, arms.common, "both"),
        ],
        ranges=None if spec.ranges is None else Input(source=spec.ranges, digest=digest_of(Path(spec.ranges))),
        style_pictures=None if (exam := session.exam) is None else Input(source=exam.folder, digest=exam.digest),
        judges=[Input(source=one.text(), digest=judges.digest(one)) for one in spec.judges],
        changed_layers=len(arms.layers),
        unmatched=list(arms.unmatched),
        idle=sorted(arms.idle),
        target=spec.target.name,
        probes=Probing(
            name=spec.probes.name,
            digest=digest_of_value(spec.probes),
            prompts=list(spec.probes.prompts[:most]),
            steps=spec.probes.steps,
            guidance=spec.probes.guidance,
            seed=spec.probes.seed,
            timesteps=list(session.sampler.setup.timesteps()),
        ),
        effect_size=size,
        limits_grounds=spec.limits.grounds,
        cases=among(cases),
        not_measured=_not_measured(spec, session.arms.device, cases),
        provenance=provenance.collect(
            spec, session.arms.device, session.watch.seconds, _reference_error(session, size)
        ),
    )


def _reference_error(session: Session, size: float) -> float | None:
    """The highest relative error of a TF32 reference in dB; None in float32, or where the reference is broken."""
    floor = controls.reference_floor(session) if np.isfinite(size) else None
    return None if floor is None else float(decibels(floor, np.ones_like(floor)).max())


def _not_measured(spec: CheckSpec, device: Device, cases: list[Case]) -> list[NotMeasured]:
    title = spec.target.title
    place = "this CPU" if device.is_host else device.title
    entries = [
        NotMeasured(name="latency", reason=f"needs the device ({title}); nothing here ran on it"),
        NotMeasured(name="device numerics", reason=f"outputs come from float32 arithmetic on {place}, no engine ran"),
        NotMeasured(name="other components", reason="text encoder and VAE stay in full precision in every arm"),
    ]
    absent = {m.name: m.where for case in cases for m in case.measurements if not m.measured and m.limit is None}
    entries += [NotMeasured(name=name, reason=reason) for name, reason in absent.items()]
    entries += [
        NotMeasured(
            name=f"{name} in its own arithmetic",
            reason="ONNX Runtime has no CPU kernels for it; numbers come from its decoded values in float32",
        )
        for name in dict.fromkeys(case.scheme for case in cases if case.ran_as == "decoded twin")
    ]
    entries += [
        NotMeasured(
            name=f"{name} by its file",
            reason=f"no ONNX Runtime for {place} is here: torch simulated it; file and export were held against "
            "the simulation and the reference at one state, on the CPU",
        )
        for name in dict.fromkeys(case.scheme for case in cases if case.ran_as == "simulation")
    ]
    entries += [
        NotMeasured(name=f"{names} of {case.scheme}", reason=reason)
        for case in cases
        if case.quantized_layers is None
        for names, reason in _FOREIGN_FILE
    ]
    entries += [
        NotMeasured(
            name=f"refitting {case.scheme}",
            reason="a refittable engine needs a GPU to be compiled; the same file was compiled without that, if at all",
        )
        for case in cases
        if case.order in ORDERS and orders.merge(orders.find(case.order)).refits
    ]
    return entries + [_unbuilt(case, build) for case in cases for build in case.builds if not _read(build)]


_FOREIGN_FILE = (
    ("what compares with the quantized base", "no base artifact was given: excess_error, worst_stratum and `both`"),
    ("order, recipe, realised precision", "the file does not say how it was made, so there is nothing to hold it to"),
)


def _read(build: Build) -> bool:
    return build.status in ("refused", "fell back") or (build.realised is not None and build.realised.complete)


def _unbuilt(case: Case, build: Build) -> NotMeasured:
    if build.realised is None:
        return NotMeasured(name=f"build of {case.scheme} {case.order}", reason=build.detail)
    first = f", first {build.realised.unread[0]}" if build.realised.unread else ""
    return NotMeasured(
        name=f"realised precision of {case.scheme} {case.order}", reason=f"{build.realised.text()}{first}"
    )
