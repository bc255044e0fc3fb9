"""Whether an engine computes what its scheme asked, layer by layer, from the operand types of its operations.

Constants alone mislead: a weight-only convolution also holds INT8 constants. So a layer with quantized activations
must multiply two operands of its formats, and a weight-only one must decode a weight of its format.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcheck.files import Value
from qcheck.manifest import Layer
from qcheck.target import number_format

_SHORT = 0.95  # of a format's promised bytes; identical constants may be stored once


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


class Realised(Value):
    """What was read from an engine.

    ``operands`` counts the asked layers by "input x weight" as they are multiplied or, of a weight-only layer, by
    "input x stored weight". ``fell_back`` names what is not as asked, ``unread`` the layers that no operation names.
    ``bytes`` are the engine's constants by format, ``promised`` those of the quantized weights that the scheme asks.
    """

    layers: int
    operands: dict[str, int]
    fell_back: list[str]
    unread: list[str]
    bytes: dict[str, int]
    promised: dict[str, int]

    @property
    def complete(self) -> bool:
        """Whether every asked layer was read and is as asked."""
        return not self.fell_back and not self.unread

    def text(self) -> str:
        """One line for a person."""
        counted = ", ".join(f"{count} {operands}" for operands, count in self.operands.items())
        missing = f"; {len(self.unread)} of {self.layers} layers not found in the engine" if self.unread else ""
        return f"{counted or 'nothing'}{missing}"


def compare(layers: Sequence[Layer], compute: str, program: Program) -> Realised:
    """Hold ``program`` against the ``layers`` that were asked for; ``compute`` is the type of everything else."""
    by_node: dict[str, list[Operation]] = {}
    for operation in program.operations:
        for node in operation.nodes:
            by_node.setdefault(node, []).append(operation)
    promised = _promised(layers)
    held = {name: program.constants.get(name, 0) >= wanted for name, wanted in promised.items()}
    if not program.constants:
        held = {}
    counted: Counter[str] = Counter()
    fell, unread = [], []
    for layer in layers:
        found = _operands(layer, compute, by_node, held)
        wanted = f"{layer.activation or compute} x {layer.weight}"
        if found is None:
            unread.append(layer.name)
            continue
        counted[found] += 1
        if found != wanted:
            fell.append(f"{layer.name} runs {found}, asked {wanted}")
    asked = {node for layer in layers for node in (layer.node, layer.dequantizer)}
    fell += _wide(compute, program, asked)
    if program.constants and not unread:
        fell += _short(promised, program.constants)
    return Realised(
        layers=len(layers),
        operands=dict(counted),
        fell_back=fell,
        unread=unread,
        bytes=dict(program.constants),
        promised=promised,
    )


def _operands(
    layer: Layer, compute: str, by_node: Mapping[str, list[Operation]], held: Mapping[str, bool]
) -> str | None:
    """How a layer runs, as "input x weight"; None where the engine does not say.

    The builder may fuse the decoding of weights into a neighbour's operation and forget the name. ``held`` says of each
    format whether the engine's constants are as many as all layers together need; then this weight is among them.
    """
    products = [op.inputs for op in by_node.get(layer.node, ()) if op.product and len(op.inputs) > 1]
    if not products or not all(all(inputs[:2]) for inputs in products):
        return None
    inputs = next((i for i in products if i[:2] != (layer.activation, layer.weight)), products[0])
    if layer.activation is None and layer.dequantizer is not None and inputs[0] == compute:
        named = any(layer.weight in op.inputs for op in by_node.get(layer.dequantizer, ()))
        if named or held.get(layer.weight):
            return f"{compute} x {layer.weight}"
        if not held:
            return None
    return f"{inputs[0]} x {inputs[1]}"


def _wide(compute: str, program: Program, asked: set[str | None]) -> list[str]:
    """Products of other layers that run in FP32 although everything else was asked in ``compute``."""
    if compute == "float32":
        return []
    others = (op for op in program.operations if op.product and not op.nodes & asked)
    return [
        f"{', '.join(sorted(op.nodes)[:2])} runs float32 x float32, asked {compute}"
        for op in others
        if op.inputs[:2] == ("float32", "float32")
    ]


def _promised(layers: Sequence[Layer]) -> dict[str, int]:
    bits: Counter[str] = Counter()
    for layer in layers:
        bits[layer.weight] += layer.parameters * number_format(layer.weight).bits
    return {name: count // 8 for name, count in bits.items()}


def _short(promised: Mapping[str, int], held: Mapping[str, int]) -> list[str]:
    return [
        f"the engine holds {held.get(name, 0):,} bytes of {name} constants, the scheme promises {wanted:,}"
        for name, wanted in promised.items()
        if held.get(name, 0) < _SHORT * wanted
    ]
