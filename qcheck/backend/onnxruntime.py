"""The artifact, run by ONNX Runtime on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime

from qcheck.backend.base import INPUTS

COMPUTES = ("float32", "float16")  # compute types for which its CPU provider has a whole denoiser's operators
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRunner:
    """One ONNX file in one session, with the exact Q/DQ arithmetic (no integer fusions)."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._dtype = _FLOATS[self._session.get_inputs()[0].type]
        self.name = f"ONNX Runtime {onnxruntime.__version__} on {path.name}"

    def __call__(self, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
        """As ``Runner``; a float16 artifact is fed and read in float16."""
        values = (sample.astype(self._dtype), np.array([timestep], np.float32), hidden.astype(self._dtype))
        output = self._session.run(None, dict(zip(INPUTS, values, strict=True)))[0]
        return np.asarray(output, np.float32)
