"""The manifest beside an artifact: the formats of its layers, its sources, and the digests of its files."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from qcheck.core.values import Value

SCHEMA: Literal["qcheck-manifest/1"] = "qcheck-manifest/1"
NAME = "manifest.json"


class Layer(Value):
    """One quantized layer: its module, the ONNX node that computes it, and its formats as the scheme asks.

    ``activation`` is None where the input stays in the compute type; ``dequantizer`` is the node that decodes the
    weight, None where the weight is a plain constant. ``parameters`` counts the weight's elements.
    """

    name: str
    node: str
    dequantizer: str | None
    weight: str
    activation: str | None
    parameters: int


class Source(Value):
    """A base or an adapter that the artifact was made from, by digest; ``weight`` and ``arms`` of an adapter."""

    digest: str
    weight: float | None = None
    arms: Literal["adapted", "both"] | None = None


class Manifest(Value):
    """The whole file, ``manifest.json``."""

    schema_: Literal["qcheck-manifest/1"] = Field(default=SCHEMA, alias="schema")
    qcheck: str
    scheme: str
    order: str
    recipe: str
    compute: str
    opset: int
    runs: list[str]
    twin: Literal["decoded", "same codes"] | None
    scheme_digest: str
    recipe_digest: str
    base: Source
    adapters: list[Source]
    changed_layers: int
    layers: list[Layer]
    files: dict[str, str]


def model_files(path: Path) -> list[Path]:
    """An ONNX file and, where its tensors are stored outside, the file beside it that holds them."""
    data = path.with_name(f"{path.name}.data")
    return [path, data] if data.exists() else [path]
