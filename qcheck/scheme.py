"""A scheme: which operators hold which number format, at which granularity, in which compute type and order."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from qcheck import files
from qcheck.errors import unknown
from qcheck.files import Value, as_tuple

FOLDER = files.PACKAGE / "data" / "schemes"
Order = Literal["merge-quantize", "quantize-merge", "unmerged"]
ORDERS: tuple[Order, ...] = get_args(Order)


class Numbers(Value):
    """How one kind of tensor is quantized: a format of ``quantize.formats`` and which values share a scale.

    ``block`` values along the input axis share one at granularity "block"; it is the most, see ``block_of``.
    """

    format: str
    granularity: Literal["tensor", "channel", "block"]
    block: int | None = None

    def block_of(self, inputs: int) -> int | None:
        """The block for a layer of ``inputs`` input features, or None if it has to stay in the compute type.

        TensorRT needs blocks that divide the input axis, so a narrow or odd layer gets the largest multiple of 16 that
        divides it and is at most ``block``.
        """
        most = self.block or inputs
        return next((size for size in range(most - most % 16, 0, -16) if inputs % size == 0), None)


class Rule(Value):
    """Numbers for the layers whose kind is in ``operators``; without ``activations`` their inputs stay in float."""

    operators: Annotated[tuple[Literal["Linear", "Conv2d"], ...], Field(min_length=1), BeforeValidator(as_tuple)]
    weights: Numbers
    activations: Numbers | None = None

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if (self.weights.granularity == "block") != (self.weights.block is not None):
            raise ValueError("`block` goes with granularity 'block', and only with it")
        if self.weights.block is not None and (self.weights.block < 16 or self.weights.block % 16):
            raise ValueError("`block` must be a multiple of 16")
        if self.weights.granularity == "block" and set(self.operators) != {"Linear"}:
            raise ValueError("blocks are for Linear layers: TensorRT refuses them on convolutions")
        if self.activations is not None and self.activations.granularity != "tensor":
            raise ValueError("activations are quantized per tensor")
        return self


class Scheme(Value):
    """Rules by kind of layer, the first that names the kind holds; the rest stays in ``compute``."""

    name: str
    title: str
    compute: Literal["float16"]
    opset: int
    rules: list[Rule]

    @property
    def formats(self) -> frozenset[str]:
        """Every number format that a device must offer to run this scheme."""
        numbers = [n for rule in self.rules for n in (rule.weights, rule.activations) if n is not None]
        return frozenset({n.format for n in numbers} | {self.compute})

    def rule(self, operator: str) -> Rule | None:
        """The rule for a kind of layer."""
        return next((rule for rule in self.rules if operator in rule.operators), None)


def order(name: str) -> Order:
    """The order of that name."""
    for known in ORDERS:
        if known == name:
            return known
    raise unknown("order", name, ORDERS)


def find(name: str) -> Scheme:
    """The scheme of that name or file."""
    return files.find(Scheme, FOLDER, name)


def every() -> list[Scheme]:
    """All schemes that ship with qcheck."""
    return [find(name) for name in files.names(FOLDER)]
