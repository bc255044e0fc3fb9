"""One tool in a process of its own: its time in bare forwards of the same process, and its peak memory.

It needs numpy, onnx and onnxruntime only, so that it runs in the environments of qcheck and of its peers.
"""

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Row = dict[str, np.ndarray]
Rows = list[Row]
Run = Callable[[Row], np.ndarray]
_REPEATS = 5


@dataclass(frozen=True)
class Layer:
    """A layer in the ONNX file: its node, and the tensors of its weight, input and output."""

    node: str
    weight: str
    input: str
    output: str


@dataclass(frozen=True)
class Work:
    """The model and the samples that every tool is given; ``points`` are samples of one row, for diagnosis by layer."""

    folder: Path

    @property
    def model(self) -> Path:
        """The float32 file."""
        return self.folder / "model.onnx"

    @cached_property
    def calibration(self) -> Rows:
        """The samples that ranges are read from."""
        return read(self.folder / "calibration.npz")

    @cached_property
    def judged(self) -> Rows:
        """The samples that signal to noise is measured on."""
        return read(self.folder / "judged.npz")

    @cached_property
    def points(self) -> Rows:
        """The samples that layers are ranked on."""
        return read(self.folder / "points.npz")

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Layers by their name in torch."""
        return {name: Layer(**one) for name, one in json.loads((self.folder / "layers.json").read_text()).items()}


@dataclass(frozen=True)
class Finding:
    """What a tool gave: the quantized model, or numbers by layer, the larger the worse, by what they are numbers of."""

    run: Run | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


Timed = Callable[[], Finding]
Tool = Callable[[Work], Timed]


def write(path: Path, rows: Rows) -> None:
    """Keep samples as numpy's npz."""
    named: dict[str, Any] = {f"{place}/{name}": v for place, row in enumerate(rows) for name, v in row.items()}
    np.savez(path, **named)


def read(path: Path) -> Rows:
    """The samples that ``write`` kept."""
    rows: dict[int, Row] = {}
    with np.load(path) as stored:
        for key in stored:
            place, name = key.split("/")
            rows.setdefault(int(place), {})[name] = stored[key]
    return list(rows.values())


_begin = onnxruntime.InferenceSession.__init__


def _in_one_thread(self: Any, path_or_bytes: Any, sess_options: Any = None, *rest: Any, **options: Any) -> None:
    """Begin a session of one thread, whoever makes it: calibrators read no setting of the environment."""
    chosen = sess_options or onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    _begin(self, path_or_bytes, chosen, *rest, **options)


onnxruntime.InferenceSession.__init__ = _in_one_thread


def onnx_run(model: Path | bytes) -> Run:
    """The model in ONNX Runtime, with Q/DQ computed as the file says and not fused to integer operators."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda row: np.asarray(session.run(None, row)[0])


def measure(tool: Tool, work: Work, rows: Rows, torch_run: Run | None = None) -> dict[str, Any]:
    """Seconds of a tool's timed part, its peak memory with its set-up, and bare forwards of ``rows`` around it."""
    before = _forwards(work, rows, torch_run)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed does not serve the tool unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident memory begins anew
    held = _status("VmRSS")
    timed = tool(work)
    start = time.perf_counter()
    finding = timed()
    seconds, peak = time.perf_counter() - start, _status("VmHWM")
    after = _forwards(work, rows, torch_run)
    forward = {engine: statistics.median(before[engine] + after[engine]) for engine in before}
    measured = {
        "seconds": seconds,
        "forward": forward,
        "samples": len(rows),
        "peak_mb": peak - held,
        "scores": {name: dict(scores) for name, scores in finding.scores.items()},
        "facts": dict(finding.facts),
    }
    return (
        measured if finding.run is None else measured | {"sqnr": sqnr(finding.run, onnx_run(work.model), work.judged)}
    )


def _forwards(work: Work, rows: Rows, torch_run: Run | None) -> dict[str, list[float]]:
    """Seconds of bare forwards, by engine."""
    runs = {"onnx": onnx_run(work.model)} | ({"torch": torch_run} if torch_run else {})
    return {
        engine: [_seconds(run, rows[n % len(rows)]) for n in range(_REPEATS + 1)][1:] for engine, run in runs.items()
    }


def _seconds(run: Run, row: Row) -> float:
    start = time.perf_counter()
    run(row)
    return time.perf_counter() - start


def _status(name: str) -> float:
    """A line of this process's status, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3


def sqnr(run: Run, reference: Run, rows: Rows) -> float:
    """Decibels of the reference's energy over the error's, all samples together."""
    signal = noise = 0.0
    for row in rows:
        want = reference(row).astype(np.float64)
        signal += float(np.square(want).sum())
        noise += float(np.square(run(row) - want).sum())
    return 10 * float(np.log10(signal / noise))


def arguments(description: str | None) -> tuple[str, Work]:
    """The tool and the work that the command line of a process names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("tool")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    return asked.tool, Work(asked.folder)


def keep(work: Work, name: str, measured: Mapping[str, Any]) -> None:
    """Leave what was measured where the parent reads it."""
    (work.folder / f"{name}.json").write_text(json.dumps(measured))
