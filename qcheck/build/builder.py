"""Build an artifact with TensorRT, in a child process: when the builder crashes, that is an error message here.

Two packages share one interface. ``tensorrt_rtx`` compiles ahead of time for compute capabilities that need not be in
this machine; without a GPU the engine is not run, and what a build proves is that the graph parses, that its types are
allowed there, and that it compiles. ``tensorrt`` builds for the GPU in this machine and nothing else; it and everything
that needs a device here (``_inspect``, ``_ask_driver``) was never run. Networks are strongly typed.
"""

import ctypes
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

RTX, FULL = "tensorrt_rtx", "tensorrt"
Shapes = Mapping[str, tuple[list[int], list[int], list[int]]]
_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu")


@dataclass(frozen=True)
class Builder:
    """A package that builds, and the compute capability ("8.6") it is asked for."""

    module: str
    capability: str


@dataclass(frozen=True)
class Problem:
    """One error of parser or builder: its own words, and the ONNX node and torch module they are about, if any."""

    text: str
    node: str = ""
    module: str = ""


@dataclass(frozen=True)
class Built:
    """What came of a build. ``inspected`` is the inspector's JSON where a device is there to ask; memory is in MB."""

    builder: str
    status: Literal["built", "refused", "crashed", "not run"]
    problems: tuple[Problem, ...]
    engine: Path | None
    inspected: Path | None
    seconds: float
    peak_memory_mb: float


def choose(capability: str, proxy: str | None) -> Builder | str:
    """What builds here for a device of ``capability``, or why nothing does.

    TensorRT itself where it and a device of that capability are here, else TensorRT-RTX for the ``proxy``.
    """
    if importlib.util.find_spec(FULL) is not None and _device() and local_capability() == capability:
        return Builder(FULL, capability)
    if proxy is None:
        return f"no compute capability that TensorRT-RTX compiles for has the number formats of SM {capability}"
    if importlib.util.find_spec(RTX) is None:
        return "tensorrt-rtx is not installed: pip install 'qcheck-edge[rtx]'"
    return Builder(RTX, proxy)


def _device() -> bool:
    return any(Path(path).exists() for path in _DEVICES)


def local_capability() -> str:
    """The compute capability of the GPU in this machine, asked in a child process; empty where the driver fails."""
    child = subprocess.run([sys.executable, "-m", __name__, _ASK], capture_output=True, text=True, check=False)
    return child.stdout.strip() if child.returncode == 0 else ""


_ASK = "capability"


def build(builder: Builder, model: Path, shapes: Shapes, engine: Path, timing_cache: Path | None = None) -> Built:
    """Compile ``model`` into ``engine``; ``shapes`` are min, optimal, max of each input, of every input that varies.

    ``timing_cache`` is read if it exists and written.
    """
    order = {
        "module": builder.module,
        "capability": builder.capability,
        "model": str(model),
        "shapes": dict(shapes),
        "engine": str(engine),
        "timing_cache": str(timing_cache) if timing_cache else None,
    }
    start = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-m", "qcheck.build.builder"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        engine.unlink(missing_ok=True)
        return Built(builder.module, "crashed", (Problem(_death(child)),), None, None, seconds, 0.0)
    said = json.loads(lines[-1])
    found = tuple(Problem(**problem) for problem in said["problems"])
    inspected = _inspected(engine)
    return Built(
        builder=said["builder"],
        status=said["status"],
        problems=found,
        engine=engine if said["status"] == "built" else None,
        inspected=inspected if inspected.exists() else None,
        seconds=seconds,
        peak_memory_mb=said["peak_memory_mb"],
    )


def _death(child: subprocess.CompletedProcess[str]) -> str:
    how = f"by signal {-child.returncode}" if child.returncode < 0 else f"with code {child.returncode}"
    tail = " ".join(child.stderr.split())[-400:]
    return f"the builder's process ended {how}{f': {tail}' if tail else ''}"


def _inspected(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.layers.json")


def _compile(order: dict[str, Any]) -> tuple[str, bytes | None, list[Problem]]:
    """The builder's name, the plan, and why there is none.

    Raises:
        UnableError: this builder cannot aim at that capability, whatever the file.
    """
    trt = importlib.import_module(order["module"])
    errors: list[str] = []

    class Collect(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)

    name = f"{'TensorRT-RTX' if order['module'] == RTX else 'TensorRT'} {trt.__version__}"
    logger = Collect()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order["model"]):
        found = _parser_problems(parser, Path(order["model"]))
        return name, None, found or [Problem(text) for text in errors]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _aim(trt, config, order)
    profile = builder.create_optimization_profile()
    for tensor, (low, best, high) in order["shapes"].items():
        profile.set_shape(tensor, low, best, high)
    config.add_optimization_profile(profile)
    kept = Path(order["timing_cache"]) if order["timing_cache"] else None
    if kept is not None:
        cache = config.create_timing_cache(kept.read_bytes() if kept.exists() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return name, None, [Problem(text, *_named(text, Path(order["model"]))) for text in errors]
    if kept is not None:
        kept.write_bytes(bytes(config.get_timing_cache().serialize()))
    serialized = bytes(plan)
    _inspect(trt, logger, serialized, _inspected(Path(order["engine"])))
    return name, serialized, []


class UnableError(Exception):
    """Not the file's fault: the builder does not know the compute capability."""


def _aim(trt: Any, config: Any, order: dict[str, Any]) -> None:
    """Point TensorRT-RTX at the compute capability; TensorRT builds for the GPU that is here."""
    if order["module"] == FULL:
        return
    sm = f"SM{order['capability'].replace('.', '')}"
    if not hasattr(trt.ComputeCapability, sm):
        raise UnableError(f"TensorRT-RTX {trt.__version__} cannot compile for {sm}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0)


def _ask_driver() -> str:
    """The compute capability of the first GPU, from the CUDA driver (cuDeviceGetAttribute, attributes 75 and 76)."""
    driver = ctypes.CDLL("libcuda.so.1")
    if driver.cuInit(0) != 0:
        raise OSError("cuInit failed")
    values = []
    for attribute in (75, 76):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
        values.append(value.value)
    return f"{values[0]}.{values[1]}"


def _inspect(trt: Any, logger: Any, plan: bytes, path: Path) -> None:
    """Ask the engine inspector, where a device lets the engine be loaded."""
    if not _device():
        return
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is not None:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        path.write_text(text, "utf-8")


def _parser_problems(parser: Any, model: Path) -> list[Problem]:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = error.node_name()
        text = f"{error.node_operator()} {node}: {error.desc()}"
        found.append(Problem(text, *(_named(node, model) if node else ("", ""))))
    return found


_SCOPES = "pkg.torch.onnx.name_scopes"


def _named(text: str, model: Path) -> tuple[str, str]:
    """The longest node name of ``model`` in ``text``, and the torch module that the node came from."""
    import onnx  # only where something went wrong

    nodes = onnx.load(model, load_external_data=False).graph.node
    node = max((node for node in nodes if node.name and node.name in text), key=lambda n: len(n.name), default=None)
    if node is None:
        return "", ""
    scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return node.name, parts[-2] if len(parts) > 1 else node.name.partition("/")[0]


def _peak_memory_mb() -> float:
    """This process's own high-water mark; ``ru_maxrss`` would count what its parent held at the fork."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next((line for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024


def _child() -> None:
    order = json.load(sys.stdin)
    try:
        name, plan, problems = _compile(order)
        status = "refused" if plan is None else "built"
    except UnableError as error:
        name, plan, problems, status = order["module"], None, [Problem(str(error))], "not run"
    if plan is not None:
        Path(order["engine"]).write_bytes(plan)
    answer = {
        "builder": name,
        "status": status,
        "problems": [vars(problem) for problem in problems],
        "peak_memory_mb": _peak_memory_mb(),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == [_ASK]:
        sys.stdout.write(_ask_driver())
    else:
        _child()
