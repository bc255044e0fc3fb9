"""The device that torch and ONNX Runtime compute on, found by the name that torch gives it."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import psutil
import torch

from qcheck.core.errors import UserError

AUTO = "auto"
TF32 = "tf32"


@dataclass(frozen=True)
class Device:
    """A device: ``name`` as torch knows it, and ``title``, the product and its driver's platform, for keys and reports.

    Results of one title are never taken for those of another. With ``tf32``, torch's products round their factors to
    TF32, of 10 bits after the point, and sum in float32. ``fitting`` are the rows of a call that fit, by the kind of
    call (``runtime.rows``).
    """

    name: str
    title: str
    tf32: bool = False
    fitting: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def torch(self) -> torch.device:
        """The value of torch that has this name."""
        return torch.device(self.name)

    @property
    def is_host(self) -> bool:
        """Whether the device is the processor, whose memory holds the models anyway."""
        return self.name == CPU.name

    def free(self) -> int:
        """Bytes that can still be allocated, those that torch keeps for reuse included."""
        if self.is_host:
            return int(psutil.virtual_memory().available)
        free, _ = torch.cuda.mem_get_info(self.torch)
        return int(free + torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch))

    def peak(self) -> int | None:
        """The most bytes that torch's tensors took; None on the processor."""
        return None if self.is_host else int(torch.cuda.max_memory_allocated(self.torch))

    def release(self) -> None:
        """Return memory that torch, or here the C library, keeps for reuse: other libraries cannot take it."""
        if not self.is_host:
            torch.cuda.empty_cache()
        else:
            _glibc("malloc_trim", 0)


_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


def return_blocks(size: int) -> None:
    """From now on the C library returns every freed block of ``size`` bytes or more to the system.

    By default glibc keeps blocks up to 32 MB in its heap once blocks of that size were freed. A large model's weights,
    computed layer by layer, then leave holes that hold gigabytes.
    """
    _glibc("mallopt", _MMAP_THRESHOLD, size)


def _glibc(name: str, *values: int) -> None:
    """Call a function of glibc; nothing where the C library is another."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*values)


CPU = Device("cpu", "cpu")


def find(name: str, precision: str = "float32") -> Device:
    """The device of that name: cpu, cuda, cuda:N, or auto, the first CUDA device where there is one.

    Raises:
        UserError: there is no such device here, or it has no such ``precision``.
    """
    found = _named(name)
    if precision != TF32:
        return found
    if found.is_host or torch.cuda.get_device_capability(found.torch) < _HAS_TF32:
        raise UserError(
            f"--precision {precision}: {found.title} has no TF32",
            "Leave --precision out, or give --device cuda on a GPU of compute capability 8.0 or newer.",
        )
    return replace(found, title=f"{found.title}, TF32", tf32=True)


_HAS_TF32 = (8, 0)  # compute capability


def _named(name: str) -> Device:
    if name == AUTO:
        return _cuda(0) if torch.cuda.is_available() else _host()
    if name == CPU.name:
        return _host()
    index = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        built = "" if torch.version.cuda else f"; this torch ({torch.__version__}) is built without CUDA"
        raise UserError(
            f"--device {name}: torch sees {count or 'no'} CUDA device{'' if count == 1 else 's'}{built}",
            "Give --device cpu, or install a torch with CUDA and the driver.",
        )
    return _cuda(index)


def _host() -> Device:
    """The processor, of which nothing is known from an earlier session."""
    return Device(CPU.name, CPU.title)


def _cuda(index: int) -> Device:
    """The CUDA device of that index, whose memory is measured from now on."""
    product = torch.cuda.get_device_name(index)  # initializes CUDA, which the next call does not
    torch.cuda.reset_peak_memory_stats(index)
    return Device(f"cuda:{index}", f"{product}, CUDA {torch.version.cuda}")


@contextmanager
def exact(device: Device) -> Iterator[None]:
    """While open, products on ``device`` are of float32 or TF32 numbers, and a convolution keeps its algorithm."""
    if device.is_host:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = device.tf32, device.tf32, False, True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
