"""TensorRT through its program trtexec, for boards whose Python has no bindings.

Its traps, as read in its source (8.6 to 11.1): a file of inputs of exactly twice the size is read by half without a
word; ``--exportOutput`` has six digits and is no JSON where a value is NaN; from 11.0 on raw outputs are those of no
run unless transfers are asked for; ``latencyMs`` holds copies and waiting.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from .built import Built, Job, Tried, build, last_words, run
from .bundle import Component
from .errors import CannotVerify
from .tensorrt_engine import WARM_SECONDS, differing, fitting
from .tensors import TYPES, Tensor

PLACE = Path("/usr/src/tensorrt/bin/trtexec")  # where JetPack installs it, outside PATH
_BANNER = re.compile(r"\[TensorRT v([0-9]{4,6})\]")
_REFUSED = "Failed to parse onnx file"
_STATIC = "Static model does not take explicit shapes"
_ESTIMATE_RUNS = 3
_TYPES = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
}


@dataclass(frozen=True)
class Program:
    """The program and the release of TensorRT that it belongs to, such as "10.3.0"."""

    path: Path
    version: str

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.split(".")[0])


def find() -> Program:
    """The trtexec of this board: $TRTEXEC, that in PATH, or JetPack's.

    Raises:
        CannotVerify: there is none, it does not run, or its TensorRT is older than strong typing.
    """
    named = os.environ.get("TRTEXEC") or shutil.which("trtexec") or str(PLACE)
    if not os.access(named, os.X_OK):
        raise CannotVerify(
            f"no trtexec: neither $TRTEXEC nor PATH has it, and {PLACE} does not exist"
            if named == str(PLACE)
            else f"$TRTEXEC names {named}, which cannot be run",
            "Install it: sudo apt install libnvinfer-bin, or set TRTEXEC to its path.",
        )
    ended = run([named, "--help"], limit=60.0)
    version = release(ended.text)
    if version is None:
        raise CannotVerify(
            f"{named} does not say its version: {last_words(ended.text)}", "Set TRTEXEC to TensorRT's own trtexec."
        )
    program = Program(Path(named), version)
    if program.major < 10:
        raise CannotVerify(
            f"TensorRT {program.version} has no strong typing, which keeps the types of the bundle's files",
            "Update the board to JetPack 6 or later (TensorRT 10.3).",
        )
    return program


def release(text: str) -> str | None:
    """The version in trtexec's banner, where 100300 is 10.3.0 and 8601 is 8.6.1; None where there is none."""
    banner = _BANNER.search(text)
    if banner is None:
        return None
    code = int(banner[1])
    major = code // 10000 if code >= 100000 else code // 1000
    rest = code % 10000 if code >= 100000 else code % 1000
    return f"{major}.{rest // 100}.{rest % 100}"


def build_by_trtexec(job: Job, program: Program) -> Built:
    """Build an engine with trtexec.

    Raises:
        CannotVerify: TensorRT refuses the file, or every optimization level failed.
    """
    return build(job, program.version, lambda level: _attempt(job, level, program))


def _attempt(job: Job, level: int, program: Program) -> Tried:
    command = [
        str(program.path),
        f"--onnx={job.onnx}",
        f"--saveEngine={job.partial}",
        f"--memPoolSize=workspace:{job.workspace / (1 << 20):g}M",
        f"--builderOptimizationLevel={level}",
        f"--timingCacheFile={job.timing_cache}",
        "--profilingVerbosity=detailed",
        "--skipInference",
        *(["--stronglyTyped"] if program.major < 11 else []),
    ]
    start = time.monotonic()
    ended = run([*command, _shapes(job.inputs)], job.limit)
    if _STATIC in ended.text:
        ended = run(command, job.limit)
    return Tried(
        failure=ended.failure or ("" if job.partial.exists() else "wrote no engine"),
        refused=_REFUSED in ended.text,
        seconds=time.monotonic() - start,
        peak_bytes=ended.peak_bytes,
    )


def _shapes(tensors: Sequence[Tensor]) -> str:
    return "--shapes=" + ",".join(f"{tensor.name}:{'x'.join(map(str, tensor.shape))}" for tensor in tensors)


class Trtexec:
    """A built engine that trtexec loads anew for every call."""

    deployed = True
    device_memory: int | None = None  # trtexec tells it in words for people only

    def __init__(self, path: Path, component: Component, program: Program, limit: float = 600.0) -> None:
        self.name = f"TensorRT {program.version}"
        self._path, self._component, self._program, self._limit = path, component, program, limit

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name in the types of their bindings (``tensors.TYPES``), for inputs in theirs.

        Raises:
            CannotVerify: inputs do not fit, the engine's bindings are not the component's, or trtexec fails.
        """
        with tempfile.TemporaryDirectory(prefix="qcheck-") as name:
            folder = Path(name)
            transfers = ["--includeDataTransfers"] if self._program.major >= 11 else []
            self._run(folder, inputs, 1, 0.0, ["--dumpRawBindingsToFile", *transfers])
            found = {path.name for path in folder.glob("*.raw")}
            expected = {raw_name("input", tensor) for tensor in self._component.inputs}
            expected |= {raw_name("output", tensor) for tensor in self._component.outputs}
            if found != expected:
                raise differing(self._component, found, expected)
            return {
                tensor.name: np.fromfile(folder / raw_name("output", tensor), TYPES[tensor.dtype]).reshape(tensor.shape)
                for tensor in self._component.outputs
            }

    def time(
        self, inputs: Mapping[str, np.ndarray], warmups: int = 10, runs: int = 100, seconds: float = 30.0
    ) -> list[float]:
        """Milliseconds of each run on the device, without copies, after at most 5 s of warm-ups.

        trtexec takes a time to warm up and a least number of runs: both are reckoned from the fastest of three runs.
        """
        plain = ["--noCudaGraph"] if self._program.major >= 11 else []  # as the bindings run it, and 10.x does
        estimate = max(1e-3, min(self._times(inputs, _ESTIMATE_RUNS, 0.0, plain)))
        warm = min(warmups * estimate, WARM_SECONDS * 1000)
        count = max(1, min(runs, int(seconds * 1000 / estimate)))
        return self._times(inputs, count, warm, plain)[:count]

    def _times(self, inputs: Mapping[str, np.ndarray], runs: int, warm: float, options: Sequence[str]) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="qcheck-") as name:
            self._run(Path(name), inputs, runs, warm, ["--exportTimes=times.json", "--avgRuns=1", *options])
            return milliseconds((Path(name) / "times.json").read_text("utf-8"))

    def _run(
        self, folder: Path, inputs: Mapping[str, np.ndarray], runs: int, warm: float, options: Sequence[str]
    ) -> None:
        """Run the engine in a folder at least so often, after ``warm`` milliseconds."""
        files = {tensor.name: f"{index}.bin" for index, tensor in enumerate(self._component.inputs)}
        for tensor in self._component.inputs:
            fitting(inputs, tensor).tofile(folder / files[tensor.name])
        fed = ",".join(f"{name}:{file}" for name, file in files.items())
        self._checked(
            folder,
            f"--loadInputs={fed}",
            _shapes(self._component.inputs),
            f"--iterations={runs}",
            f"--warmUp={warm:.0f}",
            "--duration=0",
            *options,
        )

    def _checked(self, folder: Path, *options: str) -> None:
        ended = run([str(self._program.path), f"--loadEngine={self._path.resolve()}", *options], self._limit, folder)
        if ended.failure:
            again = f"{self._program.path} --loadEngine={self._path}"
            raise CannotVerify(f"trtexec {ended.failure}", f"Run it by hand to see more: {again}")

    def inspect(self) -> str:
        """The engine inspector's JSON."""
        with tempfile.TemporaryDirectory(prefix="qcheck-") as name:
            self._checked(Path(name), "--skipInference", "--exportLayerInfo=layers.json")
            return (Path(name) / "layers.json").read_text("utf-8")

    def close(self) -> None:
        """Nothing is held between calls."""

    def __enter__(self) -> Trtexec:
        """The engine; nothing is held between calls."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def milliseconds(text: str) -> list[float]:
    """The milliseconds of each run, from the JSON of ``--exportTimes``.

    Raises:
        CannotVerify: it says none.
    """
    try:
        times = [float(row["computeMs"]) for row in json.loads(text)]
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        raise CannotVerify(f"trtexec wrote no times that can be read: {error}", "Update TensorRT.") from error
    if not times or not all(math.isfinite(time) for time in times):
        raise CannotVerify("trtexec wrote times of no run, or such that are no numbers", "Update TensorRT.")
    return times


def raw_name(side: str, tensor: Tensor) -> str:
    """The file that ``--dumpRawBindingsToFile`` writes for a binding: its type and shape are in the name."""
    shape = ".".join(map(str, tensor.shape))
    name = f"{tensor.name}.{side}.{shape}.{_TYPES[tensor.dtype]}.raw"
    return re.sub(rb"[^A-Za-z0-9._,-]", b"_", name.encode("utf-8")).decode("ascii")
