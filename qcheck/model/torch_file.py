"""Files of tensors that ``torch.save`` wrote: read as tensors alone, no code of theirs ever runs."""

import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import torch

from qcheck.core.errors import UserError

_MAGIC = b"PK\x03\x04"  # of a zip archive
_BROKEN = (  # what torch's reader makes of a file that somebody wrote to fool it
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def is_one(path: Path) -> bool:
    """Whether a file begins as ``torch.save`` begins it."""
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The dense tensors of a state dict by name, on the CPU.

    Raises:
        UserError: the file is broken, packed, or holds something else than tensors by name.
    """
    try:
        _require_unpacked(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another pickle protocol, and of types of storage that torch gives up
            held = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(held, dict) or not all(map(_is_named_tensor, held.items())):
            raise ValueError("something else than tensors by name")
    except _BROKEN as error:
        raise UserError(
            f"{str(path)!r} is no state dict of tensors alone that torch saved ({type(error).__name__})",
            "Give a safetensors file, or a state dict that torch.save wrote; nothing in it is ever run.",
        ) from error
    return dict(held)


def _require_unpacked(path: Path) -> None:
    """Refuse entries that are compressed, which torch does not write: they could unpack to any size.

    Raises:
        ValueError: there are some.
    """
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ValueError("compressed entries")


def _is_named_tensor(item: tuple[object, object]) -> bool:
    name, value = item
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
