"""The artifact, run by ONNX Runtime on the CPU."""

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from qcheck.core.errors import UserError

COMPUTES = ("float32", "float16")  # compute types for which its CPU provider has a whole denoiser's operators
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


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
    """How one input of a file is fed: the name of what it is given, its type, and its axes: the first, and the others.

    An axis that is not fixed is None; ``rows`` is None for a scalar too. ``batched`` says that the first axis is that
    of the latents.
    """

    name: str
    role: str
    dtype: np.dtype[Any]
    rank: int
    rows: int | None
    sides: tuple[int | None, ...]
    batched: bool

    def value(self, found: np.ndarray, count: int) -> np.ndarray:
        """``found`` in this input's type; a number for each row as a scalar or as often as is asked."""
        cast = found.astype(self.dtype)
        if cast.ndim > 1:
            return cast
        return (
            cast[:1].reshape(()) if self.rank == 0 else np.repeat(cast[:1], self.rows or (count if self.batched else 1))
        )

    def fits(self, found: np.ndarray) -> bool:
        """Whether an array of that shape can be fed here; a number for each row also to a scalar."""
        if found.ndim == 1:
            return self.rank <= 1
        sides = zip(self.sides, found.shape[1:], strict=False)
        return self.rank == found.ndim and all(fixed in {None, side} for fixed, side in sides)


def feeds(running: onnxruntime.InferenceSession, path: Path, asked: Mapping[str, np.ndarray]) -> list[Feed]:
    """What each input of a file is given of ``asked``: by name, else what alone has the rank and the fixed sides.

    Raises:
        UserError: they cannot be told apart, are of other types or sizes, or something else is asked for.
    """
    given = running.get_inputs()
    shared = {axis for entry in given for axis in entry.shape[:1] if len(entry.shape) > 1}
    found = {}
    for entry in given:
        if entry.type not in _TYPES:
            raise _strange(path, f"input {_shown(entry)} is of no type that is fed", asked)
        axes = [axis if isinstance(axis, int) else None for axis in entry.shape]
        batched = bool(axes) and axes[0] is None and entry.shape[0] in shared
        dtype = np.dtype(_TYPES[entry.type])
        rows = axes[0] if axes else None
        found[entry.name] = Feed(entry.name, "", dtype, len(axes), rows, tuple(axes[1:]), batched)
    roles = {name: name for name in found if name in asked}
    while rest := [name for name in found if name not in roles]:
        open_roles = [role for role in asked if role not in roles.values()]
        possible = {name: [role for role in open_roles if found[name].fits(asked[role])] for name in rest}
        clear = next((name for name in rest if len(possible[name]) == 1), None)
        if clear is None:
            entry = next(entry for entry in given if entry.name == rest[0])
            kinds = " or ".join(possible[rest[0]]) or "none of these"
            raise _strange(path, f"input {_shown(entry)} may be {kinds}", asked)
        roles[clear] = possible[clear][0]
    if absent := sorted(set(asked) - set(roles.values())):
        raise _strange(path, f"has no input for {', '.join(absent)}", asked)
    return [replace(feed, role=roles[name]) for name, feed in found.items()]


def _shown(entry: Any) -> str:
    return f"{entry.name!r} {entry.type} {entry.shape}"


def _strange(path: Path, said: str, asked: Mapping[str, np.ndarray]) -> UserError:
    wanted = ", ".join(f"{name} {list(value.shape)}" for name, value in asked.items())
    return UserError(
        f"{path}: {said}; this pipeline's denoiser is fed {wanted}",
        "Give the denoiser's file of the same base, or name its inputs so.",
    )


class OnnxRunner:
    """One ONNX file. Threads share the rows of a batch; only a batch of fewer rows shares its operators.

    Rows do not depend on each other, so parts of a batch on one thread each finish sooner than operators on all.
    Inputs in ``fixed`` have no rows.
    """

    def __init__(self, path: Path, threads: int, fixed: frozenset[str] = frozenset({"timestep"})) -> None:
        self.path, self._threads, self._fixed = path, threads, fixed
        self._pool = ThreadPoolExecutor(threads)
        self._session = functools.cache(lambda count: session(path, count))
        self._feeds: list[Feed] = []
        self.name = f"ONNX Runtime {onnxruntime.__version__} on {path.name}"

    def __enter__(self) -> "OnnxRunner":
        """The runner; its sessions and threads end with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._session.cache_clear()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """As ``Runner``; a float16 artifact is fed and read in float16."""
        if not self._feeds:
            self._feeds = feeds(self._session(self._threads), self.path, inputs)
        count = next(len(value) for name, value in inputs.items() if name not in self._fixed)
        batch = max(feed.rows or 0 for feed in self._feeds if feed.role not in self._fixed)
        if batch:
            return self._in_batches_of(batch, count, inputs)
        if count < self._threads:
            return self._run(self._threads, inputs, np.arange(count))
        self._session(1)  # before the parts ask for it at the same time
        parts = np.array_split(np.arange(count), self._threads)
        found = self._pool.map(functools.partial(self._run, 1, inputs), parts)
        return np.concatenate(list(found))

    def _in_batches_of(self, batch: int, count: int, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Parts for a file whose batch is fixed; the last is filled up with its own last row."""
        parts = [np.minimum(np.arange(start, start + batch), count - 1) for start in range(0, count, batch)]
        return np.concatenate([self._run(self._threads, inputs, rows) for rows in parts])[:count]

    def _run(self, threads: int, inputs: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        values = {name: value if name in self._fixed else value[rows] for name, value in inputs.items()}
        given = {feed.name: feed.value(values[feed.role], len(rows)) for feed in self._feeds}
        return np.asarray(self._session(threads).run(None, given)[0], np.float32)
