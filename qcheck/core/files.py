"""Files of strangers, read with bounds: regular files of a bounded size, JSON and TOML of a bounded depth.

And one way to write a file: whole, or not at all.
"""

import errno
import os
import stat
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from qcheck.core.errors import naming

MOST = 2**28  # bytes of a file of JSON or text
_MOST_TOML = 2**20  # bytes
_DOTS = 2000  # in a line of TOML: the time of Python's parser grows with the square of a key's parts


def size(path: Path) -> int:
    """The bytes of a regular file.

    Raises:
        OSError: it is a folder, a pipe or a device, which might never end, or cannot be looked at.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_size


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read, is larger, or is a folder, a pipe or a device, which might never end.
    """
    length = size(path)
    with path.open("rb") as stream:
        content = stream.read(most + 1) if length <= most else b""
    if max(length, len(content)) > most:
        raise OSError(errno.EINVAL, f"larger than the {most} bytes that are read of such a file", str(path))
    return content


def read_text(path: Path, most: int = MOST) -> str:
    """The UTF-8 text of a file, without a byte order mark.

    Raises:
        OSError: as ``read_bytes``.
        ValueError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def parse_json(text: str | bytes) -> Any:
    """The value in JSON.

    Raises:
        ValueError: it is no JSON, or nested 200 deep or more.
    """
    return from_json(text)


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError, ValueError: as ``read_bytes`` and ``parse_json``.
    """
    return parse_json(read_text(path))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError, ValueError: as ``read_json``, or it holds another value than an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} where an object {{...}} is expected")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        OSError, ValueError: as ``read_text``, or it is no TOML, or deeper than Python's parser follows in time.
    """
    text = read_text(path, _MOST_TOML)
    if max(line.count(".") for line in text.split("\n")) > _DOTS:
        raise ValueError(f"it has a line with more than {_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` when the block ends well; else what was there is there still."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with naming(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all, even where power is lost; text is written as UTF-8.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    with whole(path) as partial, partial.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
