"""From a finished check to the values that the report is made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from qcheck.build import profile
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.diagnose import sensitivity
from qcheck.diagnose.sensitivity import Scores
from qcheck.diagnose.sheet import ROWS, Sheet
from qcheck.judge.next_step import next_step
from qcheck.measure import effect
from qcheck.model.lora import Adapter
from qcheck.quantize import given as foreign
from qcheck.quantize import plan
from qcheck.quantize.artifact import TWIN, Artifact
from qcheck.quantize.given import Foreign
from qcheck.result.build import Build
from qcheck.result.estimate import Estimate
from qcheck.result.manifest import model_files
from qcheck.result.measurement import NotMeasured
from qcheck.result.report import ArtifactFile, Case, Input, LayerShare, Probing, Report
from qcheck.result.verdict import Verdict
from qcheck.sampling.store import Trace
from qcheck.spec.arm import SIDES, Side
from qcheck.spec.check import Use
from qcheck.spec.order import Order
from qcheck.spec.scheme import Scheme
from qcheck.tasks import provenance
from qcheck.tasks.work import Work


def case(
    work: Work,
    scheme: Scheme,
    order: Order,
    verdict: Verdict,
    made: Artifact | None,
    builds: list[Build],
    energies: effect.Energies | None,
    steps: dict[str, list[float]],
    seconds: float,
    scores: Scores | None = None,
) -> Case:
    """One scheme in one order as the report shows it; nothing was made where the reference itself is broken."""
    layers = {layer.name for layer in made.manifest.layers} if made is not None else set()
    profiles = {} if energies is None else _profiles(energies)
    artifact = _files(work, scheme, made) if made is not None else []
    full = work.exporter.full("adapted", scheme.compute) if made is not None and scheme.exported else None
    deployed = artifact[0].path if artifact and "tensorrt" in scheme.runs else None
    return Case(
        scheme=scheme.name,
        order=order,
        verdict=verdict.outcome,
        deciding=verdict.deciding,
        reasons=list(verdict.reasons),
        next=next_step(verdict.outcome, order, deployed, builds),
        warnings=[*work.job.target.warns(scheme), *verdict.warnings],
        probes_used=len(work.probes[: work.job.limits.looks[0]]) if energies is None else len(energies.f1),
        measurements=list(verdict.measurements),
        stratum_sqnr=profiles,
        steps=steps,
        quantized_layers=len(layers),
        kept_layers=[name for name, _ in plan.linear_layers(work.arms.base.denoiser) if made and name not in layers],
        layers=[] if scores is None else _shares(scores),
        artifact=artifact,
        ran_as=scheme.ran_as,
        control=scheme.control,
        compute=scheme.compute,
        full_precision_bytes=_bytes(full) if full is not None else None,
        estimate=_estimate(work, scheme, made),
        builds=builds,
        seconds=round(seconds, 1),
    )


def _shares(scores: Scores) -> list[LayerShare]:
    total = float(scores.costs.sum()) or 1.0
    columns = (scores.costs, scores.standard_errors(), scores.weight_costs, scores.activation_costs)
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
            scores.layers, (np.stack(columns, 1) / total).tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda layer: -layer.share)


def foreign_case(
    work: Work,
    given: Foreign,
    verdict: Verdict,
    builds: list[Build],
    energies: effect.Energies | None,
    steps: dict[str, list[float]],
    seconds: float,
) -> Case:
    """A file of someone else's as the report shows it: what is not known of it is left out."""
    file = ArtifactFile(
        path=str(given.path), arm="adapted", compute=given.compute, digest=given.digest, bytes=given.bytes()
    )
    return Case(
        scheme=given.name,
        order=foreign.ORDER,
        verdict=verdict.outcome,
        deciding=verdict.deciding,
        reasons=list(verdict.reasons),
        next=next_step(verdict.outcome, foreign.ORDER, str(given.path), builds),
        warnings=["no base artifact: whether the scheme or the adapter causes the error cannot be told"],
        probes_used=len(work.probes[: work.job.limits.looks[0]]) if energies is None else len(energies.f1),
        measurements=list(verdict.measurements),
        stratum_sqnr={} if energies is None else {"adapted": effect.stratum_profile(energies.f1, energies.error1)},
        steps=steps,
        quantized_layers=None,
        kept_layers=[],
        artifact=[file],
        ran_as="artifact",
        control=False,
        compute=given.compute,
        full_precision_bytes=None,
        estimate=None,
        builds=builds,
        seconds=round(seconds, 1),
    )


def _estimate(work: Work, scheme: Scheme, made: Artifact | None) -> Estimate | None:
    if made is None or made.deployed is None or "tensorrt" not in scheme.runs:
        return None
    return profile.estimated(work.needs, work.job.target, _bytes(made.deployed), made.manifest.layers, scheme.compute)


def _profiles(energies: effect.Energies) -> dict[str, list[float]]:
    return {
        "base": effect.stratum_profile(energies.f0, energies.error0),
        "adapted": effect.stratum_profile(energies.f1, energies.error1),
    }


def _files(work: Work, scheme: Scheme, made: Artifact) -> list[ArtifactFile]:
    found = ((made.deployed, scheme.compute), (made.runs.path, TWIN))
    return [_file(work, path, compute) for path, compute in found if path is not None]


def _file(work: Work, path: Path, compute: str) -> ArtifactFile:
    where = path.relative_to(work.folder).as_posix()
    content = digest_of(*model_files(path))
    return ArtifactFile(path=where, arm="adapted", compute=compute, digest=content, bytes=_bytes(path))


def _bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in model_files(path))


def sheet(
    work: Work, title: str, verdict: Verdict, reference: Mapping[Side, Trace], quantized: Mapping[Side, Trace]
) -> Sheet:
    """Decoded pictures of the first probes, before and after quantization."""
    family = work.arms.use("base")
    rows = slice(0, min(ROWS, len(reference["base"].paths)))

    def pictures(found: Trace) -> np.ndarray:
        shown = found.paths[rows]
        if shown not in work.pictures:
            decoded = family.decode(torch.from_numpy(np.stack(found.finals()[rows])))
            work.pictures[shown] = decoded.permute(0, 2, 3, 1).numpy()
        return work.pictures[shown]

    return Sheet(
        scheme=_caption(title, verdict),
        prompts=tuple(p.prompt for p in work.probes[rows]),
        reference={side: pictures(reference[side]) for side in SIDES},
        quantized={side: pictures(quantized[side]) for side in SIDES},
    )


def _caption(title: str, verdict: Verdict) -> str:
    kept = [m.value for m in verdict.measurements if m.name == "effect_survival" and m.value is not None]
    return f"{title} {verdict.outcome}" + (f" survival {kept[0]:.2f}" if kept else "")


def _inputs(uses: Sequence[Use], read: Sequence[Adapter], of: Literal["adapted", "both", "reference"]) -> list[Input]:
    return [
        Input(source=used.source, digest=adapter.digest, weight=used.weight, arms=of)
        for used, adapter in zip(uses, read, strict=True)
    ]


def assemble(work: Work, cases: list[Case], size: float) -> Report:
    """The report of a finished check."""
    job = work.job
    most = max(case.probes_used for case in cases)
    return Report(
        base=Input(source=job.base, digest=work.arms.base.digest),
        adapters=[
            *_inputs(job.adapters, work.shipped.adapters, "adapted"),
            *_inputs(job.references, work.arms.adapters if job.references else (), "reference"),
            *_inputs(job.common, work.arms.common, "both"),
        ],
        changed_layers=len(work.arms.layers),
        unmatched=list(work.arms.unmatched),
        target=job.target.name,
        probes=Probing(
            name=job.probes.name,
            digest=digest_of_value(job.probes),
            prompts=list(job.probes.prompts[:most]),
            steps=job.probes.steps,
            guidance=job.probes.guidance,
            seed=job.probes.seed,
            timesteps=list(work.setup.timesteps()),
        ),
        effect_size=size,
        limits_grounds=job.limits.grounds,
        cases=cases,
        not_measured=_not_measured(work, cases),
        provenance=provenance.collect(job, work.seconds),
    )


def _not_measured(work: Work, cases: list[Case]) -> list[NotMeasured]:
    title = work.job.target.title
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
        if case.order == "refit"
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
