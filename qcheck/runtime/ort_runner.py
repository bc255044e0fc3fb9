"""A runner of ONNX files by ONNX Runtime, on the processor or on a CUDA device."""

import functools
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from qcheck.core.errors import UserError
from qcheck.model.device import CPU, Device
from qcheck.runtime.rows import Rows

COMPUTES = ("float32", "float16")  # compute types for which the CPU provider has all operators of a denoiser
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


_ROWS = 1024  # of a fixed batch: what the probes do not fill is computed for nothing
_CUDA = "CUDAExecutionProvider"
# TF32 products are on by default, and the search for a convolution's algorithm differs from run to run. With cuDNN's
# default algorithm and no more workspace than it needs, calls of equal shapes give equal outputs.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT", "arena_extend_strategy": "kSameAsRequested"}


def runs_on(device: Device) -> bool:
    """Whether the installed ONNX Runtime has kernels for the device."""
    return device.is_host or _CUDA in onnxruntime.get_available_providers()


def session(path: Path, threads: int, device: Device = CPU) -> onnxruntime.InferenceSession:
    """A session with the exact Q/DQ arithmetic (no integer fusions).

    Raises:
        UserError: ONNX Runtime cannot load its CUDA provider, and would run on the processor.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what it refuses is one error, told by its exception
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if not device.is_host:
        onnxruntime.set_default_logger_severity(3)  # it warns of every convolution's algorithm, in a logger of its own
        providers.insert(0, (_CUDA, _CUDA_OPTIONS | {"device_id": str(device.torch.index)}))
    loaded = onnxruntime.InferenceSession(path, options, providers=providers)
    if not device.is_host and _CUDA not in loaded.get_providers():
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load its CUDA provider, and would run on the processor",
            "Install the CUDA and cuDNN libraries that it was built for, or plain onnxruntime: artifacts are simulated "
            "then. Or give --device cpu.",
        )
    return loaded


@dataclass(frozen=True)
class Feed:
    """One input of a file: its name, its ``role``, which is the name of the pipeline's input for it, its type and axes.

    ``rows`` is the first axis, ``sides`` are the others. An axis that is not fixed is None; ``rows`` is None for a
    scalar too. ``batched`` says that the first axis is that of the latents.
    """

    name: str
    role: str
    dtype: np.dtype[Any]
    rank: int
    rows: int | None
    sides: tuple[int | None, ...]
    batched: bool

    def value(self, array: np.ndarray, count: int) -> np.ndarray:
        """``array`` in this input's type; one number for each row becomes a scalar, or is repeated to the rows."""
        cast = array.astype(self.dtype)
        if cast.ndim > 1:
            return cast
        return (
            cast[:1].reshape(()) if self.rank == 0 else np.repeat(cast[:1], self.rows or (count if self.batched else 1))
        )

    def fits(self, array: np.ndarray) -> bool:
        """Whether the array's shape fits this input; one number for each row also fits a scalar."""
        if array.ndim == 1:
            return self.rank <= 1
        sides = zip(self.sides, array.shape[1:], strict=False)
        return self.rank == array.ndim and all(fixed in {None, side} for fixed, side in sides)


def feeds(
    onnx_session: onnxruntime.InferenceSession,
    path: Path,
    inputs: Mapping[str, np.ndarray],
    bound: Collection[str] = (),
) -> list[Feed]:
    """The feed of each input of a file from ``inputs``: by name, else the only one with its rank and fixed sides.

    Inputs in ``bound`` are left out.

    Raises:
        UserError: several inputs fit, types or sizes differ, or the file lacks or adds an input.
    """
    entries = [entry for entry in onnx_session.get_inputs() if entry.name not in bound]
    shared = {axis for entry in entries for axis in entry.shape[:1] if len(entry.shape) > 1}
    by_name = {}
    for entry in entries:
        if entry.type not in _TYPES:
            raise _feed_error(path, f"input {_entry_text(entry)} is of no type that is fed", inputs)
        axes = [axis if isinstance(axis, int) else None for axis in entry.shape]
        batched = bool(axes) and axes[0] is None and entry.shape[0] in shared
        dtype = np.dtype(_TYPES[entry.type])
        rows = axes[0] if axes else None
        if rows is not None and rows > _ROWS:
            raise _feed_error(path, f"input {_entry_text(entry)} is fixed to {rows} rows, of at most {_ROWS}", inputs)
        by_name[entry.name] = Feed(entry.name, "", dtype, len(axes), rows, tuple(axes[1:]), batched)
    roles = {name: name for name in by_name if name in inputs}
    while unassigned := [name for name in by_name if name not in roles]:
        open_roles = [role for role in inputs if role not in roles.values()]
        possible = {name: [role for role in open_roles if by_name[name].fits(inputs[role])] for name in unassigned}
        certain = next((name for name in unassigned if len(possible[name]) == 1), None)
        if certain is None:
            entry = next(entry for entry in entries if entry.name == unassigned[0])
            candidates = " or ".join(possible[unassigned[0]]) or "none of these"
            raise _feed_error(path, f"input {_entry_text(entry)} may be {candidates}", inputs)
        roles[certain] = possible[certain][0]
    if absent := sorted(set(inputs) - set(roles.values())):
        raise _feed_error(path, f"has no input for {', '.join(absent)}", inputs)
    return [replace(feed, role=roles[name]) for name, feed in by_name.items()]


def _entry_text(entry: Any) -> str:
    return f"{entry.name!r} {entry.type} {entry.shape}"


def _feed_error(path: Path, problem: str, inputs: Mapping[str, np.ndarray]) -> UserError:
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
    return UserError(
        f"{path}: {problem}; this pipeline's denoiser is fed {shapes}",
        "Give the denoiser's file of the same base, or name its inputs so.",
    )


class OnnxRunner:
    """One ONNX file. Threads share the rows of a batch; only a batch of fewer rows shares its operators.

    Rows do not depend on each other, so a batch split over threads takes less time than operators on all threads.
    On another device than the processor a batch is split only where memory needs it. Inputs in ``fixed`` have no rows.
    ``bound`` are inputs of the file that are the same in every call, in float32: an adapter's.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        fixed: frozenset[str] = frozenset({"timestep"}),
        device: Device = CPU,
        bound: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.path, self._threads, self._fixed, self._device = path, threads, fixed, device
        self._bound = bound or {}
        self._pool = ThreadPoolExecutor(threads)
        self._session = functools.cache(lambda count: session(path, count, device))
        self._rows = Rows(device, fixed, "onnxruntime")
        self._feeds: list[Feed] = []
        self.name = f"ONNX Runtime {onnxruntime.__version__} on {path.name}"

    def __enter__(self) -> "OnnxRunner":
        """The runner; its sessions and threads end with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._session.cache_clear()
        self._device.release()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run as ``Runner`` does; a float16 artifact takes and returns float16."""
        if not self._feeds:
            self._device.release()
            onnx_session = self._session(self._sharing(inputs))
            self._feeds = feeds(onnx_session, self.path, inputs, self._bound)
            self._bound = _cast(onnx_session, self._bound)
        return self._rows.run(self._all, inputs)

    def _count(self, inputs: Mapping[str, np.ndarray]) -> int:
        return next(len(value) for name, value in inputs.items() if name not in self._fixed)

    def _sharing(self, inputs: Mapping[str, np.ndarray]) -> int:
        """The threads that share an operator: one where each has rows of its own. A session holds the weights again."""
        return 1 if self._count(inputs) >= self._threads and self._device.is_host else self._threads

    def _all(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """All rows of ``inputs``, which fit the memory."""
        count = self._count(inputs)
        batch = max(feed.rows or 0 for feed in self._feeds if feed.role not in self._fixed)
        if batch:
            return self._in_batches_of(batch, count, inputs)
        if self._sharing(inputs) > 1 or self._threads == 1:
            return self._run(self._threads, inputs, np.arange(count))
        self._session(1)  # made before the threads need it at the same time
        parts = np.array_split(np.arange(count), self._threads)
        outputs = self._pool.map(functools.partial(self._run, 1, inputs), parts)
        return np.concatenate(list(outputs))

    def _in_batches_of(self, batch: int, count: int, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run a file with a fixed batch part by part; the last part is padded with its own last row."""
        parts = [np.minimum(np.arange(start, start + batch), count - 1) for start in range(0, count, batch)]
        return np.concatenate([self._run(self._threads, inputs, rows) for rows in parts])[:count]

    def _run(self, threads: int, inputs: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        values = {name: value if name in self._fixed else value[rows] for name, value in inputs.items()}
        feed_values = {feed.name: feed.value(values[feed.role], len(rows)) for feed in self._feeds}
        return np.asarray(self._session(threads).run(None, {**feed_values, **self._bound})[0], np.float32)


def _cast(onnx_session: onnxruntime.InferenceSession, bound: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs in the types of the file."""
    types = {entry.name: _TYPES[entry.type] for entry in onnx_session.get_inputs() if entry.name in bound}
    return {name: bound[name].astype(dtype, copy=False) for name, dtype in types.items()}
