"""A scheme: number formats and granularities by kind of layer, and the compute type of everything else."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from qcheck.core.values import DATA, Value, as_tuple, named, names_in

FOLDER = DATA / "schemes"
Granularity = Literal["none", "tensor", "channel", "block", "run"]
Runtime = Literal["tensorrt", "onnxruntime", "bitsandbytes"]
RanAs = Literal["artifact", "decoded twin", "bitsandbytes", "simulation"]


class Numbers(Value):
    """How one kind of tensor is quantized: a format of ``quantize.formats`` and which values share a scale.

    At "block", ``block`` values along the input axis share a scale (at most so many, see ``block_of``); at "run",
    ``block`` values of the flattened weight do; "none" is a bare cast. ``scales`` is the format that stores the scales
    of blocks, in units of one scale a tensor; without it they are stored in the compute type.
    """

    format: str
    granularity: Granularity
    block: int | None = None
    scales: str | None = None

    def block_of(self, inputs: int) -> int | None:
        """The block for a layer of ``inputs`` input features, or None if it has to stay in the compute type.

        TensorRT needs blocks that divide the input axis, so a narrow or odd layer gets the largest multiple of 16 that
        divides it and is at most ``block``.
        """
        largest = self.block or inputs
        return next((size for size in range(largest - largest % 16, 0, -16) if inputs % size == 0), None)


class Rule(Value):
    """Numbers for the layers whose kind is in ``operators``; without ``activations`` their inputs stay in float."""

    operators: Annotated[tuple[Literal["Linear", "Conv2d"], ...], Field(min_length=1), BeforeValidator(as_tuple)]
    weights: Numbers
    activations: Numbers | None = None

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for numbers in (self.weights, self.activations):
            if numbers is not None:
                _check_blocks(numbers)
        if "block" in {n.granularity for n in (self.weights, self.activations) if n} and self.operators != ("Linear",):
            raise ValueError("blocks are for Linear layers: TensorRT refuses them on convolutions")
        if self.activations is not None:
            layout = (self.activations.granularity, self.activations.scales is not None)
            if layout not in {("tensor", False), ("block", True)}:
                raise ValueError("activations are quantized per tensor, or dynamically per block with `scales`")
        return self


def _check_blocks(numbers: Numbers) -> None:
    has_blocks = numbers.granularity in {"block", "run"}
    if has_blocks != (numbers.block is not None):
        raise ValueError("`block` goes with granularity 'block' or 'run', and only with them")
    if numbers.block is not None and (numbers.block < 16 or numbers.block % 16):
        raise ValueError("`block` must be a multiple of 16")
    if numbers.scales is not None and numbers.granularity != "block":
        raise ValueError("`scales` goes with granularity 'block'")


class Smoothing(Value):
    """An algorithm that scales each feature of a Linear layer's input and divides the weight by the same factor.

    It is computed by NVIDIA ModelOpt; ``alpha`` is SmoothQuant's migration strength, AWQ searches its own.
    """

    method: Literal["smoothquant", "awq_lite"]
    alpha: float | None = None


class Scheme(Value):
    """Rules by kind of layer: the first rule that names the kind applies, and other layers stay in ``compute``.

    ``runs`` names the runtimes that execute the scheme's files as they are. Where ONNX Runtime is not among them, the
    numbers come from a decoded twin: dequantized weights as float32 constants.
    """

    name: str
    title: str
    compute: Literal["float16", "bfloat16", "float32"]
    opset: int
    runs: Annotated[tuple[Runtime, ...], Field(min_length=1), BeforeValidator(as_tuple)]
    rules: list[Rule]
    smoothing: Smoothing | None = None

    @property
    def formats(self) -> frozenset[str]:
        """Every number format of the scheme's weights and inputs, and its compute type."""
        numbers = [n for rule in self.rules for n in (rule.weights, rule.activations) if n is not None]
        return frozenset({n.format for n in numbers} | {self.compute})

    @property
    def needs(self) -> tuple[str, ...]:
        """Optional Python modules that are needed to make or run the scheme here."""
        return (*(("modelopt",) if self.smoothing else ()), *(() if self.exported else ("bitsandbytes",)))

    @property
    def exported(self) -> bool:
        """Whether the scheme is an ONNX file; otherwise PyTorch quantizes while it loads."""
        return "tensorrt" in self.runs or "onnxruntime" in self.runs

    @property
    def ran_as(self) -> RanAs:
        """The file or library that the numbers on this machine come from."""
        return "bitsandbytes" if not self.exported else "decoded twin" if self.decoded else "artifact"

    @property
    def decoded(self) -> bool:
        """Whether ONNX Runtime cannot run the scheme's own file."""
        return "onnxruntime" not in self.runs

    @property
    def control(self) -> bool:
        """Whether nothing is quantized: weights are only cast."""
        return all(rule.weights.granularity == "none" for rule in self.rules)

    def rule(self, operator: str) -> Rule | None:
        """The rule for a kind of layer."""
        return next((rule for rule in self.rules if operator in rule.operators), None)


def find(name: str) -> Scheme:
    """The scheme of that name or file."""
    return named(Scheme, FOLDER, name)


def every() -> list[Scheme]:
    """All schemes that ship with qcheck."""
    return [find(name) for name in names_in(FOLDER)]
