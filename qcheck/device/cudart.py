"""The CUDA runtime through ctypes: memory, streams, events, and the attributes of the GPU.

Arguments have declared types: without them ctypes cuts addresses above 4 GiB. Attributes are asked one by one, as the
structure of all properties changed its size between releases.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from .errors import CannotVerify

FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib", "/usr/lib/aarch64-linux-gnu")
_LIBRARY = "libcudart.so*"

_TO_DEVICE, _TO_HOST = 1, 2
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
_OUT_OF_MEMORY = 2
_SIGNATURES: dict[str, Sequence[Any]] = {
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMemcpy": (c_void_p, c_void_p, c_size_t, c_int),
    "cudaStreamCreate": (POINTER(c_void_p),),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaEventCreate": (POINTER(c_void_p),),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
}


class Cuda:
    """The functions of libcudart for the first GPU; addresses, streams and events are integers.

    Every method raises CannotVerify with CUDA's own words where the library returns an error.
    """

    def __init__(self, library: Any) -> None:
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = (c_int,), c_char_p
        self._library = library

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            words = self._library.cudaGetErrorString(code).decode("utf-8", "replace")
            raise CannotVerify(
                f"{name}: {words} (CUDA error {code})",
                "Free memory on the board: close other programs, and the desktop."
                if code == _OUT_OF_MEMORY
                else "Check that the GPU works here: run one of CUDA's samples, or restart the board.",
            )

    def _created(self, name: str, *arguments: Any) -> int:
        made = c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def malloc(self, size: int) -> int:
        """The address of ``size`` bytes on the device."""
        return self._created("cudaMalloc", size)

    def free(self, address: int) -> None:
        """Free what ``malloc`` gave."""
        self._call("cudaFree", address)

    def to_device(self, address: int, values: np.ndarray) -> None:
        """Copy a contiguous array to the device, and wait for the copy."""
        self._call("cudaMemcpy", address, values.ctypes.data, values.nbytes, _TO_DEVICE)

    def to_host(self, values: np.ndarray, address: int) -> None:
        """Fill a contiguous array from the device, and wait for the copy."""
        self._call("cudaMemcpy", values.ctypes.data, address, values.nbytes, _TO_HOST)

    def stream(self) -> int:
        """A new stream."""
        return self._created("cudaStreamCreate")

    def synchronize(self, stream: int) -> None:
        """Wait for all work in a stream."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> int:
        """A new event, which keeps the time when the device reaches it."""
        return self._created("cudaEventCreate")

    def record(self, event: int, stream: int) -> None:
        """Put an event behind the work in a stream."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Wait until the device has reached an event."""
        self._call("cudaEventSynchronize", event)

    def elapsed(self, start: int, end: int) -> float:
        """Milliseconds on the device between two events that it has reached."""
        milliseconds = c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def attribute(self, number: int) -> int:
        """An attribute of the device by its number in ``cudaDeviceAttr``."""
        value = c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    @property
    def capability(self) -> str:
        """The compute capability, such as "8.7"."""
        return f"{self.attribute(_MAJOR)}.{self.attribute(_MINOR)}"

    @property
    def integrated(self) -> bool:
        """Whether the GPU shares the memory of the processor, as on every Jetson."""
        return self.attribute(_INTEGRATED) != 0


def find(folders: Sequence[str] = FOLDERS) -> Cuda:
    """The CUDA runtime of this machine: in LD_LIBRARY_PATH, where the linker finds it, or in ``folders`` (patterns).

    Raises:
        CannotVerify: there is none that can be loaded.
    """
    failures = []
    for place in _candidates(folders):
        try:
            return Cuda(ctypes.CDLL(place))
        except (OSError, AttributeError) as error:
            failures.append(str(error))
    searched = ", ".join(["LD_LIBRARY_PATH", "the linker's cache", *folders])
    raise CannotVerify(
        f"no CUDA runtime ({_LIBRARY}) can be loaded; searched {searched}" + "".join(f"; {text}" for text in failures),
        "Install JetPack's cuda-cudart, or put the folder of libcudart.so into LD_LIBRARY_PATH.",
    )


def _candidates(folders: Sequence[str]) -> Iterator[str]:
    for named in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
        yield from map(str, sorted(Path(named).glob(_LIBRARY)))
    linked = ctypes.util.find_library("cudart")
    if linked is not None:
        yield linked
    for folder in folders:
        yield from map(str, sorted(Path("/").glob(f"{folder.lstrip('/')}/{_LIBRARY}")))
