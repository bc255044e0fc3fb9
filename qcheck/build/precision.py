"""Whether an engine computes each layer in the scheme's precision, from its operations and its constants.

The operations alone are compared in ``qcheck.device.inspector``, which runs on boards too.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from qcheck.device.inspector import Operation, Program, fallbacks, operands
from qcheck.result.build import Precision
from qcheck.result.manifest import Layer
from qcheck.spec.target import number_format

__all__ = ["Operation", "Program", "compare"]

_MISSING_SHARE = 0.05  # share of a format's bytes that may be missing where the operands of every layer are known
_SUM_TOLERANCE = 1e-4  # share of a format's bytes by which sums may differ


_PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum")


def float32_products(model: Path) -> frozenset[str]:
    """The products that an ONNX file itself asks in float32, as Sana's authors do for linear attention."""
    products = [node for node in ir.load(model).graph if node.op_type in _PRODUCTS]
    inputs = {str(node.name): node.inputs[0] for node in products}
    return frozenset(name for name, value in inputs.items() if value is not None and value.dtype == ir.DataType.FLOAT)


def compare(
    layers: Sequence[Layer], compute: str | None, program: Program, float32: frozenset[str] = frozenset()
) -> Precision:
    """Compare ``program`` with the quantized ``layers``; ``compute`` is the type of everything else.

    That is, but for the nodes in ``float32``, which the file itself computes so.
    The builder may fuse the decoding of a weight into a neighbour's operation and drop its name. The storage of such
    weights is inferred from the bytes of their format's constants: they are quantized if the engine holds the bytes
    that all layers need, and none of them is if exactly their own bytes are missing.
    """
    promised = _weight_bytes(layers)
    operands_of = operands(layers, compute, program)
    unnamed = [layer for layer in layers if operands_of[layer.name] == f"{compute} x ?"]
    missing = []
    for name, needed in promised.items() if program.constants else ():
        actual = program.constants.get(name, 0)
        nameless = [layer for layer in unnamed if layer.weight == name]
        storage = _storage(needed, actual, _weight_bytes(nameless).get(name, 0))
        if storage is None:
            missing.append(f"the engine holds {actual:,} bytes of {name} constants, the scheme promises {needed:,}")
        else:
            operands_of |= {
                layer.name: f"{compute} x {name if storage == 'quantized' else compute}" for layer in nameless
            }
    read = {name: found for name, found in operands_of.items() if found and not found.endswith("?")}
    return Precision(
        layers=len(layers),
        products=sum(operation.product for operation in program.operations),
        operands=dict(Counter(read.values())),
        fell_back=missing + fallbacks(layers, compute, program, read, float32),
        unread=[name for name in operands_of if name not in read],
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


def _weight_bytes(layers: Sequence[Layer]) -> dict[str, int]:
    """Bytes of the layers' weights by format."""
    bits: Counter[str] = Counter()
    for layer in layers:
        bits[layer.weight] += layer.parameters * number_format(layer.weight).bits
    return {name: count // 8 for name, count in bits.items()}
