"""The precision of an engine, from the JSON of TensorRT's engine inspector: the operand types of each operation.

Constants alone mislead: a weight-only convolution also holds INT8 constants. So a layer with quantized activations
must multiply two operands of its formats, and a weight-only layer must decode a weight of its format.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Protocol, Sequence

AS_ASKED, FELL_BACK, FUSED = "as asked", "fell back", "fused, cannot be told"
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

# words of the inspector's strings: "Row major linear FP16 format", "Half", "Thirty-two wide ... Int8 format"
_NAMES = (
    ("FP8", "float8_e4m3"),
    ("E4M3", "float8_e4m3"),
    ("FP4", "float4_e2m1"),
    ("E2M1", "float4_e2m1"),
    ("BF16", "bfloat16"),
    ("BFloat16", "bfloat16"),
    ("FP16", "float16"),
    ("Half", "float16"),
    ("FP32", "float32"),
    ("Float", "float32"),
    ("Int8", "int8"),
    ("Int4", "int4"),
)
_KINDS = ("conv", "gemm", "matmul", "matrixmultiply", "fullyconnected")


class Quantized(Protocol):
    """A layer as the scheme asks for it: the layers of a bundle and those of a manifest."""

    @property
    def name(self) -> str:
        """The module."""

    @property
    def node(self) -> str:
        """The ONNX node that computes it."""

    @property
    def dequantizer(self) -> str | None:
        """The ONNX node that decodes its weight; None where the weight is a plain constant."""

    @property
    def weight(self) -> str:
        """The weight's format."""

    @property
    def activation(self) -> str | None:
        """The input's format; None where it stays in the compute type."""


@dataclass(frozen=True)
class Operation:
    """One operation: the ONNX nodes that it computes, and the formats of its inputs in order.

    ``product`` says that it is a convolution or a matrix product, so that its first two inputs are the activation and
    the weight as the hardware multiplies them.
    """

    nodes: frozenset[str]
    inputs: tuple[str, ...]
    product: bool


@dataclass(frozen=True)
class Program:
    """The operations of an engine and the bytes of its constants by format (empty where the source does not say)."""

    operations: tuple[Operation, ...]
    constants: Mapping[str, int]


def inspected(text: str) -> Program:
    """The program in ``IEngineInspector``'s JSON at detailed verbosity (``trtexec --exportLayerInfo`` writes it too).

    The keys are documented by TensorRT 8 to 11 or occur in published files: "Format/Datatype" up to 10.x, "Format"
    beside "DataType" or "Datatype" from 11.0. No JSON of our own engines was read, as that needs a device. A weight is
    counted as the second input; it is the largest of a layer's constants. Layers without details, which are plain
    strings, are left out, and so is what has another form.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        value = json.loads(text, strict=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    layers = _tensors(value.get("Layers")) if isinstance(value, dict) else []
    return Program(tuple(map(_operation, layers)), {})


def _operation(layer: Mapping[str, Any]) -> Operation:
    inputs = [_type_of(tensor) for tensor in _tensors(layer.get("Inputs"))]
    weights = layer.get("Weights")
    constants = _tensors(layer.get("Constants"))
    if isinstance(weights, dict):
        inputs.insert(1, _format_in(str(weights.get("Type", ""))))
    elif constants and len(inputs) == 1:
        inputs.append(_type_of(max(constants, key=_count)))
    kind = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    product = any(word in kind for word in _KINDS)
    return Operation(frozenset(ONNX_LAYER.findall(str(layer.get("Metadata", "")))), tuple(inputs), product)


def _tensors(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list; none where it is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _count(tensor: Mapping[str, Any]) -> float:
    """The number of a tensor's values; 1 where its sides are no numbers."""
    sides = tensor.get("Dimensions")
    known = isinstance(sides, list) and all(isinstance(side, int) for side in sides)
    return math.prod(map(float, sides)) if isinstance(sides, list) and known else 1.0


def _type_of(tensor: Mapping[str, Any]) -> str:
    keys = ("Format/Datatype", "Datatype", "DataType")
    return _format_in(next((str(tensor[key]) for key in keys if key in tensor), ""))


def _format_in(text: str) -> str:
    return next((name for word, name in _NAMES if word.lower() in text.lower()), "")


def operands(layers: Sequence[Quantized], compute: str | None, program: Program) -> dict[str, str | None]:
    """The operands of each layer by its name, as "input x weight".

    None where they are not read: the layer's node is absent, or is one of many in a fused operation. "x ?" where only
    the weight's format is not read.
    """
    by_node: dict[str, list[Operation]] = {}
    for operation in program.operations:
        for node in operation.nodes:
            by_node.setdefault(node, []).append(operation)
    return {layer.name: _operands(layer, compute, by_node) for layer in layers}


def _operands(layer: Quantized, compute: str | None, by_node: Mapping[str, Sequence[Operation]]) -> str | None:
    products = [op.inputs for op in by_node.get(layer.node, ()) if op.product and len(op.inputs) > 1]
    if not products or not all(all(inputs[:2]) for inputs in products):
        return None
    inputs = next((i for i in products if i[:2] != (layer.activation, layer.weight)), products[0])
    if layer.activation is None and layer.dequantizer is not None and inputs[0] == compute:
        named = any(layer.weight in op.inputs for op in by_node.get(layer.dequantizer, ()))
        return f"{compute} x {layer.weight if named else '?'}"
    return f"{inputs[0]} x {inputs[1]}"


def fallbacks(
    layers: Sequence[Quantized],
    compute: str | None,
    program: Program,
    read: Mapping[str, str],
    float32: frozenset[str] = frozenset(),
) -> list[str]:
    """What runs in other types than the scheme asks: quantized layers whose operands were ``read``, then all the rest.

    Products outside of the quantized layers are told where they run in float32 and the scheme computes in 16 bit,
    unless one of their nodes is in ``float32``, those that the file itself computes so.
    """
    asked = {layer.name: f"{layer.activation or compute} x {layer.weight}" for layer in layers}
    quantized = [f"{name} runs {actual}, asked {asked[name]}" for name, actual in read.items() if actual != asked[name]]
    return quantized + list(_float32_products(layers, compute, program, float32))


def _float32_products(
    layers: Sequence[Quantized], compute: str | None, program: Program, float32: frozenset[str]
) -> Iterator[str]:
    if compute in (None, "float32"):
        return
    own = {node for layer in layers for node in (layer.node, layer.dequantizer)} | float32
    for operation in program.operations:
        if operation.product and not operation.nodes & own and operation.inputs[:2] == ("float32", "float32"):
            yield f"{', '.join(sorted(operation.nodes)[:2])} runs float32 x float32, asked {compute}"


def precision(
    layers: Sequence[Quantized], compute: str, program: Program, float32: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Whether an engine computes each quantized layer as the scheme asks; ``compute`` is the type of everything else.

    That is, but for the nodes in ``float32``, which the file itself computes so.
    ``operands`` counts the layers that were read by their operands, ``fell_back`` says which run in other types,
    ``unread`` names the layers whose operands cannot be told. ``status`` is "as asked", "fell back" or, where nothing
    is known to have fallen back and something is unread, "fused, cannot be told".
    """
    found = operands(layers, compute, program)
    read = {name: actual for name, actual in found.items() if actual and not actual.endswith("?")}
    unread = [name for name in found if name not in read]
    fell_back = fallbacks(layers, compute, program, read, float32)
    products = sum(operation.product for operation in program.operations)
    return {
        "status": FELL_BACK if fell_back else FUSED if unread or not products else AS_ASKED,
        "layers": len(layers),
        "products": products,
        "operands": dict(Counter(read.values())),
        "fell_back": fell_back,
        "unread": unread,
    }
