"""What an order does to a weight: the one place where an adapter's change joins a quantized layer."""

import torch

from qcheck.spec import order
from qcheck.spec.order import Order


def stored(
    chosen: Order, base: torch.Tensor, adapted: torch.Tensor, change: torch.Tensor, quantized: torch.Tensor
) -> torch.Tensor:
    """The full-precision weight [out, in, ...] whose codes an artifact of that order stores, all of one shape.

    Args:
        chosen: The order.
        base: W, the base's weight.
        adapted: W + D, the adapter merged at full precision.
        change: D, the adapter's change.
        quantized: Q(W), what the base's own codes stand for.

    Returns:
        W + D where the adapter is merged before quantization, Q(W) + D where it is merged after it, and W where it
        stays beside the quantized weight.
    """
    where = order.merge(chosen).merged
    if where == "before":
        return adapted
    return quantized + change if where == "after" else base
