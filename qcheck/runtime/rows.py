"""The number of rows in one call of a runner: as many as the device's memory holds.

A first call of one row is measured. Rows do not depend on each other, so a batch is computed in parts of any size; when
memory runs out all the same, the size is halved.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch

from qcheck.core.errors import UserError

_MARGIN = 0.8  # of the free memory is planned; allocators lose some to fragments
_WORDS = ("out of memory", "failed to allocate memory", "can't allocate memory", "bad allocation", "bfcarena")

Inputs = Mapping[str, np.ndarray]


class Memory(Protocol):
    """The memory of a device, as ``Device`` reports it."""

    @property
    def name(self) -> str:
        """The device's name in messages."""
        ...

    def free(self) -> int:
        """Bytes that can be allocated."""
        ...

    def used(self) -> int:
        """Bytes of the tensors that are held."""
        ...

    def forget_peak(self) -> None:
        """Begin to measure ``peak`` anew."""
        ...

    def peak(self) -> int | None:
        """The most bytes of tensors since then; None where that is unknown, and then no call is measured."""
        ...

    def release(self) -> None:
        """Return memory that is kept for reuse."""
        ...


def ran_out(error: BaseException) -> bool:
    """Whether an error of torch, ONNX Runtime or Python says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


class Rows:
    """Calls in parts that fit the memory; the size of a part is found once and kept.

    ``measures`` says that the memory of a call shows in ``memory``, which is so for torch.
    """

    def __init__(self, memory: Memory, fixed: frozenset[str], measures: bool = True) -> None:
        self._memory, self._fixed, self._measures = memory, fixed, measures
        self._most: int | None = None

    def run(self, call: Callable[[Inputs], np.ndarray], inputs: Inputs) -> np.ndarray:
        """The output of ``call`` on all rows of ``inputs``; those in ``fixed`` have none.

        Raises:
            UserError: one row alone does not fit.
        """
        count = next(len(value) for name, value in inputs.items() if name not in self._fixed)
        parts, start = list[np.ndarray](), 0
        while start < count:
            measuring = self._most is None and count > 1 and self._measures and self._memory.peak() is not None
            size = 1 if measuring else min(self._most or count, count - start)
            if measuring:
                self._memory.forget_peak()
            held = self._memory.used()
            output = self._output(call, self._part(inputs, slice(start, start + size)), size)
            if output is None:
                self._memory.release()
                self._most = size // 2
                continue
            parts.append(output)
            start += size
            if measuring:
                taken = max((self._memory.peak() or 0) - held, 1)
                self._most = max(1, int(_MARGIN * self._memory.free() / taken))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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
