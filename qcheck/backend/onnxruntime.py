"""The artifact, run by ONNX Runtime on the CPU."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from qcheck.backend.base import INPUTS
from qcheck.errors import UserError

COMPUTES = ("float32", "float16")  # compute types for which its CPU provider has a whole denoiser's operators
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
_RANKS = {4: "sample", 3: "encoder_hidden_states", 1: "timestep", 0: "timestep"}


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session with the exact Q/DQ arithmetic (no integer fusions)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Feed:
    """How one input of a file is fed: its role in ``INPUTS``, its type, and its axes: the first, and the other sides.

    An axis that is not fixed is None; ``rows`` is None for a scalar too.
    """

    name: str
    role: str
    dtype: np.dtype[Any]
    rank: int
    rows: int | None
    sides: tuple[int | None, ...]

    def value(self, found: np.ndarray) -> np.ndarray:
        """``found`` in this input's type; a timestep as a scalar where that is asked, or as often as asked."""
        cast = found.astype(self.dtype)
        if self.role != "timestep":
            return cast
        return cast.reshape(()) if self.rank == 0 else np.repeat(cast, self.rows or 1)


def feeds(running: onnxruntime.InferenceSession, path: Path) -> list[Feed]:
    """The inputs of a denoiser by role: by name, else latents are of rank 4, embeddings 3, the timestep 0 or 1.

    Raises:
        UserError: they cannot be told apart, are of other types, or something else is asked for.
    """
    found = []
    for given in running.get_inputs():
        rank = len(given.shape)
        role = given.name if given.name in INPUTS else _RANKS.get(rank, "")
        dtype = _TYPES.get(given.type)
        if not role or dtype is None:
            raise UserError(
                f"{path}: input {given.name!r} {given.type} {given.shape} is none of {', '.join(INPUTS)}",
                "Give the denoiser's file of a text-to-image pipeline with one text encoder.",
            )
        axes = [axis if isinstance(axis, int) else None for axis in given.shape]
        found.append(Feed(given.name, role, np.dtype(dtype), rank, axes[0] if axes else None, tuple(axes[1:])))
    if sorted(feed.role for feed in found) != sorted(INPUTS):
        raise UserError(
            f"{path}: its inputs {', '.join(feed.name for feed in found)} are not {', '.join(INPUTS)}",
            "Give the denoiser's file of a text-to-image pipeline with one text encoder.",
        )
    return found


class OnnxRunner:
    """One ONNX file. Threads share the rows of a batch; only a batch of fewer rows shares its operators.

    Rows do not depend on each other, so parts of a batch on one thread each finish sooner than operators on all.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self._threads = path, threads
        self._pool = ThreadPoolExecutor(threads)
        self._session = functools.cache(lambda count: session(path, count))
        self._feeds = functools.cache(lambda: feeds(self._session(threads), path))
        self.name = f"ONNX Runtime {onnxruntime.__version__} on {path.name}"

    def __call__(self, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
        """As ``Runner``; a float16 artifact is fed and read in float16."""
        fixed = max(feed.rows or 0 for feed in self._feeds() if feed.role != "timestep")
        if fixed:
            return self._in_rows_of(fixed, sample, timestep, hidden)
        if len(sample) < self._threads:
            return self._run(self._threads, timestep, sample, hidden)
        self._session(1)  # before the parts ask for it at the same time
        parts = (np.array_split(values, self._threads) for values in (sample, hidden))
        found = self._pool.map(functools.partial(self._run, 1, timestep), *parts)
        return np.concatenate(list(found))

    def _in_rows_of(self, rows: int, sample: np.ndarray, timestep: float, hidden: np.ndarray) -> np.ndarray:
        """Parts of ``rows`` for a file whose batch is fixed; the last is filled up with its own last row."""
        found = []
        for start in range(0, len(sample), rows):
            index = np.minimum(np.arange(start, start + rows), len(sample) - 1)
            found.append(self._run(self._threads, timestep, sample[index], hidden[index]))
        return np.concatenate(found)[: len(sample)]

    def _run(self, threads: int, timestep: float, sample: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        values = {"sample": sample, "timestep": np.array([timestep]), "encoder_hidden_states": hidden}
        given = {feed.name: feed.value(values[feed.role]) for feed in self._feeds()}
        return np.asarray(self._session(threads).run(None, given)[0], np.float32)
