"""Build an artifact with TensorRT-RTX, ahead of time, for a compute capability that need not be in this machine.

The builder runs in a child process: when it crashes, that is an error message here. Without a GPU the engine is not
run; what a build proves is that the graph parses, that its types are allowed there, and that it compiles.
"""

import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULE = "tensorrt_rtx"
Shapes = Mapping[str, tuple[list[int], list[int], list[int]]]


@dataclass(frozen=True)
class Built:
    """What the builder said. ``detail`` is its own error text when ``engine`` is None."""

    builder: str
    engine: Path | None
    detail: str
    seconds: float
    peak_memory_mb: float


def available() -> str | None:
    """Why no build can be run here, or None."""
    if importlib.util.find_spec(MODULE) is None:
        return "tensorrt-rtx is not installed: pip install 'qcheck-edge[rtx]'"
    return None


def build(model: Path, capability: str, shapes: Shapes, engine: Path) -> Built:
    """Compile ``model`` for ``capability`` ("8.6") into ``engine``; shapes are min, optimal, max for each input."""
    order = {"model": str(model), "capability": capability, "shapes": dict(shapes), "engine": str(engine)}
    start = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-m", "qcheck.backend.tensorrt"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        tail = " ".join(child.stderr.split())[-400:]
        return Built(MODULE, None, f"the builder ended with code {child.returncode}: {tail}", seconds, 0.0)
    said = json.loads(lines[-1])
    return Built(said["builder"], engine if said["built"] else None, said["detail"], seconds, said["peak_memory_mb"])


def _compile(order: dict[str, Any]) -> tuple[str, bytes | None, str]:
    trt = importlib.import_module(MODULE)
    errors: list[str] = []

    class Collect(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)

    name = f"TensorRT-RTX {trt.__version__}"
    logger = Collect()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order["model"]):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        said = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found]
        return name, None, "; ".join(said or errors)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    sm = f"SM{order['capability'].replace('.', '')}"
    if not hasattr(trt.ComputeCapability, sm):
        return name, None, f"{name} cannot compile for {sm}"
    config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0)
    profile = builder.create_optimization_profile()
    for tensor, (low, best, high) in order["shapes"].items():
        profile.set_shape(tensor, low, best, high)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return name, None if plan is None else bytes(plan), "; ".join(errors)


def _child() -> None:
    order = json.load(sys.stdin)
    name, plan, detail = _compile(order)
    if plan is not None:
        Path(order["engine"]).write_bytes(plan)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer = {"builder": name, "built": plan is not None, "detail": detail, "peak_memory_mb": peak}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _child()
