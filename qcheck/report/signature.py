"""A signature of a report folder: a detached one of report.intoto.json, which names the digest of every other file."""

import base64
import binascii
from pathlib import Path
from typing import Any

from qcheck.core.errors import UserError, install
from qcheck.core.files import read_bytes


def holds(content: bytes, signature: Path, key: Path) -> bool:
    """Whether ``signature`` is one of ``content`` by the owner of the public ``key``, a PEM file.

    ECDSA with SHA-256 (``openssl dgst -sha256 -sign``, ``cosign sign-blob``) or Ed25519; raw, or in base64.

    Raises:
        UserError: a file cannot be read, the key is of another kind, or cryptography is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature
    except ModuleNotFoundError as error:
        raise UserError("a signature needs cryptography, which is not installed", f"{install('sign')}") from error
    public, signed = _key(_read(key, "public key"), key), _raw(_read(signature, "signature"))
    try:
        _verify(public, signed, content, key)
    except InvalidSignature:
        return False
    return True


def _verify(public: Any, signed: bytes, content: bytes, key: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256

    if isinstance(public, EllipticCurvePublicKey):
        public.verify(signed, content, ECDSA(SHA256()))
    elif isinstance(public, Ed25519PublicKey):
        public.verify(signed, content)
    else:
        raise UserError(f"public key {str(key)!r} is {type(public).__name__}", "Give one of ECDSA or Ed25519.")


def _read(path: Path, what: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise UserError(f"{what} {str(path)!r}: {error.strerror}", "Give a file that is there.") from error


def _key(content: bytes, key: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{str(key)!r} is no public key in PEM", "Give what `openssl ec -pubout` writes.") from error


def _raw(content: bytes) -> bytes:
    try:
        return base64.b64decode(content.strip(), validate=True)
    except binascii.Error:
        return content
