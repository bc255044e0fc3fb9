"""Whether an engine computes each layer in the scheme's precision, from the operand types of its operations.

Constants alone mislead: a weight-only convolution also holds INT8 constants. So a layer with quantized activations
must multiply two operands of its formats, and a weight-only layer must decode a weight of its format.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qcheck.result.build import Precision
from qcheck.result.manifest import Layer
from qcheck.spec.target import number_format

_MISSING_SHARE = 0.05  # share of a format's bytes that may be missing where the operands of every layer are known
_SUM_TOLERANCE = 1e-4  # share of a format's bytes by which sums may differ


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


def compare(layers: Sequence[Layer], compute: str | None, program: Program) -> Precision:
    """Compare ``program`` with the quantized ``layers``; ``compute`` is the type of everything else.

    The builder may fuse the decoding of a weight into a neighbour's operation and drop its name. The storage of such
    weights is inferred from the bytes of their format's constants: they are quantized if the engine holds the bytes
    that all layers need, and none of them is if exactly their own bytes are missing.
    """
    by_node: dict[str, list[Operation]] = {}
    for operation in program.operations:
        for node in operation.nodes:
            by_node.setdefault(node, []).append(operation)
    promised = _weight_bytes(layers)
    operands_of = {layer.name: _operands(layer, compute, by_node) for layer in layers}
    unnamed = [layer for layer in layers if operands_of[layer.name] == f"{compute} x ?"]
    fallbacks = []
    for name, needed in promised.items() if program.constants else ():
        actual = program.constants.get(name, 0)
        nameless = [layer for layer in unnamed if layer.weight == name]
        storage = _storage(needed, actual, _weight_bytes(nameless).get(name, 0))
        if storage is None:
            fallbacks.append(f"the engine holds {actual:,} bytes of {name} constants, the scheme promises {needed:,}")
        else:
            operands_of |= {
                layer.name: f"{compute} x {name if storage == 'quantized' else compute}" for layer in nameless
            }
    unread = [name for name, operands in operands_of.items() if operands is None or operands.endswith("?")]
    for layer in layers:
        scheme_operands = f"{layer.activation or compute} x {layer.weight}"
        if layer.name not in unread and operands_of[layer.name] != scheme_operands:
            fallbacks.append(f"{layer.name} runs {operands_of[layer.name]}, asked {scheme_operands}")
    layer_nodes = {node for layer in layers for node in (layer.node, layer.dequantizer)}
    return Precision(
        layers=len(layers),
        products=sum(operation.product for operation in program.operations),
        operands=dict(Counter(operands for name, operands in operands_of.items() if operands and name not in unread)),
        fell_back=fallbacks + _float32_products(compute, program, layer_nodes),
        unread=unread,
        bytes=dict(program.constants),
        promised=promised,
    )


def _storage(needed: int, actual: int, unnamed: int) -> Literal["quantized", "wide"] | None:
    """How the weights without a named decoder, of ``unnamed`` bytes, are stored; None where that is undecided.

    ``needed`` and ``actual`` are the bytes of the format that the scheme needs and that the engine holds.
    Without unnamed weights a few bytes may be missing: equal constants are stored once.
    """
    missing = needed - actual
    if missing <= (0 if unnamed else _MISSING_SHARE * needed):
        return "quantized"
    return "wide" if abs(missing - unnamed) <= _SUM_TOLERANCE * needed else None


def _operands(layer: Layer, compute: str | None, by_node: Mapping[str, list[Operation]]) -> str | None:
    """A layer's operands as "input x weight"; None where they are not read, "x ?" where only the weight's is not."""
    products = [op.inputs for op in by_node.get(layer.node, ()) if op.product and len(op.inputs) > 1]
    if not products or not all(all(inputs[:2]) for inputs in products):
        return None
    inputs = next((i for i in products if i[:2] != (layer.activation, layer.weight)), products[0])
    if layer.activation is None and layer.dequantizer is not None and inputs[0] == compute:
        named = any(layer.weight in op.inputs for op in by_node.get(layer.dequantizer, ()))
        return f"{compute} x {layer.weight if named else '?'}"
    return f"{inputs[0]} x {inputs[1]}"


def _float32_products(compute: str | None, program: Program, layer_nodes: set[str | None]) -> list[str]:
    """Products outside ``layer_nodes`` that run in FP32 although the scheme computes them in ``compute``."""
    if compute in {None, "float32"}:
        return []
    others = (op for op in program.operations if op.product and not op.nodes & layer_nodes)
    return [
        f"{', '.join(sorted(op.nodes)[:2])} runs float32 x float32, asked {compute}"
        for op in others
        if op.inputs[:2] == ("float32", "float32")
    ]


def _weight_bytes(layers: Sequence[Layer]) -> dict[str, int]:
    """Bytes of the layers' weights by format."""
    bits: Counter[str] = Counter()
    for layer in layers:
        bits[layer.weight] += layer.parameters * number_format(layer.weight).bits
    return {name: count // 8 for name, count in bits.items()}
