"""Digests of files, folders and values: equal digests prove that two results were made from the same inputs."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from qcheck.core.values import Value


def digest_of(*parts: bytes | str | Path) -> str:
    """First 16 hex digits of the SHA-256 of the parts; a path stands for the file's content."""
    total = hashlib.sha256()
    for part in parts:
        total.update(file_digest(part) if isinstance(part, Path) else _digest(part))
    return total.hexdigest()[:16]


def joined(digests: Iterable[str]) -> str:
    """What ``digest_of`` gives of files whose SHA-256, in hexadecimal digits, are ``digests``."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()[:16]


def file_digest(path: Path) -> bytes:
    """The SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _digest(part: bytes | str) -> bytes:
    return hashlib.sha256(part.encode() if isinstance(part, str) else part).digest()


def digest_of_folder(folder: Path, of_file: Callable[[Path], bytes] = file_digest) -> str:
    """The digest of every file below ``folder``, names included; ``of_file`` may know some from before."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(_digest(path.relative_to(folder).as_posix()))
        total.update(of_file(path))
    return total.hexdigest()[:16]


def digest_of_value(value: Value) -> str:
    """The digest of a frozen value's canonical JSON."""
    return digest_of(value.model_dump_json())
