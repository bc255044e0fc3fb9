"""What a bundle holds, as ``qcheck export --bundle --json`` prints it."""

from typing import Literal

from pydantic import Field

from qcheck.core.values import Value
from qcheck.result.verdict import Outcome


class BundledFile(Value):
    """One file of a bundle."""

    path: str
    bytes: int
    digest: str


class Bundled(Value):
    """A bundle that was written: the host's verdict on its probes, and its files."""

    schema_: Literal["qcheck-bundled/1"] = Field(default="qcheck-bundled/1", alias="schema")
    verdict: Outcome
    probes: int
    scheme: str
    order: str
    target: str
    files: list[BundledFile]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)
