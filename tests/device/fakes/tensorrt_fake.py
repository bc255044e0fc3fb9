"""The package ``tensorrt`` of one release, as far as its bindings are used here; engines are run by ONNX Runtime.

``board.tensorrt`` copies it into a folder with face.json, which tells the release. What a release lacks is absent.
Device memory is real memory: engines read and write at the addresses that they are given, as the real ones do.
"""

import ctypes
import enum
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import graph

_HERE = Path(__file__).parent
_FACE = json.loads((_HERE / "face.json").read_text("utf-8"))
__version__ = _FACE["version"]
_RELEASE = tuple(int(part) for part in __version__.split(".")[:2])
_CACHE = b"timings of "


def _faults() -> dict[str, Any]:
    return graph.read_faults(_HERE)


def _since(first: tuple[int, int], last: tuple[int, int] = (99, 0)) -> bool:
    return first <= _RELEASE <= last


_types = ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8"]
_types += ["BF16", "INT64", "INT4"] if _since((10, 0)) else []
_types += ["FP4", "E8M0"] if _since((10, 8)) else []
DataType = enum.IntEnum("DataType", _types, start=0)
TensorIOMode = enum.IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"], start=0)
MemoryPoolType = enum.IntEnum("MemoryPoolType", ["WORKSPACE", "TACTIC_DRAM"], start=0)
ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"], start=0)
LayerInformationFormat = enum.IntEnum("LayerInformationFormat", ["ONELINE", "JSON"], start=0)
_flags = {"EXPLICIT_BATCH": 0} if not _since((11, 0)) else {}  # without effect from 10.0, gone from 11.0
_flags |= {"STRONGLY_TYPED": 1} if _since((10, 0)) else {}
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", _flags)


def nptype(kind: DataType) -> type:
    """As the real one: it knows no bfloat16 and nothing smaller than a byte."""
    known = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "BOOL": np.bool_}
    if kind.name not in known:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return known[kind.name]


class ILogger:
    """The logger's base class, whose __init__ must be called, as pybind11 demands."""

    Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


def _checked(logger: ILogger) -> ILogger:
    if not getattr(logger, "ready", False):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    logger.log(ILogger.Severity.INFO, "information, of which there is much")
    return logger


class _Input:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags, self.path = flags, ""
        self._inputs: list[_Input] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> _Input:
        return self._inputs[index]

    def fill(self, path: str) -> None:
        self.path = path
        self._inputs = [_Input(name, shape) for side, name, _, shape in graph.bindings(path) if side == "INPUT"]


class _ParserError:
    def __init__(self, node: str, operator: str, words: str) -> None:
        self._node, self._operator, self._words = node, operator, words

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator

    def desc(self) -> str:
        return self._words


class OnnxParser:
    """It reads files by their path only: from bytes it would not find their weights."""

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network, self._logger = network, _checked(logger)
        self._errors: list[_ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        refused = _faults().get("refuse")
        if refused:
            self._errors.append(_ParserError(refused, "Conv", "Unsupported weight type INT4"))
        elif not Path(path).exists():
            self._logger.log(ILogger.Severity.ERROR, f"Could not open file {path}")
        else:
            self._network.fill(path)
            return True
        return False


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[int]] = {}

    def set_shape(self, name: str, low: list[int], best: list[int], high: list[int]) -> None:
        if not low == best == high:
            raise ValueError("this fake has fixed shapes")
        self.shapes[name] = best


class _Config:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.profiling_verbosity, self.builder_optimization_level = ProfilingVerbosity.LAYER_NAMES_ONLY, 3
        self.pools: dict[str, int] = {}
        self.shapes: dict[str, list[int]] = {}
        self._cache: _TimingCache | None = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.shapes = profile.shapes
        return 0

    def create_timing_cache(self, content: bytes) -> _TimingCache:
        return _TimingCache(content)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        if cache.content and cache.content != _CACHE + __version__.encode() and not ignore_mismatch:
            self._logger.log(ILogger.Severity.ERROR, "Timing cache mismatch")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> _TimingCache | None:
        if self._cache is not None:
            self._cache.content = _CACHE + __version__.encode()
        return self._cache


class Builder:
    """It notes what it was asked in seen.json, beside this file, before it builds, dies or gives up."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = _checked(logger)

    def create_network(self, flags: int = 0) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config(self._logger)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        level, faults = config.builder_optimization_level, _faults()
        self._note(network, config)
        if level >= faults.get("kill_from", 9):
            os.kill(os.getpid(), signal.SIGKILL)
        if level >= faults.get("crash_from", 9):
            print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(3)
        if level >= faults.get("no_plan_from", 9):
            self._logger.log(ILogger.Severity.ERROR, "Error Code 10: Could not find any implementation for node conv")
            return None
        time.sleep(faults.get("build_seconds", 0))
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        if any(-1 in one.shape and one.name not in config.shapes for one in inputs):
            self._logger.log(ILogger.Severity.ERROR, "Network has dynamic inputs, but no optimization profile")
            return None
        detailed = config.profiling_verbosity == ProfilingVerbosity.DETAILED
        plan = {"onnx": network.path, "version": __version__, "detailed": detailed, "shapes": config.shapes}
        return json.dumps(plan).encode("utf-8")

    def _note(self, network: _Network, config: _Config) -> None:
        path = _HERE / "seen.json"
        noted = json.loads(path.read_text("utf-8")) if path.exists() else []
        seen = {
            "flags": network.flags,
            "level": config.builder_optimization_level,
            "pools": config.pools,
            "shapes": config.shapes,
            "oom_score_adj": Path("/proc/self/oom_score_adj").read_text("ascii").strip(),
            "isolated": sys.flags.isolated,
        }
        path.write_text(json.dumps([*noted, seen]), "utf-8")


class Runtime:
    """It loads the engines of its own release only."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = _checked(logger)

    def deserialize_cuda_engine(self, content: Any) -> Any:
        try:
            plan = json.loads(bytes(content))
        except ValueError:
            plan = {"version": None}
        if plan["version"] != __version__:
            self._logger.log(ILogger.Severity.ERROR, f"Version tag does not match: current {__version__}")
            return None
        return ICudaEngine(self._logger, plan)


class _Inspector:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def get_engine_information(self, layout: LayerInformationFormat) -> str:
        if layout != LayerInformationFormat.JSON:
            raise ValueError("this fake writes JSON")
        return graph.inspector(self._plan["onnx"], _RELEASE[0], self._plan["detailed"], _faults())


class ICudaEngine:
    """An engine; the size of its device memory has the names of its release."""

    def __init__(self, logger: ILogger, plan: dict[str, Any]) -> None:
        self._logger, self.plan = logger, plan
        self._bindings = {name: (side, kind, shape) for side, name, kind, shape in graph.bindings(plan["onnx"])}
        retyped = _faults().get("types", {})
        for name, kind in retyped.items():
            side, _, shape = self._bindings[name]
            self._bindings[name] = side, kind, shape

    @property
    def num_io_tensors(self) -> int:
        return len(self._bindings)

    def get_tensor_name(self, index: int) -> str:
        return list(self._bindings)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self._bindings[name][0]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._bindings[name][1]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._bindings[name][2]

    def create_execution_context(self) -> Any:
        return IExecutionContext(self._logger, self) if not _faults().get("no_context") else None

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self.plan)


def _old_size(_: ICudaEngine) -> int:
    if _since((10, 1)):
        warnings.warn("Deprecated in TensorRT 10.1", DeprecationWarning, stacklevel=2)
    return 1 << 10


if not _since((11, 0)):
    ICudaEngine.device_memory_size = property(_old_size)
if _since((10, 1)):
    ICudaEngine.device_memory_size_v2 = property(lambda _: 1 << 20)


class IExecutionContext:
    """It reads inputs and writes outputs at their addresses, in a thread of its own where it is asked to be late."""

    def __init__(self, logger: ILogger, engine: ICudaEngine) -> None:
        self._logger, self._engine = logger, engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = self._engine.plan["shapes"].get(name, self._engine.get_tensor_shape(name))
        if tuple(fixed) != tuple(shape):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return graph.resolved(self._engine.plan["onnx"], self._shapes)[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = int(address)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        faults = _faults()
        if not stream_handle or faults.get("fails"):
            self._logger.log(ILogger.Severity.ERROR, "Error Code 1: Cuda Runtime (an illegal memory access)")
            return False
        if faults.get("silent"):
            return True
        if not faults.get("late"):
            self._run(faults)
            return True
        library = ctypes.CDLL(_FACE["cudart"])
        library.fake_begin()
        threading.Thread(target=self._later, args=(faults, library.fake_end)).start()
        return True

    def _later(self, faults: dict[str, Any], end: Callable[[], Any]) -> None:
        time.sleep(0.05)
        try:
            self._run(faults)
        finally:
            end()

    def _run(self, faults: dict[str, Any]) -> None:
        plan, inputs = self._engine.plan, {}
        for side, name, kind, _ in graph.bindings(plan["onnx"]):
            if side == "INPUT":
                inputs[name] = self._memory(name, kind).copy()
        for name, values in graph.run(plan["onnx"], inputs).items():
            memory = self._memory(name, self._engine.get_tensor_dtype(name).name)
            memory[...] = np.nan if faults.get("nan") else values

    def _memory(self, name: str, kind: str) -> np.ndarray:
        shape, dtype = self.get_tensor_shape(name), np.dtype(graph.NUMPY[kind])
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        content = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(content, dtype).reshape(shape)
