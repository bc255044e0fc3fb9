"""Reports made in memory, so that renderings and comparisons need no check."""

from pathlib import Path
from typing import Any

from qcheck.api.request import check_spec
from qcheck.result.report import Report
from qcheck.spec.check import CheckSpec

PLACE = Path("qcheck-out/flat")
SPEC = check_spec("demo", "flat", scheme="int8")
PASSING: dict[str, dict[str, Any]] = {
    "effect_survival": {"unit": "ratio", "value": 0.99, "low": 0.98, "high": 1.0, "limit": {"low": 0.9, "high": 1.1}},
    "stratum_survival": {
        "unit": "ratio",
        "value": 0.95,
        "low": 0.92,
        "high": 0.97,
        "limit": {"low": 0.6},
        "where": "timestep 49",
    },
    "endpoint_error": {"unit": "ratio", "value": 0.15, "low": 0.13, "high": 0.17, "limit": {"high": 0.5}},
    "psnr": {"unit": "dB", "value": 34.0, "low": 30.0, "high": 39.0},
}


def measurement(name: str, **changed: Any) -> dict[str, Any]:
    """One judged measurement of the adapted arm, passing unless changed."""
    made = {"name": name, "arm": "adapted", "p": 0.9 if "limit" in PASSING[name] else None} | PASSING[name]
    made["status"] = "pass" if made.get("limit") else "reported"
    return made | changed


def case(scheme: str = "int8", order: str = "merge-quantize", **changed: Any) -> dict[str, Any]:
    """One case that passes unless changed."""
    file = {"path": "x.onnx", "arm": "adapted", "compute": "float16", "digest": "0" * 16, "bytes": 5_400_000}
    build = {"builder": "B", "capability": "8.6", "proxy": True, "status": "not run", "detail": "not asked for"}
    return {
        "scheme": scheme,
        "order": order,
        "verdict": "PASS",
        "deciding": {"name": "endpoint_error", "arm": "adapted"},
        "reasons": ["every gated measurement is inside its limit"],
        "next": "Ship it.",
        "warnings": [],
        "probes_used": 8,
        "measurements": [measurement(name) for name in PASSING],
        "stratum_sqnr": {},
        "steps": {},
        "quantized_layers": 198,
        "kept_layers": ["conv_in"],
        "artifact": [file],
        "compute": "float16",
        "ran_as": "artifact",
        "control": False,
        "full_precision_bytes": 9_800_000,
        "estimate": None,
        "builds": [build],
        "seconds": 2.5,
    } | changed


def spec(*cases: dict[str, Any]) -> CheckSpec:
    """A request of those cases' schemes, each by its own name."""
    (scheme,) = SPEC.schemes
    names = dict.fromkeys(case["scheme"] for case in cases)
    return SPEC.changed(schemes=tuple(scheme.model_copy(update={"name": name}) for name in names))


def report(*cases: dict[str, Any], **changed: Any) -> Report:
    """A report of those cases, or of one that passes."""
    source, shown = {"digest": "1" * 16}, list(cases) or [case()]
    made = {
        "schema": "qcheck-report/2",
        "spec": spec(*shown),
        "base": {"source": "pipeline", **source},
        "adapters": [{"source": "flat.safetensors", "weight": 1.0, "arms": "adapted", **source}],
        "changed_layers": 4,
        "unmatched": [],
        "idle": [],
        "target": "jetson-agx-orin-64gb",
        "probes": {
            "name": "emoji",
            "digest": "2" * 16,
            "prompts": ["red apple"],
            "steps": 20,
            "guidance": 3.0,
            "seed": 1,
            "timesteps": [999.0],
        },
        "effect_size": 0.2,
        "limits_grounds": "start values",
        "cases": shown,
        "not_measured": [{"name": "latency", "reason": "needs the device"}],
        "provenance": {
            "qcheck": "0.1.0",
            "commit": None,
            "created": "2026-11-24T08:00:00+00:00",
            "versions": {},
            "machine": "m",
            "device": "cpu",
            "device_memory": None,
            "reference_error": None,
            "recipe": "emoji",
            "recipe_digest": "3" * 16,
            "limits": "default",
            "limits_digest": "4" * 16,
            "seconds": {"reference": 1.5},
        },
    }
    return Report.model_validate(made | changed)
