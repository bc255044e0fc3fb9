"""Build an artifact with TensorRT, in a child process: a crash of the builder becomes an error message.

Two packages share one interface. ``tensorrt_rtx`` compiles ahead of time for compute capabilities that need not be in
this machine; without a GPU the engine is not run, and a build proves that the graph parses, that its types are allowed
there, and that it compiles. ``tensorrt`` builds for the GPU in this machine only. It and the functions that need a
device here (``_inspect``, ``_driver_capability``) were never run. Networks are strongly typed.
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

from qcheck.core import files
from qcheck.core.errors import install

RTX, FULL = "tensorrt_rtx", "tensorrt"
Shapes = Mapping[str, tuple[list[int], list[int], list[int]]]
_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu")


@dataclass(frozen=True)
class Builder:
    """A package that builds engines, and the compute capability ("8.6") that it builds for."""

    module: str
    capability: str


@dataclass(frozen=True)
class Problem:
    """One error of the parser or builder: its text, and the ONNX node and torch module that it names, if any."""

    text: str
    node: str = ""
    module: str = ""


@dataclass(frozen=True)
class Built:
    """The outcome of a build. ``inspected`` is the file of the engine inspector, which needs a device; memory in MB."""

    builder: str
    status: Literal["built", "refused", "crashed", "not run"]
    problems: tuple[Problem, ...]
    engine: Path | None
    inspected: Path | None
    seconds: float
    peak_memory_mb: float


def choose(capability: str, proxy: str | None) -> Builder | str:
    """The builder here for a device of ``capability``, or the reason why there is none.

    It is TensorRT where it and a device of that capability are here, else TensorRT-RTX for the ``proxy``.
    """
    if importlib.util.find_spec(FULL) is not None and _device() and local_capability() == capability:
        return Builder(FULL, capability)
    if proxy is None:
        return f"no compute capability that TensorRT-RTX compiles for has the number formats of SM {capability}"
    if importlib.util.find_spec(RTX) is None:
        return f"tensorrt-rtx is not installed; {install('rtx')}"
    return Builder(RTX, proxy)


def _device() -> bool:
    return any(Path(path).exists() for path in _DEVICES)


def local_capability() -> str:
    """The compute capability of the GPU in this machine, from a child process; empty where the driver fails."""
    child = subprocess.run([sys.executable, "-m", __name__, _CAPABILITY], capture_output=True, text=True, check=False)
    return child.stdout.strip() if child.returncode == 0 else ""


_CAPABILITY = "capability"


def build(builder: Builder, model: Path, shapes: Shapes, engine: Path, timing_cache: Path | None = None) -> Built:
    """Compile ``model`` into ``engine``.

    ``shapes`` are the min, optimal and max shape of every input that varies. ``timing_cache`` is read if it exists, and
    written.
    """
    request = {
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
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        engine.unlink(missing_ok=True)
        return Built(builder.module, "crashed", (Problem(_crash_text(child)),), None, None, seconds, 0.0)
    answer = json.loads(lines[-1])
    problems = tuple(Problem(**problem) for problem in answer["problems"])
    layers_path = _layers_path(engine)
    return Built(
        builder=answer["builder"],
        status=answer["status"],
        problems=problems,
        engine=engine if answer["status"] == "built" else None,
        inspected=layers_path if layers_path.exists() else None,
        seconds=seconds,
        peak_memory_mb=answer["peak_memory_mb"],
    )


def _crash_text(child: subprocess.CompletedProcess[str]) -> str:
    how = f"by signal {-child.returncode}" if child.returncode < 0 else f"with code {child.returncode}"
    tail = " ".join(child.stderr.split())[-400:]
    return f"the builder's process ended {how}{f': {tail}' if tail else ''}"


def _layers_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.layers.json")


def _compile(request: dict[str, Any]) -> tuple[str, bytes | None, list[Problem]]:
    """The builder's name, the serialized plan, and the problems where there is none.

    Raises:
        UnableError: this builder cannot compile for that capability, whatever the file.
    """
    trt = importlib.import_module(request["module"])
    errors: list[str] = []

    class Collect(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)

    name = f"{'TensorRT-RTX' if request['module'] == RTX else 'TensorRT'} {trt.__version__}"
    logger = Collect()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["model"]):
        problems = _parser_problems(parser, Path(request["model"]))
        return name, None, problems or [Problem(text) for text in errors]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_capability(trt, config, request)
    profile = builder.create_optimization_profile()
    for tensor, (low, best, high) in request["shapes"].items():
        profile.set_shape(tensor, low, best, high)
    config.add_optimization_profile(profile)
    cache_path = Path(request["timing_cache"]) if request["timing_cache"] else None
    if cache_path is not None:
        cache = config.create_timing_cache(cache_path.read_bytes() if cache_path.exists() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return name, None, [Problem(text, *_node_and_module(text, Path(request["model"]))) for text in errors]
    if cache_path is not None:
        files.write(cache_path, bytes(config.get_timing_cache().serialize()))
    serialized = bytes(plan)
    _inspect(trt, logger, serialized, _layers_path(Path(request["engine"])))
    return name, serialized, []


class UnableError(Exception):
    """The builder does not know the compute capability; the file is not at fault."""


def _set_capability(trt: Any, config: Any, request: dict[str, Any]) -> None:
    """Set the compute capability of TensorRT-RTX; TensorRT builds for the GPU in this machine."""
    if request["module"] == FULL:
        return
    sm = f"SM{request['capability'].replace('.', '')}"
    if not hasattr(trt.ComputeCapability, sm):
        raise UnableError(f"TensorRT-RTX {trt.__version__} cannot compile for {sm}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, sm), 0)


def _driver_capability() -> str:
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
    """Write the engine inspector's JSON to ``path``, where a device is there to load the engine."""
    if not _device():
        return
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is not None:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        path.write_text(text, "utf-8")


def _parser_problems(parser: Any, model: Path) -> list[Problem]:
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = error.node_name()
        text = f"{error.node_operator()} {node}: {error.desc()}"
        problems.append(Problem(text, *(_node_and_module(node, model) if node else ("", ""))))
    return problems


_SCOPES = "pkg.torch.onnx.name_scopes"


def _node_and_module(text: str, model: Path) -> tuple[str, str]:
    """The longest node name of ``model`` that occurs in ``text``, and the torch module of that node."""
    import onnx  # imported only after an error

    nodes = onnx.load(model, load_external_data=False).graph.node
    node = max((node for node in nodes if node.name and node.name in text), key=lambda n: len(n.name), default=None)
    if node is None:
        return "", ""
    scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return node.name, parts[-2] if len(parts) > 1 else node.name.partition("/")[0]


def _peak_memory_mb() -> float:
    """The peak memory of this process; ``ru_maxrss`` would include its parent's memory at the fork."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next((line for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024


def _child() -> None:
    request = json.load(sys.stdin)
    try:
        name, plan, problems = _compile(request)
        status = "refused" if plan is None else "built"
    except UnableError as error:
        name, plan, problems, status = request["module"], None, [Problem(str(error))], "not run"
    if plan is not None:
        Path(request["engine"]).write_bytes(plan)
    answer = {
        "builder": name,
        "status": status,
        "problems": [vars(problem) for problem in problems],
        "peak_memory_mb": _peak_memory_mb(),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == [_CAPABILITY]:
        sys.stdout.write(_driver_capability())
    else:
        _child()
