"""Digests of files, folders and values: equal digests prove that two results were made from the same inputs."""

import hashlib
from pathlib import Path

from qcheck.core.values import Value


def digest_of(*parts: bytes | str | Path) -> str:
    """First 16 hex digits of the SHA-256 of the parts; a path stands for the file's content."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()[:16]


def digest_of_folder(folder: Path) -> str:
    """The digest of every file below ``folder``, names included."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_of(*(part for path in files for part in (path.relative_to(folder).as_posix(), path)))


def digest_of_value(value: Value) -> str:
    """The digest of a frozen value's canonical JSON."""
    return digest_of(value.model_dump_json())
