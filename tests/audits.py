"""A small sealed report folder without a model: arms are arrays, files are a few bytes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from qcheck.cli.app import app
from qcheck.core.digest import digest_of, digest_of_value, joined
from qcheck.device import gates
from qcheck.measure import classifier, effect, registry
from qcheck.measure.control import Control
from qcheck.measure.interval import measure
from qcheck.measure.sample import Sample
from qcheck.report import junit, markdown, seal
from qcheck.result.measurement import Judged
from qcheck.result.report import REPORT, Report
from qcheck.spec import recipe
from qcheck.spec.check import CheckSpec
from qcheck.tasks import basis, trust
from qcheck.tasks.decide import Instrument, decide
from tests import reports
from tests.measure.test_laws import TIMES, Drawn, view

SPEC = reports.SPEC.changed(max_probes=8)
Change = Callable[[dict[str, Any]], Any]
FILE = "artifacts/int8/merge-quantize/unet/model.onnx"
MANIFEST = "artifacts/int8/merge-quantize/manifest.json"
BYTES = {
    FILE: b"a graph",
    f"{FILE}.data": b"its weights",
    "report.html": b"<!doctype html>",
    "pictures/f0-1.webp": b"RIFF",
}


def case(noise: float, **changed: Any) -> dict[str, Any]:
    """A case of 8 probes whose quantization adds ``noise``: PASS at .01, NEEDS-QAT with noise in q1 alone."""
    drawn, floor = Drawn(0, 8, 0.01), np.full(3, 1e-12)
    drawn.q1 = drawn.f1 + noise * np.random.default_rng(1).standard_normal(drawn.f1.shape)
    samples, energies = registry.samples(view(drawn)), effect.energies(*drawn.arms)
    controls = [Control(name, np.full(3, 1e-12), (0, 1, 2), TIMES) for name in ("export_control", "compute_control")]
    record = basis.Record(Instrument(controls, lambda share: np.full(8, share), lambda _: 0.1))
    limits = SPEC.bounds.computing("float16")
    verdict = decide(limits, record.instrument, samples, energies, [])
    trusted = trust.of(verdict, limits, record.instrument, samples, energies, [])
    psnr, scores = Sample("psnr", "adapted", np.linspace(30, 34, 4)), np.random.default_rng(2).standard_normal((2, 8))
    rest = [measure(psnr, None, limits.alpha), classifier.of_scores("adapted", scores, limits.alpha)]
    rest.append(effect.worst_prompt(energies, floor, SPEC.probes.prompts[:8]))
    judged = [*verdict.measurements, *(Judged(**one.model_dump()) for one in rest)]
    kept = basis.of(samples, energies, floor, record, [psnr], {"adapted": scores})
    digests = {name: digest_of_bytes(BYTES[name]) for name in (FILE, f"{FILE}.data")}
    file = {"path": FILE, "arm": "adapted", "compute": "float16", "digest": joined(digests.values()), "bytes": 18}
    return reports.case(
        verdict=verdict.outcome,
        deciding=None if verdict.deciding is None else verdict.deciding.model_dump(),
        reasons=list(verdict.reasons),
        measurements=[one.model_dump() for one in judged],
        probes_used=8,
        artifact=[file | {"sha256": digests}],
        builds=[],
        trust=trusted.model_dump(),
        basis=kept.model_dump(),
        **changed,
    )


def digest_of_bytes(content: bytes) -> str:
    """The SHA-256 of some bytes in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def report(*cases: dict[str, Any], spec: CheckSpec = SPEC) -> Report:
    """A report of those cases, with the digests that it has to have."""
    plain = reports.report(*cases, spec=spec)
    prompts = recipe.calibration(spec.recipe, spec.probes).prompts
    provenance = plain.provenance.model_copy(
        update={
            "limits_digest": digest_of_value(spec.limits),
            "recipe_digest": digest_of(digest_of_value(spec.recipe), *prompts),
        }
    )
    probes = plain.probes.model_copy(update={"digest": digest_of_value(spec.probes)})
    return plain.model_copy(update={"provenance": provenance, "probes": probes})


def folder(place: Path, made: Report) -> Path:
    """The folder of a report, sealed as a check seals it."""
    rewritten(place, made)
    for name, content in BYTES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    digest = made.cases[0].artifact[0].digest
    (place / MANIFEST).write_text(f'{{"files": {{"unet/model.onnx": "{digest}"}}}}', "utf-8")
    seal.write(made, place)
    return place


def rewritten(place: Path, made: Report) -> None:
    """What a report says, written over what is there: its seal stays as it was."""
    place.mkdir(parents=True, exist_ok=True)
    (place / REPORT).write_text(made.to_json(), "utf-8")
    (place / "report.md").write_text(markdown.render(made), "utf-8")
    (place / "junit.xml").write_text(junit.render(made), "utf-8")


KEPT = (1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.0)


def measured(key: str, values: Sequence[float] = KEPT, **more: Any) -> Any:
    """A measurement of a board on 8 probes, as JSON, judged by itself."""
    limit = more.pop("limit", None) or SPEC.bounds.ranges[key, "adapted"].model_dump()
    gate = gates.Gate(key, "adapted", "ratio", **limit)
    made = gates.measure(np.array(values), gate, SPEC.bounds.alpha)
    (judged,) = gates.judged([made], [gate], SPEC.bounds.alpha)
    return json.loads(json.dumps(judged.to_json())) | more


def verified(report: Report, **changed: Any) -> dict[str, Any]:
    """What a board says of the report's first case."""
    case, adapter = report.cases[0], report.adapters[0]
    asked = {
        "base": "pipeline",
        "adapter": "flat",
        "scheme": case.scheme,
        "order": case.order,
        "target": report.target,
        "guidance": report.probes.guidance,
        "steps": report.probes.steps,
        "verdict": "PASS",
        "host_machine": "m",
        "base_digest": report.base.digest,
        "adapter_digests": [adapter.digest],
        "file_digest": case.artifact[0].digest,
        "weights": [adapter.weight],
        "limits_digest": report.provenance.limits_digest,
    }
    build = {"tensorrt": "10.3.0", "board": "Orin", "mode": "MAXN"}
    denoiser = {"name": "unet", "role": "denoiser", "compute": "float16", "bytes": 1, "precision": None, "cost": {}}
    return {
        "schema": "qcheck-verify/1",
        "bundle": "0" * 64,
        "asked": asked | changed.pop("asked", {}),
        "probes": 8,
        "runner": {"name": "tensorrt", "deployed": True} | changed.pop("runner", {}),
        "board": {"model": "Orin", "release": "R36.4.3", "power_mode": "MAXN"} | changed.pop("board", {}),
        "verdict": changed.pop("verdict", "PASS"),
        "reasons": ["fine"],
        "measurements": changed.pop(
            "measurements", [measured(name) for name in ("effect_survival", "stratum_survival")]
        ),
        "explained": {},
        "components": [denoiser | {"build": build | changed.pop("build", {})}],
        "not_measured": {"endpoint_error": "no solver as data"},
        "warnings": [],
        "forecast": {"call_ms": None, "engine_bytes": None, "builder_bytes": 1, "memory_bytes": 1},
        "versions": {},
        "seconds": 1.0,
    }


def sound(place: Path, passing: dict[str, Any], lost: dict[str, Any]) -> Path:
    """The folder of a case that passes and of one that does not."""
    second = lost | {"scheme": "int8-all", "artifact": []}
    spec = SPEC.changed(schemes=tuple(reports.spec(passing, second).schemes))
    return folder(place, report(passing, second, spec=spec))


def resealed(place: Path, change: Change) -> Path:
    """Edit report.json, and write what it says everywhere, as someone would who knows how."""
    path = place / "report.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    edited = Report.model_validate_json(json.dumps(content))
    rewritten(place, edited)
    seal.write(edited, place)
    return place


def printed(*words: str) -> tuple[int, str]:
    """The exit code and the text of ``qcheck audit``."""
    done = CliRunner().invoke(app, ["audit", *words], catch_exceptions=False, env={"COLUMNS": "200"})
    return done.exit_code, done.output
