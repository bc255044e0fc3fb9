"""bundle.json: what was exported, what is asked of the board, how it is judged, and what the host found."""

import datetime
import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcheck import __version__
from qcheck.build import profile
from qcheck.core.digest import digest_of, digest_of_value
from qcheck.device import bundle as layout
from qcheck.result.manifest import model_files
from qcheck.sampling import solvers
from qcheck.spec import measurement
from qcheck.spec.arm import Arm
from qcheck.spec.limits import Gate
from qcheck.tasks.bundled_case import TIME, BundledCase

_ON_BOARD: tuple[tuple[str, Arm], ...] = (
    ("effect_survival", "adapted"),
    ("stratum_survival", "adapted"),
    ("endpoint_error", "adapted"),
    ("endpoint_error", "base"),
)


def facts(case: BundledCase, components: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """The content of bundle.json, for a bundle whose files are in ``folder``."""
    setup, solver = case.setup, case.solver
    roles = frozenset(str(one["role"]) for one in components)
    return {
        "schema": layout.SCHEMA,
        "qcheck": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "asked": _asked(case, folder / components[0]["file"]),
        "components": list(components),
        "component_samples": case.sample_count,
        "denoiser": {
            "latent": case.family.latent,
            "time": TIME,
            "varying": sorted(case.varying),
            "own_in_base": sorted(case.own_in_base),
            "adapter": sorted(case.adapter),
            "shape": list(case.row),
        },
        "guidance": setup.guidance,
        "tile": case.family.tile,
        "calibrated": bool(case.session.spec.references),
        "probes": [{"prompt": probe.prompt, "seed": probe.seed} for probe in case.probes],
        "strata": list(setup.timesteps()),
        "solver": None if isinstance(solver, str) else _solver(case, solver),
        "no_solver": solver if isinstance(solver, str) else "",
        "limits": _limits(case, roles),
        "host_only": _host_only(case),
        "expected": [
            one.model_dump(mode="json")
            for one in case.verdict.measurements
            if (one.name, one.arm) in _ON_BOARD and one.value is not None and np.isfinite(one.value)
        ],
        "forecast": _forecast(case, folder / components[0]["file"]),
    }


def _asked(case: BundledCase, denoiser: Path) -> dict[str, Any]:
    session, spec = case.session, case.session.spec
    return {
        "base": Path(spec.base).name,
        "adapter": " + ".join(Path(adapter.source).name for adapter in spec.adapters),
        "scheme": case.quantization.scheme.name,
        "order": case.quantization.order,
        "target": spec.target.name,
        "guidance": spec.probes.guidance,
        "steps": spec.probes.steps,
        "verdict": case.verdict.outcome,
        "host_machine": f"{platform.machine()} with {session.arms.device.title}",
        "base_digest": session.arms.base.digest,
        "adapter_digests": [adapter.digest for adapter in session.shipped.adapters],
        "file_digest": digest_of(*model_files(denoiser)),
        "weights": [adapter.weight for adapter in session.shipped.adapters],
        "limits_digest": digest_of_value(spec.limits),
    }


def _solver(case: BundledCase, linear: solvers.Linear) -> dict[str, Any]:
    return {
        "timesteps": case.times(),
        "scales": linear.scales.tolist(),
        "start": linear.start.tolist(),
        "outputs": linear.outputs.tolist(),
    }


_NO_GATE = {"arm": "adapted", "unit": "", "low": None, "high": None, "below": "", "above": ""}


def _limits(case: BundledCase, roles: Collection[str]) -> dict[str, Any]:
    """The limits of what a board measures of components of these roles."""
    limits = case.limits
    asked = [key for key in _ON_BOARD if key != ("endpoint_error", "base") or "base" in roles]
    if isinstance(case.solver, str):
        asked = [key for key in asked if key[0] != "endpoint_error"]
    others = (
        ("encoder", "embedding_cosine", "low", limits.embedding_cosine, "its embeddings are not those of float32"),
        ("decoder", "picture_error", "high", limits.picture_error, "its pictures are not those of float32"),
    )
    deciding = [gate for gate in limits.gates if gate.role in ("absolute", "adapter")]
    gates = [_gate(gate) for gate in deciding if (gate.name, gate.arm) in asked]
    gates += [
        _NO_GATE | {"name": name, side: limit, "below" if side == "low" else "above": words}
        for role, name, side, limit, words in others
        if role in roles
    ]
    return {"alpha": limits.alpha, "tail": list(limits.tail), "bad_share": limits.bad_share, "gates": gates}


def _gate(gate: Gate) -> dict[str, Any]:
    unit = measurement.find(gate.name).of(gate.arm).unit
    return {"unit": unit, **gate.model_dump(include={"name", "arm", "low", "high", "below", "above"})}


def _host_only(case: BundledCase) -> dict[str, str]:
    """Gates of the quantized arms that a board does not measure, with the reason."""
    on_board = {name for name, _ in _ON_BOARD}
    gates = [gate.name for gate in case.limits.gates if gate.role in ("absolute", "adapter")]
    return {name: "of pictures of free runs, which the host measured" for name in gates if name not in on_board}


def _forecast(case: BundledCase, denoiser: Path) -> dict[str, Any]:
    """What the host can say of the board: once measured there, it stands beside."""
    session, quantization = case.session, case.quantization
    size = sum(path.stat().st_size for path in model_files(denoiser))
    scheme, layers = quantization.scheme, quantization.artifact.manifest.layers
    estimate = profile.estimated(session.needs, session.spec.target, size, layers, scheme.compute)
    engines = [build.bytes for build in quantization.builds if build.status == "built"]
    return {
        "call_ms": estimate.call_ms,
        "engine_bytes": engines[0] if engines else None,
        "builder_bytes": 4 * size,
        "memory_bytes": int(1e6 * (estimate.denoiser_mb + estimate.activations_mb)),
    }
