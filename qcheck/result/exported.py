"""What an export wrote: manifest.json of its folder."""

from typing import Literal

from pydantic import Field

from qcheck.core.values import Value
from qcheck.result.build import Build
from qcheck.result.estimate import Estimate
from qcheck.result.manifest import Manifest

Size = tuple[int, int]


class Part(Value):
    """One component's file: its compute type, its bytes, and the build of it."""

    name: str
    compute: str
    bytes: int
    build: Build


class Exported(Value):
    """What was exported: manifest.json of the folder. ``denoiser`` says what was quantized, and how."""

    schema_: Literal["qcheck-export/1"] = Field(default="qcheck-export/1", alias="schema")
    target: str
    sizes: list[Size]
    denoiser: Manifest
    parts: list[Part]
    estimate: Estimate
    warnings: list[str]
    files: dict[str, str]
