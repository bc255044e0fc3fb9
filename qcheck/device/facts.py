"""What bundle.json has to hold: the types of all that is read of it, and sizes that belong together."""

from __future__ import annotations

import math
from typing import Any, Mapping, Sequence

from .tensors import TYPES

# A shape is a type, several types, a list of one shape, or an object with these keys; "*" stands for every key.
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_TENSOR = {"name": str, "dtype": str, "shape": [int]}
_LAYER = {"name": str, "node": str, "dequantizer": (str, type(None)), "weight": str, "activation": (str, type(None))}
_COMPONENT = {
    "name": str,
    "role": str,
    "file": str,
    "compute": str,
    "float32": [str],
    "inputs": [_TENSOR],
    "outputs": [_TENSOR],
    "layers": [_LAYER],
}
_ASKED = {
    **dict.fromkeys(("base", "adapter", "scheme", "order", "target", "verdict", "host_machine"), str),
    **dict.fromkeys(("base_digest", "file_digest", "limits_digest"), str),
    "adapter_digests": [str],
    "weights": [_NUMBER],
    "guidance": _NUMBER,
    "steps": int,
}
_GATE = {"name": str, "arm": str, "unit": str, "low": _MAYBE, "high": _MAYBE, "below": str, "above": str}
_SHAPE = {
    "qcheck": str,
    "asked": _ASKED,
    "components": [_COMPONENT],
    "component_samples": int,
    "denoiser": {
        "latent": str,
        "time": str,
        "varying": [str],
        "own_in_base": [str],
        "adapter": [str],
        "shape": [int],
    },
    "guidance": _NUMBER,
    "tile": int,
    "calibrated": bool,
    "probes": [dict],
    "strata": [_NUMBER],
    "no_solver": str,
    "limits": {"alpha": _NUMBER, "tail": [_NUMBER], "bad_share": _NUMBER, "gates": [_GATE]},
    "host_only": {"*": str},
    "forecast": {"call_ms": _MAYBE, "engine_bytes": _MAYBE, "builder_bytes": int, "memory_bytes": int},
}
_SOLVER = {"timesteps": [_NUMBER], "scales": [_NUMBER], "start": [_NUMBER], "outputs": [[_NUMBER]]}
_GATES = {"encoder": "embedding_cosine", "decoder": "picture_error"}  # of the components of a role
_MOST = 2**40  # bytes of a tensor


def require(facts: Mapping[str, Any]) -> None:
    """Refuse facts that the verifier cannot read.

    Raises:
        ValueError: a key is missing, a value has another type, or sizes contradict each other.
    """
    _require_shape(facts, _SHAPE, "")
    if facts["solver"] is not None:
        _require_shape(facts["solver"], _SOLVER, "solver")
        _require_solver(facts["solver"])
    for component in facts["components"]:
        for tensor in (*component["inputs"], *component["outputs"]):
            _require_tensor(tensor)
    if not facts["probes"] or not facts["strata"] or len(facts["limits"]["tail"]) != 2:
        raise ValueError("it has no probe, no timestep, or no two limits of the tail")
    gated = {gate["name"] for gate in facts["limits"]["gates"] if gate["arm"] == "adapted"}
    for component in facts["components"]:
        if component["role"] in _GATES and _GATES[component["role"]] not in gated:
            raise ValueError(f"it has no limit for {component['name']}")
    _require_denoiser(facts["components"], facts["denoiser"])


def _require_shape(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, list):
        _require_type(value, list, where)
        for place, item in enumerate(value):
            _require_shape(item, shape[0], f"{where}[{place}]")
    elif isinstance(shape, dict):
        _require_type(value, dict, where)
        for key in value if "*" in shape else shape:
            if key not in value:
                raise ValueError(f"{where} has no {key!r}")
            _require_shape(value[key], shape.get("*", shape.get(key)), f"{where}.{key}".lstrip("."))
    else:
        _require_type(value, shape, where)


def _require_type(value: Any, kind: Any, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where} is a {type(value).__name__}, and {kinds} is expected")


def _require_tensor(tensor: Mapping[str, Any]) -> None:
    if tensor["dtype"] not in TYPES:
        raise ValueError(f"{tensor['name']} is of the type {tensor['dtype']!r}, and known are {', '.join(TYPES)}")
    if min(tensor["shape"], default=1) < 1 or 8 * math.prod(tensor["shape"]) > _MOST:
        raise ValueError(f"{tensor['name']} has the shape {tensor['shape']}")


def _require_solver(solver: Mapping[str, Any]) -> None:
    calls = len(solver["timesteps"])
    rows = [len(row) for row in solver["outputs"]]
    if not calls or {len(solver["scales"]), len(solver["start"]), len(rows), *rows} != {calls}:
        raise ValueError(f"solver has {calls} timesteps, and other numbers of scales, starts or outputs")


def _require_denoiser(components: Sequence[Mapping[str, Any]], described: Mapping[str, Any]) -> None:
    """The latents that go in and the output have rows of the denoiser's shape."""
    count = math.prod(described["shape"])
    for component in (one for one in components if one["role"] in ("denoiser", "base")):
        latents = [one for one in component["inputs"] if one["name"] == described["latent"]]
        for tensor in (*latents, *component["outputs"]):
            if not tensor["shape"] or math.prod(tensor["shape"][1:]) != count or tensor["shape"][0] > 2:
                raise ValueError(f"{tensor['name']} has the shape {tensor['shape']}, and a row {described['shape']}")
        if len(latents) != 1 or len(component["outputs"]) != 1:
            raise ValueError(f"{component['name']} has {len(latents)} inputs of latents, or not one output")
