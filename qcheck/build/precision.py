"""Whether an engine computes what its scheme asked, layer by layer, from the operand types of its operations.

Constants alone mislead: a weight-only convolution also holds INT8 constants. So a layer with quantized activations
must multiply two operands of its formats, and a weight-only one must decode a weight of its format.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qcheck.result.build import Precision
from qcheck.result.manifest import Layer
from qcheck.spec.target import number_format

_SAME = 0.05  # of a format's bytes that may be missing where every layer is named
_EXACT = 1e-4  # of them by which sums may differ


@dataclass(frozen=True)
class Operation:
    """One operation: the ONNX nodes that it carries out, and the formats of its inputs in order.

    ``product`` says that it is a convolution or a matrix product by itself, so that its first two inputs are
    activation and weight as the hardware multiplies them.
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
    """Hold ``program`` against the ``layers`` that were asked for; ``compute`` is the type of everything else.

    The builder may fuse the decoding of a weight into a neighbour's operation and forget its name. Such weights are
    known by the bytes of their format's constants: as many as all layers need, and they are stored as asked; fewer by
    just their own, and none of them is.
    """
    by_node: dict[str, list[Operation]] = {}
    for operation in program.operations:
        for node in operation.nodes:
            by_node.setdefault(node, []).append(operation)
    promised = _promised(layers)
    found = {layer.name: _operands(layer, compute, by_node) for layer in layers}
    unnamed = [layer for layer in layers if found[layer.name] == f"{compute} x ?"]
    fell = []
    for name, wanted in promised.items() if program.constants else ():
        held, nameless = program.constants.get(name, 0), [layer for layer in unnamed if layer.weight == name]
        stored = _stored(wanted, held, _promised(nameless).get(name, 0))
        if stored is None:
            fell.append(f"the engine holds {held:,} bytes of {name} constants, the scheme promises {wanted:,}")
        else:
            found |= {layer.name: f"{compute} x {name if stored == 'as asked' else compute}" for layer in nameless}
    unread = [name for name, operands in found.items() if operands is None or operands.endswith("?")]
    for layer in layers:
        wanted_operands = f"{layer.activation or compute} x {layer.weight}"
        if layer.name not in unread and found[layer.name] != wanted_operands:
            fell.append(f"{layer.name} runs {found[layer.name]}, asked {wanted_operands}")
    asked = {node for layer in layers for node in (layer.node, layer.dequantizer)}
    return Precision(
        layers=len(layers),
        products=sum(operation.product for operation in program.operations),
        operands=dict(Counter(operands for name, operands in found.items() if operands and name not in unread)),
        fell_back=fell + _wide(compute, program, asked),
        unread=unread,
        bytes=dict(program.constants),
        promised=promised,
    )


def _stored(wanted: int, held: int, nameless: int) -> Literal["as asked", "wide"] | None:
    """How weights of ``nameless`` bytes are stored, from all bytes ``wanted`` and ``held``; None where that is open.

    Without nameless weights a few bytes may be missing: equal constants are stored once.
    """
    missing = wanted - held
    if missing <= (0 if nameless else _SAME * wanted):
        return "as asked"
    return "wide" if abs(missing - nameless) <= _EXACT * wanted else None


def _operands(layer: Layer, compute: str | None, by_node: Mapping[str, list[Operation]]) -> str | None:
    """How a layer runs, as "input x weight"; None where the engine does not say, "x ?" where not of the weight."""
    products = [op.inputs for op in by_node.get(layer.node, ()) if op.product and len(op.inputs) > 1]
    if not products or not all(all(inputs[:2]) for inputs in products):
        return None
    inputs = next((i for i in products if i[:2] != (layer.activation, layer.weight)), products[0])
    if layer.activation is None and layer.dequantizer is not None and inputs[0] == compute:
        named = any(layer.weight in op.inputs for op in by_node.get(layer.dequantizer, ()))
        return f"{compute} x {layer.weight if named else '?'}"
    return f"{inputs[0]} x {inputs[1]}"


def _wide(compute: str | None, program: Program, asked: set[str | None]) -> list[str]:
    """Products of other layers that run in FP32 although everything else was asked in ``compute``."""
    if compute in {None, "float32"}:
        return []
    others = (op for op in program.operations if op.product and not op.nodes & asked)
    return [
        f"{', '.join(sorted(op.nodes)[:2])} runs float32 x float32, asked {compute}"
        for op in others
        if op.inputs[:2] == ("float32", "float32")
    ]


def _promised(layers: Sequence[Layer]) -> dict[str, int]:
    """Bytes of the layers' weights by format."""
    bits: Counter[str] = Counter()
    for layer in layers:
        bits[layer.weight] += layer.parameters * number_format(layer.weight).bits
    return {name: count // 8 for name, count in bits.items()}
