"""TensorRT's own bindings for Python: building an engine in a child process, and running it.

One code for TensorRT 10.0 to 11.x: what exists in some of them only is looked up by name when it is needed.
"""

from __future__ import annotations

import importlib
import json
import mmap
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from .built import Built, Job, Tried, build, peak_bytes, run
from .bundle import Component
from .cudart import Cuda
from .errors import CannotVerify
from .replay import whole
from .tensors import TYPES, Tensor

OPTION = "--build"
WARM_SECONDS = 5.0  # the most that is spent on warm-ups
_OLDEST = 10
_SYSTEM_PYTHON = "/usr/bin/python3"
# TensorRT's names of types; ``nptype`` knows no bfloat16
_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


def bindings() -> Any:
    """The package ``tensorrt``.

    Raises:
        CannotVerify: it is absent, cannot be loaded, or is older than strong typing.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise CannotVerify(f"this Python has no TensorRT: {error}", _remedy(str(error))) from error
    if int(trt.__version__.split(".")[0]) < _OLDEST:
        raise CannotVerify(
            f"TensorRT {trt.__version__} has no strong typing, which keeps the types of the bundle's files",
            "Update the board to JetPack 6 or later (TensorRT 10.3).",
        )
    return trt


def _remedy(problem: str) -> str:
    if "libnvdla_compiler" in problem:
        return "Start the container with --runtime nvidia: it mounts this library of the board's."
    if Path(sys.executable).parent != Path(_SYSTEM_PYTHON).parent:
        return f"Run with {_SYSTEM_PYTHON}, to which JetPack's TensorRT belongs: this is {sys.executable}."
    return "Install it: sudo apt install python3-libnvinfer."


def origin(trt: Any) -> dict[str, Any]:
    """The version and file of the bindings, and the other copies in this Python's path, which are not used."""
    used = Path(trt.__file__)
    copies = [Path(folder) / "tensorrt" / "__init__.py" for folder in sys.path if folder]
    return {
        "version": str(trt.__version__),
        "file": str(used),
        "unused": [str(copy) for copy in copies if copy.exists() and not copy.samefile(used)],
    }


def _logger(trt: Any, errors: list[str]) -> Any:
    """A logger that keeps errors and says nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                errors.append(message)

    return Logger()


def build_in_child(job: Job, program: Sequence[str]) -> Built:
    """Build an engine in a child of this Python: what kills the builder does not kill the verifier.

    ``program`` are the words after ``python3`` that run this package; with ``--build FILE`` it must call ``answer``.

    Raises:
        CannotVerify: there are no bindings, TensorRT refuses the file, or every optimization level failed.
    """
    isolation = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *isolation, *program, OPTION]
    return build(job, str(bindings().__version__), lambda level: _attempt(job, level, command))


def _attempt(job: Job, level: int, command: Sequence[str]) -> Tried:
    with tempfile.TemporaryDirectory(prefix="qcheck-") as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        request.write_text(json.dumps(_request(job, level, result)), "utf-8")
        ended = run([*command, str(request)], job.limit)
        answered = json.loads(result.read_text("utf-8")) if result.exists() else {}
    if ended.failure or not answered:
        return Tried(failure=ended.failure or "ended without an answer")
    failure = "; ".join(answered["errors"]) or "wrote no engine and gave no reason"
    return Tried(
        failure="" if answered["built"] else failure if answered["refused"] else f"wrote no engine: {failure}",
        refused=answered["refused"],
        seconds=answered["seconds"],
        peak_bytes=answered["peak_bytes"],
    )


def _request(job: Job, level: int, result: Path) -> dict[str, Any]:
    return {
        "onnx": str(job.onnx),
        "shapes": {tensor.name: list(tensor.shape) for tensor in job.inputs},
        "engine": str(job.partial),
        "timing_cache": str(job.timing_cache),
        "workspace": job.workspace,
        "level": level,
        "result": str(result),
    }


def answer(path: Path) -> None:
    """What the child does: read the request, build, and write the result where the request says."""
    request = json.loads(path.read_text("utf-8"))
    Path(request["result"]).write_text(json.dumps(build_here(request)), "utf-8")


def build_here(request: Mapping[str, Any]) -> dict[str, Any]:
    """Build an engine in this process; whether it was ``built``, or ``refused`` by the parser, and the ``errors``.

    Raises:
        CannotVerify: there are no bindings.
    """
    trt, start = bindings(), time.monotonic()
    errors: list[str] = []
    logger = _logger(trt, errors)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(request["onnx"])  # by its path, beside which its weights lie
    if parsed:
        config = _config(trt, builder, network, request)
        plan = builder.build_serialized_network(network, config)
    else:
        plan, errors = None, _parser_errors(parser) or errors
    if plan is not None:
        with Path(request["engine"]).open("wb") as stream:
            stream.write(plan)
        _keep_timings(config, Path(request["timing_cache"]))
    return {
        "built": plan is not None,
        "refused": not parsed,
        "errors": errors,
        "seconds": time.monotonic() - start,
        "peak_bytes": peak_bytes(),
        "level": request["level"],
        "workspace": request["workspace"],
        "engine_bytes": Path(request["engine"]).stat().st_size if plan is not None else None,
        "tensorrt": str(trt.__version__),
    }


def _parser_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"{error.node_operator()} {error.node_name()}: {error.desc()}".lstrip(" :") for error in errors]


def _config(trt: Any, builder: Any, network: Any, request: Mapping[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = request["level"]
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if any(-1 in tuple(tensor.shape) for tensor in inputs):
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            shape = request["shapes"][tensor.name]
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    _use_timings(config, Path(request["timing_cache"]))
    return config


def _use_timings(config: Any, path: Path) -> None:
    """Give the builder the kept timings; it refuses those of another device or release, and starts anew."""
    for content in (path.read_bytes() if path.exists() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _keep_timings(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        whole(path, lambda partial: _write(partial, cache.serialize()))


def _write(path: Path, content: Any) -> None:
    with path.open("wb") as stream:
        stream.write(content)


class Engine:
    """A built engine on the first GPU, with buffers for one component's bindings."""

    deployed = True

    def __init__(self, path: Path, component: Component, trt: Any, cuda: Cuda) -> None:
        self.name = f"TensorRT {trt.__version__}"
        self._component, self._trt, self._cuda = component, trt, cuda
        self._errors: list[str] = []
        self._logger = _logger(trt, self._errors)
        self._buffers: dict[str, int] = {}
        self._events: list[int] = []
        self._stream = cuda.stream()
        try:
            self._load(path)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path) -> None:
        self._runtime = self._trt.Runtime(self._logger)
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._failed(f"cannot load {path.name}", f"Remove {path.parent} and verify again.")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed(f"has no memory to run {path.name}", "Close other programs on the board.")
        self._match()
        for tensor in (*self._component.inputs, *self._component.outputs):
            self._buffers[tensor.name] = self._cuda.malloc(max(1, tensor.bytes))
            self._context.set_tensor_address(tensor.name, self._buffers[tensor.name])
        self._events = [self._cuda.event(), self._cuda.event()]

    def _failed(self, what: str, fix: str) -> CannotVerify:
        words = "; ".join(self._errors[-3:])
        return CannotVerify(f"{self.name} {what}" + (f": {words}" if words else ""), fix)

    def _match(self) -> None:
        """Compare the engine's bindings with the component's, after its inputs were given their shapes.

        Raises:
            CannotVerify: names, types or shapes differ.
        """
        found = self._bindings()
        for tensor in self._component.inputs:
            if tensor.name in found:
                self._context.set_input_shape(tensor.name, tensor.shape)
        actual = {_told(*found[name], tuple(self._context.get_tensor_shape(name))) for name in found}
        sides = (("input", self._component.inputs), ("output", self._component.outputs))
        expected = {_told(side, t.dtype, t.name, t.shape) for side, tensors in sides for t in tensors}
        if actual != expected:
            raise differing(self._component, actual, expected)

    def _bindings(self) -> dict[str, tuple[str, str, str]]:
        """Side, type and name of the engine's tensors by their names."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return {name: (*self._kind(name), name) for name in names}

    def _kind(self, name: str) -> tuple[str, str]:
        dtype = self._engine.get_tensor_dtype(name).name
        return self._engine.get_tensor_mode(name).name.lower(), _TYPES.get(dtype, dtype.lower())

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name in the types of their bindings (``tensors.TYPES``), for inputs in theirs.

        Outputs that the engine does not write come back as NaN (all bits set), never as those of an earlier call.

        Raises:
            CannotVerify: inputs do not fit, or the engine cannot be run.
        """
        outputs = {tensor.name: _unwritten(tensor) for tensor in self._component.outputs}
        for name, values in outputs.items():
            self._cuda.to_device(self._buffers[name], values)
        self._feed(inputs)
        self._enqueue()
        self._cuda.synchronize(self._stream)
        for name, values in outputs.items():
            self._cuda.to_host(values, self._buffers[name])
        return outputs

    def _feed(self, inputs: Mapping[str, np.ndarray]) -> None:
        for tensor in self._component.inputs:
            self._cuda.to_device(self._buffers[tensor.name], fitting(inputs, tensor))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise self._failed(f"cannot run {self._component.name}", "Verify again; restart the board if it stays so.")

    def time(
        self, inputs: Mapping[str, np.ndarray], warmups: int = 10, runs: int = 100, seconds: float = 30.0
    ) -> list[float]:
        """Milliseconds of each run on the device, without copies, after at most 5 s of warm-ups."""
        self._feed(inputs)
        self._repeated(warmups, WARM_SECONDS)
        return self._repeated(runs, seconds)

    def _repeated(self, runs: int, seconds: float) -> list[float]:
        """Milliseconds of ``runs`` runs, or of as many as start within ``seconds``: one at least."""
        deadline, (start, end) = time.monotonic() + seconds, self._events
        times: list[float] = []
        while len(times) < runs and (not times or time.monotonic() < deadline):
            self._cuda.record(start, self._stream)
            self._enqueue()
            self._cuda.record(end, self._stream)
            self._cuda.wait(end)
            times.append(self._cuda.elapsed(start, end))
        return times

    @property
    def device_memory(self) -> int | None:
        """Bytes of the engine's activations and scratch memory; None where this TensorRT does not say."""
        for name in ("device_memory_size_v2", "device_memory_size"):
            size = getattr(self._engine, name, None)
            if size is not None:
                return int(size)
        return None

    def inspect(self) -> str:
        """The engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the engine and its memory; a device that failed says so again at each call, which is not told."""
        self._context = self._engine = self._runtime = None
        with suppress(CannotVerify):
            for address in self._buffers.values():
                self._cuda.free(address)
            for event in self._events:
                self._cuda.destroy_event(event)
            if self._stream:
                self._cuda.destroy_stream(self._stream)
        self._buffers, self._events, self._stream = {}, [], 0

    def __enter__(self) -> Engine:
        """The engine; it is closed with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fitting(inputs: Mapping[str, np.ndarray], tensor: Tensor) -> np.ndarray:
    """A binding's values, contiguous.

    Raises:
        CannotVerify: they are missing, or have another type or shape.
    """
    values = inputs.get(tensor.name)
    if values is None or values.dtype != TYPES[tensor.dtype] or values.shape != tensor.shape:
        given = "nothing" if values is None else f"{values.dtype}{list(values.shape)} of {values.nbytes} bytes"
        raise CannotVerify(
            f"the input {tensor.name} is {tensor.dtype}{list(tensor.shape)} of {tensor.bytes} bytes, not {given}",
            "Export the bundle again.",
        )
    return np.ascontiguousarray(values)


def differing(component: Component, found: set[str], expected: set[str]) -> CannotVerify:
    """The error for an engine whose bindings are not those of its component."""
    only = [", ".join(sorted(bindings)) or "no other" for bindings in (found - expected, expected - found)]
    return CannotVerify(
        f"the engine of {component.name} has the bindings {only[0]}, and the bundle has {only[1]}",
        "Export the bundle again.",
    )


def _unwritten(tensor: Tensor) -> np.ndarray:
    """An array of set bits, which are NaN in every floating type."""
    bits: np.ndarray = np.full(tensor.bytes, 0xFF, np.uint8)
    return bits.view(TYPES[tensor.dtype]).reshape(tensor.shape)


def _told(side: str, dtype: str, name: str, shape: tuple[int, ...]) -> str:
    return f"{side} {name} {dtype}{list(shape)}"
