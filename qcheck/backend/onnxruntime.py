"""The artifact, run by ONNX Runtime on the CPU."""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from qcheck.backend.base import INPUTS

COMPUTES = ("float32", "float16")  # compute types for which its CPU provider has a whole denoiser's operators
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session with the exact Q/DQ arithmetic (no integer fusions)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxRunner:
    """One ONNX file. Threads share the rows of a batch; only a batch of fewer rows shares its operators.

    Rows do not depend on each other, so parts of a batch on one thread each finish sooner than operators on all.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self._threads = path, threads
        self._pool = ThreadPoolExecutor(threads)
        self._session = functools.cache(lambda count: session(path, count))
        self.name = f"ONNX Runtime {onnxruntime.__version__} on {path.name}"

    def __call__(self, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
        """As ``Runner``; a float16 artifact is fed and read in float16."""
        if len(sample) < self._threads:
            return self._run(self._threads, timestep, sample, hidden)
        self._session(1)  # before the parts ask for it at the same time
        parts = (np.array_split(values, self._threads) for values in (sample, hidden))
        found = self._pool.map(functools.partial(self._run, 1, timestep), *parts)
        return np.concatenate(list(found))

    def _run(self, threads: int, timestep: float, sample: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        running = self._session(threads)
        dtype = _FLOATS[running.get_inputs()[0].type]
        values = (sample.astype(dtype), np.array([timestep], np.float32), hidden.astype(dtype))
        output = running.run(None, dict(zip(INPUTS, values, strict=True)))[0]
        return np.asarray(output, np.float32)
