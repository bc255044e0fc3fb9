"""Orders: when the adapter is merged, and what of it is rounded."""

from typing import Literal, get_args

from qcheck.core.errors import unknown

Order = Literal["merge-quantize", "quantize-merge", "unmerged", "refit"]
ORDERS: tuple[Order, ...] = get_args(Order)
MERGES: tuple[Order, ...] = ("merge-quantize", "quantize-merge", "unmerged")  # refit makes the first one's weights


def find(name: str) -> Order:
    """The order of that name."""
    for known in ORDERS:
        if known == name:
            return known
    raise unknown("order", name, ORDERS)
