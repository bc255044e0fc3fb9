"""Tensors as the bundle stores them: raw little-endian bytes in the type of the engine's own binding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict

import numpy as np

from .errors import CannotVerify

# numpy has no bfloat16: its bits are kept as uint16. The names are ONNX's and numpy's.
TYPES: Dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "bool": np.dtype("?"),
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine: its name, the name of its type in ``TYPES``, and its fixed shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """The number of bytes."""
        return self.count * TYPES[self.dtype].itemsize


def read(path: Path, tensor: Tensor, repeats: int = 1) -> np.ndarray:
    """``repeats`` tensors from a file, [repeats, *shape] in the type of ``TYPES``.

    Raises:
        CannotVerify: the file is missing or has another size.
    """
    try:
        size = path.stat().st_size
        expected = repeats * tensor.bytes
        content = path.read_bytes() if size == expected else b""
    except OSError as error:
        raise CannotVerify(f"{path}: {error.strerror}", "Copy the whole bundle again.") from error
    if size != expected:
        raise CannotVerify(
            f"{path} has {size} bytes, and {repeats} of {tensor.name} {tensor.dtype}{list(tensor.shape)} "
            f"have {expected}",
            "Copy the whole bundle again.",
        )
    return np.frombuffer(content, TYPES[tensor.dtype]).reshape((repeats, *tensor.shape))


def to_float(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray:
    """Values of a type as float32; NaN and infinities stay what they are."""
    if dtype == "bfloat16":
        wide: np.ndarray = (values.astype(np.uint32) << 16).view(np.float32)
        return wide
    return values.astype(np.float32)


def from_float(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray:
    """float32 values in a type, rounded to the nearest, ties to even."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        quiet = (bits >> 16) | 0x40  # a NaN must not be carried into an infinity
        bfloat: np.ndarray = np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
        return bfloat
    cast: np.ndarray = values.astype(TYPES[dtype])
    return cast
