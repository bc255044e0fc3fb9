"""Files of weights in safetensors, opened with the checks that the format's library leaves out.

The library refuses a header that is no JSON or longer than the file, and offsets and shapes that do not fit its bytes.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qcheck.core.errors import UserError

TYPES = frozenset(
    ["BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"]
)  # torch computes with these
_AXES = 8  # of a tensor at most


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The library's reader of a file; it reads a tensor when asked for it.

    Raises:
        UserError: the file is missing, a pipe or a device, no whole safetensors file, or it holds a name twice, or a
            tensor of a type or of so many axes that nothing here computes with it.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with safe_open(path, "pt") as stream:
            _require_sound(path, stream)
            yield stream
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{str(path)!r} is not a whole safetensors file: {error}",
            "Give a .safetensors file; if it is one, download it again.",
        ) from error


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name.

    Raises:
        UserError: as ``opened``.
    """
    with opened(path) as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118


def _require_sound(path: Path, stream: Any) -> None:
    """Refuse what the library reads and nothing here computes with."""
    names = _names(path)
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise SafetensorError(f"its header holds {doubled[0]!r} twice, and readers disagree on which one counts")
    for name in stream.keys():  # noqa: SIM118
        part = stream.get_slice(name)
        if part.get_dtype() not in TYPES:
            raise SafetensorError(f"{name!r} is of type {part.get_dtype()}, and read are {', '.join(sorted(TYPES))}")
        if len(part.get_shape()) > _AXES:
            raise SafetensorError(f"{name!r} has {len(part.get_shape())} axes, and {_AXES} are the most that is read")


def _names(path: Path) -> Sequence[str]:
    """The names in a header that the library has parsed, those that occur twice too."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        pairs: list[tuple[str, Any]] = json.loads(stream.read(length), object_pairs_hook=list)
    return [name for name, _ in pairs]
