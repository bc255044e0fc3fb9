"""From a finished check to the values that the report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from qcheck.build import profile
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.diagnose import sensitivity
from qcheck.diagnose.sensitivity import Scores
from qcheck.diagnose.sheet import ROWS, Sheet
from qcheck.judge.next_step import next_step
from qcheck.measure import effect
from qcheck.model.lora import Adapter
from qcheck.quantize import plan
from qcheck.quantize.artifact import TWIN, Artifact
from qcheck.quantize.given import ORDER, Given
from qcheck.result.build import Build
from qcheck.result.estimate import Estimate
from qcheck.result.manifest import model_files
from qcheck.result.measurement import NotMeasured
from qcheck.result.report import ArtifactFile, Case, Input, LayerShare, Probing, Report
from qcheck.result.verdict import Verdict
from qcheck.sampling.store import Trace
from qcheck.spec import order as orders
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import CheckSpec, Use
from qcheck.spec.order import ORDERS, Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import provenance
from qcheck.tasks.session import Session


@dataclass(frozen=True)
class CaseOutcome:
    """What was found out of one case: its verdict, builds, energies of the look that decided, values at every step.

    ``energies`` is None where nothing was run.
    """

    verdict: Verdict
    builds: list[Build] = field(default_factory=list)
    energies: effect.Energies | None = None
    steps: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def probes(self, spec: CheckSpec) -> int:
        """How many probes were used; those of the first look where the reference itself is broken."""
        return spec.bounds.looks[0] if self.energies is None else len(self.energies.f1)


def case(
    session: Session,
    scheme: Scheme,
    order: Order,
    judged: CaseOutcome,
    made: Artifact | None = None,
    folder: Path = Path(),
    scores: Scores | None = None,
) -> Case:
    """One scheme in one order as the report shows it; nothing was made where the reference itself is broken."""
    verdict, energies = judged.verdict, judged.energies
    layers = {layer.name for layer in made.manifest.layers} if made is not None else set()
    profiles = {} if energies is None else _profiles(energies)
    artifact = _files(folder, scheme, made) if made is not None else []
    full = session.exporter.full("adapted", scheme.compute) if made is not None and scheme.exported else None
    deployed = artifact[0].path if artifact and "tensorrt" in scheme.runs else None
    return Case(
        scheme=scheme.name,
        order=order,
        verdict=verdict.outcome,
        deciding=verdict.deciding,
        reasons=list(verdict.reasons),
        next=next_step(verdict.outcome, order, deployed, judged.builds),
        warnings=[*session.spec.target.warns(scheme), *verdict.warnings],
        probes_used=judged.probes(session.spec),
        measurements=list(verdict.measurements),
        stratum_sqnr=profiles,
        steps=judged.steps,
        quantized_layers=len(layers),
        kept_layers=[name for name, _ in plan.linear_layers(session.arms.base.denoiser) if made and name not in layers],
        layers=[] if scores is None else _shares(scores),
        artifact=artifact,
        ran_as=scheme.ran_as,
        control=scheme.control,
        compute=scheme.compute,
        full_precision_bytes=_bytes(full) if full is not None else None,
        estimate=_estimate(session, scheme, made),
        builds=judged.builds,
        seconds=round(judged.seconds, 1),
    )


def _shares(scores: Scores) -> list[LayerShare]:
    parts = (scores.weight_costs / scores.total, scores.activation_costs / scores.total)
    found = [
        LayerShare(
            name=layer,
            block=sensitivity.block(layer),
            kind=sensitivity.kind(layer),
            share=share,
            standard_error=error,
            weight=weight,
            activation=activation,
        )
        for layer, (share, error, weight, activation) in zip(
            scores.layers, np.stack((scores.shares, scores.standard_errors(), *parts), 1).tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda layer: -layer.share)


def given_case(session: Session, given: Given, judged: CaseOutcome) -> Case:
    """A file of someone else's as the report shows it: what is not known of it is left out."""
    verdict, energies = judged.verdict, judged.energies
    file = ArtifactFile(
        path=str(given.path), arm="adapted", compute=given.compute, digest=given.digest, bytes=given.bytes()
    )
    return Case(
        scheme=given.name,
        order=ORDER,
        verdict=verdict.outcome,
        deciding=verdict.deciding,
        reasons=list(verdict.reasons),
        next=next_step(verdict.outcome, ORDER, str(given.path), judged.builds),
        warnings=["no base artifact: whether the scheme or the adapter causes the error cannot be told"],
        probes_used=judged.probes(session.spec),
        measurements=list(verdict.measurements),
        stratum_sqnr={} if energies is None else {"adapted": effect.stratum_profile(energies.f1, energies.error1)},
        steps=judged.steps,
        quantized_layers=None,
        kept_layers=[],
        artifact=[file],
        ran_as="artifact",
        control=False,
        compute=given.compute,
        full_precision_bytes=None,
        estimate=None,
        builds=judged.builds,
        seconds=round(judged.seconds, 1),
    )


def _estimate(session: Session, scheme: Scheme, made: Artifact | None) -> Estimate | None:
    if made is None or made.deployed is None or "tensorrt" not in scheme.runs:
        return None
    return profile.estimated(
        session.needs, session.spec.target, _bytes(made.deployed), made.manifest.layers, scheme.compute
    )


def _profiles(energies: effect.Energies) -> dict[str, list[float]]:
    return {
        "base": effect.stratum_profile(energies.f0, energies.error0),
        "adapted": effect.stratum_profile(energies.f1, energies.error1),
    }


def _files(folder: Path, scheme: Scheme, made: Artifact) -> list[ArtifactFile]:
    found = ((made.deployed, scheme.compute), (made.runs.path, TWIN))
    return [_file(folder, path, compute) for path, compute in found if path is not None]


def _file(folder: Path, path: Path, compute: str) -> ArtifactFile:
    where = path.relative_to(folder).as_posix()
    content = digest_of(*model_files(path))
    return ArtifactFile(path=where, arm="adapted", compute=compute, digest=content, bytes=_bytes(path))


def _bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in model_files(path))


def sheet(
    session: Session, title: str, verdict: Verdict, reference: Mapping[Side, Trace], quantized: Mapping[Side, Trace]
) -> Sheet:
    """Decoded pictures of the first probes, before and after quantization."""
    rows = min(ROWS, len(reference["base"].paths))
    return Sheet(
        scheme=_caption(title, verdict),
        prompts=tuple(p.prompt for p in session.sampler.probes[:rows]),
        reference={side: session.decoder.pictures(reference[side], rows) for side in SIDES},
        quantized={side: session.decoder.pictures(quantized[side], rows) for side in SIDES},
    )


def _caption(title: str, verdict: Verdict) -> str:
    kept = [m.value for m in verdict.measurements if m.name == "effect_survival" and m.value is not None]
    return f"{title} {verdict.outcome}" + (f" survival {kept[0]:.2f}" if kept else "")


def _inputs(uses: Sequence[Use], read: Sequence[Adapter], of: Literal["adapted", "both", "reference"]) -> list[Input]:
    return [
        Input(source=used.source, digest=adapter.digest, weight=used.weight, arms=of)
        for used, adapter in zip(uses, read, strict=True)
    ]


def assemble(session: Session, cases: list[Case], size: float) -> Report:
    """The report of a finished check."""
    spec, both = session.spec, session.arms
    most = max(case.probes_used for case in cases)
    return Report(
        spec=spec,
        base=Input(source=spec.base, digest=both.base.digest),
        adapters=[
            *_inputs(spec.adapters, session.shipped.adapters, "adapted"),
            *_inputs(spec.references, both.adapters if spec.references else (), "reference"),
            *_inputs(spec.common, both.common, "both"),
        ],
        ranges=None if spec.ranges is None else Input(source=spec.ranges, digest=digest_of(Path(spec.ranges))),
        changed_layers=len(both.layers),
        unmatched=list(both.unmatched),
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
        cases=cases,
        not_measured=_not_measured(spec, cases),
        provenance=provenance.collect(spec, session.watch.seconds),
    )


def _not_measured(spec: CheckSpec, cases: list[Case]) -> list[NotMeasured]:
    title = spec.target.title
    found = [
        NotMeasured(name="latency", reason=f"needs the device ({title}); nothing here ran on it"),
        NotMeasured(name="device numerics", reason="outputs come from the float32 twin in ONNX Runtime on this CPU"),
        NotMeasured(name="other components", reason="text encoder and VAE stay in full precision in every arm"),
    ]
    absent = {m.name: m.where for case in cases for m in case.measurements if not m.measured and m.limit is None}
    found += [NotMeasured(name=name, reason=reason) for name, reason in absent.items()]
    found += [
        NotMeasured(
            name=f"{name} in its own arithmetic",
            reason="ONNX Runtime has no CPU kernels for it; numbers come from its decoded values in float32",
        )
        for name in dict.fromkeys(case.scheme for case in cases if case.ran_as == "decoded twin")
    ]
    found += [
        NotMeasured(name=f"{names} of {case.scheme}", reason=reason)
        for case in cases
        if case.quantized_layers is None
        for names, reason in _ALONE
    ]
    found += [
        NotMeasured(
            name=f"refitting {case.scheme}",
            reason="a refittable engine needs a GPU to be compiled; the same file was compiled without that, if at all",
        )
        for case in cases
        if case.order in ORDERS and orders.merge(orders.find(case.order)).ranges == "shared"
    ]
    return found + [_unbuilt(case, made) for case in cases for made in case.builds if not _read(made)]


_ALONE = (
    ("what compares with the quantized base", "no base artifact was given: excess_error, worst_stratum and `both`"),
    ("order, recipe, realised precision", "the file does not say how it was made, so there is nothing to hold it to"),
)


def _read(made: Build) -> bool:
    return made.status in ("refused", "fell back") or (made.realised is not None and made.realised.complete)


def _unbuilt(case: Case, made: Build) -> NotMeasured:
    if made.realised is None:
        return NotMeasured(name=f"build of {case.scheme} {case.order}", reason=made.detail)
    first = f", first {made.realised.unread[0]}" if made.realised.unread else ""
    return NotMeasured(
        name=f"realised precision of {case.scheme} {case.order}", reason=f"{made.realised.text()}{first}"
    )
