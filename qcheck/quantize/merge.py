"""The merge of an adapter's change into a quantized layer's weight, for each order."""

from collections.abc import Callable

import torch

from qcheck.spec import order
from qcheck.spec.order import Order


def stored(
    name: Order, base: torch.Tensor, adapted: torch.Tensor, change: torch.Tensor, quantized: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """The full-precision weight [out, in, ...] whose codes an artifact of that order stores, all of one shape.

    Args:
        name: The order.
        base: W, the base's weight.
        adapted: W + D, the adapter merged at full precision.
        change: D, the adapter's change.
        quantized: Computes Q(W), the dequantized codes of the base, where the order needs it.

    Returns:
        W + D where the adapter is merged before quantization, Q(W) + D where it is merged after it, and W where it
        keeps its own factors beside the quantized weight.
    """
    merged = order.merge(name).merged
    if merged == "before":
        return adapted
    return quantized() + change if merged == "after" else base
