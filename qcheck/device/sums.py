"""SHA256SUMS: the digest of every file of a folder, in the format of ``sha256sum``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Mapping, Sequence

NAME = "SHA256SUMS"
_CHUNK = 1 << 20


def digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    hashed = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            hashed.update(chunk)
    return hashed.hexdigest()


def text(digests: Mapping[str, str]) -> bytes:
    """The text of SHA256SUMS, as ``sha256sum`` writes and checks it."""
    return "".join(f"{value}  {name}\n" for name, value in sorted(digests.items())).encode("utf-8")


def of(folder: Path) -> dict[str, str]:
    """The digests of every file below a folder, but for SHA256SUMS, by its name in the folder."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: digest(path) for name, path in sorted(files.items()) if name != NAME}


def parsed(content: bytes) -> dict[str, str] | None:
    """Digests by name; None where a line is none of ``sha256sum``'s, or names a file outside of the folder."""
    digests: dict[str, str] = {}
    try:
        lines = content.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError:
        return None
    for line in lines:
        value, gap, name = line[:64], line[64:66], line[66:]
        parts: Sequence[str] = name.split("/")
        if gap != "  " or not name or name.startswith("/") or ".." in parts or set(value) - set("0123456789abcdef"):
            return None
        digests[name] = value
    return digests
