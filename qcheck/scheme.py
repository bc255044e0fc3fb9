"""A scheme: which operators hold which number format, at which granularity, in which compute type."""

from typing import Literal

from qcheck import files
from qcheck.files import Names, Value

FOLDER = files.PACKAGE / "data" / "schemes"
Order = Literal["merge-quantize"]


class Numbers(Value):
    """How one kind of tensor is quantized: a format of ``quantize.formats`` and what shares a scale."""

    format: str
    granularity: Literal["tensor", "channel"]


class Scheme(Value):
    """Weights and activations of the layers whose kind is in ``operators``; the rest stays in ``compute``."""

    name: str
    title: str
    operators: Names
    weights: Numbers
    activations: Numbers
    compute: Literal["float16", "bfloat16"]
    opset: int

    @property
    def formats(self) -> frozenset[str]:
        """Every number format that a device must offer to run this scheme."""
        return frozenset({self.weights.format, self.activations.format, self.compute})


def find(name: str) -> Scheme:
    """The scheme of that name or file."""
    return files.find(Scheme, FOLDER, name)


def every() -> list[Scheme]:
    """All schemes that ship with qcheck."""
    return [find(name) for name in files.names(FOLDER)]
