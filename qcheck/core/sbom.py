"""A software bill of materials: CycloneDX 1.6 in JSON (ECMA-424), of a few parts and without a library.

Equal parts give equal bytes: no time, no serial number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

NAME = "sbom.cdx.json"
Kind = Literal["application", "data", "file", "library", "machine-learning-model"]


@dataclass(frozen=True)
class Part:
    """One part: its kind, name and version; a package URL, an SPDX expression, a SHA-256 in hex, and other facts."""

    kind: Kind
    name: str
    version: str | None = None
    purl: str | None = None
    licence: str | None = None
    sha256: str | None = None
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def reference(self) -> str:
        """What other parts call it, unique in a document where names are."""
        return self.purl or f"{self.kind}:{self.name}"

    def described(self) -> dict[str, Any]:
        """The component as CycloneDX has it."""
        known = {
            "type": self.kind,
            "bom-ref": self.reference,
            "name": self.name,
            "version": self.version,
            "hashes": [{"alg": "SHA-256", "content": self.sha256}] if self.sha256 else None,
            "licenses": [{"expression": self.licence}] if self.licence else None,
            "purl": self.purl,
            "properties": [{"name": name, "value": value} for name, value in self.facts] or None,
        }
        return {key: value for key, value in known.items() if value is not None}


def document(subject: Part, parts: Sequence[Part]) -> dict[str, Any]:
    """The bill of ``subject``, which depends on every one of ``parts``."""
    ordered = sorted(parts, key=lambda part: part.reference)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject.described()},
        "components": [part.described() for part in ordered],
        "dependencies": [{"ref": subject.reference, "dependsOn": [part.reference for part in ordered]}],
    }
