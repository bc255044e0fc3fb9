"""The number of rows in one call of a runner: as many as the device's memory holds.

Rows do not depend on each other, so a batch is computed in parts of any size. All of it is tried; where memory runs
out, the size is halved. A first call of one row would tell too little: libraries take workspaces by what is free, at
least 15 GB of an H100 for one row of a model of which 16 rows take 29 GB.
"""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch

from qcheck.core import errors
from qcheck.core.errors import UserError

Inputs = Mapping[str, np.ndarray]


class Memory(Protocol):
    """The memory of a device, as ``Device`` reports it."""

    @property
    def name(self) -> str:
        """The device's name in messages."""
        ...

    @property
    def fitting(self) -> dict[str, int]:
        """The rows of a call that fit, by the kind of call, as far as that was found."""
        ...

    def release(self) -> None:
        """Return memory that is kept for reuse."""
        ...


def ran_out(error: BaseException) -> bool:
    """Whether an error of torch, ONNX Runtime or Python says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or errors.ran_out(error)


class Rows:
    """Calls in equal parts that fit the memory; the size of a part is found once for all calls alike on a device.

    ``library`` computes: others take other memory for the same rows.
    """

    def __init__(self, memory: Memory, fixed: frozenset[str], library: str) -> None:
        self._memory, self._fixed, self._library = memory, fixed, library

    def run(self, call: Callable[[Inputs], np.ndarray], inputs: Inputs) -> np.ndarray:
        """The output of ``call`` on all rows of ``inputs``; those in ``fixed`` have none.

        Raises:
            UserError: one row alone does not fit.
        """
        count = next(len(value) for name, value in inputs.items() if name not in self._fixed)
        fitting, kind = self._memory.fitting, self._kind(inputs)
        parts, start = list[np.ndarray](), 0
        while start < count:
            left = count - start
            size = math.ceil(left / math.ceil(left / fitting.get(kind, left)))
            output = self._output(call, self._part(inputs, slice(start, start + size)), size)
            if output is None:
                self._memory.release()
                fitting[kind] = size // 2
                continue
            parts.append(output)
            start += size
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _kind(self, inputs: Inputs) -> str:
        """What calls have in common that take the same memory a row."""
        return repr((self._library, *((name, value.shape[1:]) for name, value in inputs.items())))

    def _part(self, inputs: Inputs, rows: slice) -> Inputs:
        return {name: value if name in self._fixed else value[rows] for name, value in inputs.items()}

    def _output(self, call: Callable[[Inputs], np.ndarray], inputs: Inputs, size: int) -> np.ndarray | None:
        """The output of ``size`` rows, or None where memory ran out; here the failed call's tensors are free again.

        Raises:
            UserError: memory ran out for a single row.
        """
        try:
            return call(inputs)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if size == 1:
                raise too_large("one row of the denoiser", self._memory.name, error) from error
        return None


def too_large(what: str, device: str, error: BaseException) -> UserError:
    """The error where ``what`` does not fit into the memory of a device, from the error that said so."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"{what} does not fit into the memory of {device}: {reason}",
        "Give a smaller --width and --height, close other programs, or give --device cpu.",
    )
